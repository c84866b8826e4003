"""Comparing: the same experiment under several settings and seeds, and which differences hold.

`grid` says which runs there are, `pool` runs them side by side, `table` reads them back, `stats` tests, `write` and
`page` show.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcl.comparison import figures, grid, leakage, pool
from fedcl.comparison.grid import Axis, Cell, Grid
from fedcl.comparison.pool import Ended
from fedcl.comparison.table import GRID, Comparison
from fedcl.config import Config
from fedcl.contracts import FedclError, Samples
from fedcl.run_dir import is_finished
from fedcl.toml import text

__all__ = ["GRID", "Comparison", "Progress", "compare", "rebuild", "run"]


@dataclass(frozen=True)
class Progress:
    """Said when a run begins and when it ends."""

    kind: str  # begin, end
    labels: tuple[str, ...]
    seed: int
    done: int  # runs that have ended in this sitting
    total: int  # runs to be done in this sitting
    path: Path  # of the run
    seconds: float = 0.0
    error: str = ""


def compare(
    config: Config | None = None,
    vary: Mapping[str, Sequence[Any] | Mapping[str, dict[str, Any]]] | None = None,
    seeds: int | Sequence[int] = 3,
    *,
    output: str | Path = "",
    jobs: int = 0,
    metrics: Sequence[str] = (),
    samples: Samples | None = None,
    notify: Callable[[Progress], None] = lambda progress: None,
) -> Comparison:
    """Run every combination of settings with every seed, or what is missing of it, and read it all back.

    Args:
        config: what all runs share; None is the defaults.
        vary: config key → its values, for example {"method": ["finetune", "ewc"], "partition.alpha": [0.1, 0.5]}. The
            first key is what is compared; each combination of the others is a block. Several keys vary together under
            names: {"setting": {"alone": {"federation": {"kind": "local"}}, "usual": {}}}.
        seeds: how many, from the config's seed on, or which.
        output: folder; empty is runs/compare-<hash>.
        jobs: runs at a time; 0 is as many as the machine has room for.
        metrics: names of the figures to show.
        samples: the data, where they are not to be loaded from `config.data`; then runs are one after another.
        notify: told when a run begins and ends.

    Returns:
        The comparison; runs that failed are in it as failed.

    Raises:
        FedclError: a combination cannot run, the folder cannot be used, or a metric is unknown.
    """
    base = config or Config()
    axes = [
        Axis(key, tuple(values), values) if isinstance(values, Mapping) else Axis(key, tuple(map(_label, values)))
        for key, values in (vary or {}).items()
    ]
    chosen = range(base.seed, base.seed + seeds) if isinstance(seeds, int) else seeds
    try:
        made = grid.build(axes, tuple(chosen), base.model_dump(exclude_unset=True))
    except ValueError as error:
        raise FedclError(str(error)) from error
    if wrong := [cell.error for cell in made.cells if cell.error]:
        raise FedclError(wrong[0])
    folder = Path(output) if output else Path("runs") / f"compare-{made.digest()}"
    return run(made, folder, jobs=jobs, metrics=metrics, samples=samples, notify=notify)


def run(
    made: Grid,
    folder: Path,
    *,
    jobs: int = 0,
    metrics: Sequence[str] = (),
    samples: Samples | None = None,
    command: Sequence[str] = (),
    notify: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Run a grid's cells that are not finished yet, in this folder, and write tables and page.

    Raises:
        FedclError: the folder holds runs of other settings, or cannot be written.
    """
    cells = sorted(made.cells, key=lambda cell: made.seeds.index(cell.seed))  # whole pairs early
    paths = {_key(cell): Path(grid.folder(made.axes, cell.labels)) / f"seed-{cell.seed}" for cell in made.cells}
    ready = {
        _key(cell): cell.config.model_copy(
            update={"run": cell.config.run.model_copy(update={"output": str(folder / paths[_key(cell)])})}
        )
        for cell in cells
        if cell.config
    }
    todo = [
        cell
        for cell in cells
        if (config := ready.get(_key(cell))) and (samples is not None or not is_finished(config.directory(), config))
    ]
    errors = {_key(cell): cell.error for cell in made.cells if cell.error}
    shown = tuple(metrics) or figures.DEFAULT
    book = _Book(made, folder, paths, shown, command)
    book.write(errors)
    configs = [ready[_key(cell)] for cell in todo]

    def begun(index: int) -> None:
        cell = todo[index]
        notify(Progress("begin", cell.labels, cell.seed, done, len(todo), folder / paths[_key(cell)]))

    for cell in cells:
        if cell not in todo and _key(cell) in ready:
            _attack(shown, folder / paths[_key(cell)], samples)
    done = 0
    ends = _here(configs, samples, begun) if samples is not None else _beside(configs, folder, jobs, stop, begun)
    for end in ends:
        cell, done = todo[end.number], done + 1
        if end.error and not end.interrupted:
            errors[_key(cell)] = end.error
            book.write(errors)
        path = folder / paths[_key(cell)]
        if not end.error:
            _attack(shown, path, samples)
        notify(Progress("end", cell.labels, cell.seed, done, len(todo), path, end.seconds, end.error))
    comparison = Comparison.load(folder)
    rebuild(comparison)
    return comparison


def rebuild(comparison: Comparison) -> Path:
    """Write the tables and the page, and return the page's path."""
    from fedcl.comparison import page, write

    write.all(comparison)
    return page.write(comparison)


def _attack(shown: Sequence[str], run: Path, samples: Samples | None) -> None:
    """Measure what a finished run's model tells, where that is asked for."""
    if leakage.FIGURE in shown:
        leakage.measure(run, samples)


def _beside(
    configs: Sequence[Config], folder: Path, jobs: int, stop: Callable[[], bool], begun: Callable[[int], None]
) -> Iterator[Ended]:
    """In processes of their own."""
    if not configs:
        return iter(())
    return pool.run(configs, pool.slots(configs[0], len(configs), jobs), folder / "logs", stop, begun)


def _here(configs: Sequence[Config], samples: Samples, begun: Callable[[int], None]) -> Iterator[Ended]:
    """One after another in this process, on data that are only here."""
    import time

    from fedcl.simulation import simulate

    for index, config in enumerate(configs):
        begun(index)
        since, error = time.monotonic(), ""
        try:
            simulate(config, samples)
        except FedclError as failure:
            error = str(failure)
        yield Ended(index, error, time.monotonic() - since)


class _Book:
    """The folder's grid.json."""

    def __init__(
        self,
        made: Grid,
        folder: Path,
        paths: Mapping[tuple[tuple[str, ...], int], Path],
        metrics: Sequence[str],
        command: Sequence[str],
    ) -> None:
        self._file = folder / GRID
        self._head: dict[str, Any] = {
            "command": shlex.join(command),
            "axes": [{"key": axis.key, "values": list(axis.values)} for axis in made.axes],
            "seeds": list(made.seeds),
            "metrics": list(metrics),
        }
        self._runs = [(_key(cell), {"path": str(paths[_key(cell)])}) for cell in made.cells]

    def _check(self) -> None:
        """Raise FedclError where the folder has a comparison of something else."""
        try:
            there = [axis["key"] for axis in json.loads(self._file.read_text(encoding="utf-8"))["axes"]]
        except (OSError, ValueError, KeyError, TypeError):
            return
        if there != (here := [axis["key"] for axis in self._head["axes"]]):
            one, other = (", ".join(keys) or "seeds" for keys in (there, here))
            raise FedclError(f"{self._file.parent} has a comparison of {one}, not of {other}; choose another --output")

    def write(self, errors: Mapping[tuple[tuple[str, ...], int], str]) -> None:
        """What runs there are, and which failed."""
        runs = [{"labels": list(k[0]), "seed": k[1], **more, "error": errors.get(k, "")} for k, more in self._runs]
        self._check()
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft = self._file.with_suffix(".part")
            draft.write_text(json.dumps(self._head | {"runs": runs}, indent=1), encoding="utf-8")
            draft.replace(self._file)
        except OSError as error:
            raise FedclError(f"{self._file.parent}: {error.strerror}; choose another --output") from error


def _key(cell: Cell) -> tuple[tuple[str, ...], int]:
    return cell.labels, cell.seed


def _label(value: Any) -> str:
    """A value as it would be typed."""
    return value if isinstance(value, str) else text(value)
