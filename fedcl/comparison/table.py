"""A comparison, read back from its folder: every run's figures, means over seeds, and which differences hold."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedcl.comparison import figures, protection, stats
from fedcl.comparison.figures import Figure
from fedcl.comparison.grid import Axis
from fedcl.comparison.stats import Difference, Floats
from fedcl.contracts import FedclError
from fedcl.results import Result
from fedcl.run_dir import read_status

if TYPE_CHECKING:
    import pandas

GRID = "grid.json"


class Run(NamedTuple):
    """One run of the grid."""

    labels: tuple[str, ...]
    seed: int
    path: Path
    state: str  # finished, failed, interrupted, running or missing
    error: str  # of a failed one
    figures: dict[str, float]  # of a finished one
    curve: tuple[float, ...]  # average accuracy over the tasks met after each stage, the task known


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """All runs of a grid. The first axis is what is compared; the other axes make blocks, each compared by itself."""

    path: Path
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    metrics: tuple[Figure, ...]  # those to be shown
    runs: tuple[Run, ...]  # by labels in the order of the axes, then by seed
    command: str  # that made it

    def __repr__(self) -> str:
        """What it has."""
        done = sum(run.state == "finished" for run in self.runs)
        keys = " × ".join(f"{len(axis.values)} {axis.key}" for axis in self.axes)
        return f"Comparison({str(self.path)!r}: {keys} × {len(self.seeds)} seeds, {done} of {len(self.runs)} finished)"

    @classmethod
    def load(cls, path: Path, metrics: Sequence[str] = ()) -> Comparison:
        """Read a folder that `fedcl compare` wrote, finished or not.

        Args:
            path: the folder.
            metrics: names of the figures to show; none are those that it was made with.

        Raises:
            FedclError: it is no such folder, or no run has a figure of that name.
        """
        try:
            plan = json.loads((path / GRID).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FedclError(f"{path} is not a comparison: {error}; give the folder `fedcl compare` wrote") from error
        axes = tuple(Axis(axis["key"], tuple(axis["values"])) for axis in plan["axes"])
        runs = tuple(_read(path, entry) for entry in plan["runs"])
        shown = tuple(metrics or plan["metrics"])
        known: dict[str, float] = {}
        for run in runs:
            known |= run.figures
        for name in shown:
            if known and name not in known and name not in figures.SOME:
                raise FedclError(f"no run has the figure {name!r}; there are {figures.names(known)}")
        return cls(path, axes, tuple(plan["seeds"]), tuple(map(figures.find, shown)), runs, plan["command"])

    def rows(self) -> tuple[str, ...]:
        """The values of the first axis."""
        return self.axes[0].values if self.axes else ("all",)

    def blocks(self) -> tuple[tuple[str, ...], ...]:
        """The combinations of the other axes' values; one empty combination where there is no other axis."""
        return tuple(dict.fromkeys(run.labels[1:] for run in self.runs))

    def title(self, block: Sequence[str]) -> str:
        """A block in words: "partition.alpha = 0.1, train.lr = 0.05"."""
        return ", ".join(f"{axis.key} = {label}" for axis, label in zip(self.axes[1:], block, strict=True))

    def values(self, metric: str, block: Sequence[str] = ()) -> Floats:
        """[rows, seeds], NaN where a run is missing, failed, or has no such figure."""
        found = {(run.labels, run.seed): run.figures.get(metric, math.nan) for run in self.runs}
        return np.array([[found.get(self._key(row, block, s), math.nan) for s in self.seeds] for row in self.rows()])

    def _key(self, row: str, block: Sequence[str], seed: int) -> tuple[tuple[str, ...], int]:
        return ((row, *block) if self.axes else (), seed)

    def best(self, figure: Figure, block: Sequence[str] = ()) -> int | None:
        """The row that is better than every other beyond chance (paired t, Holm, 5 %), or None; of costs None."""
        return stats.best(self.values(figure.name, block), figure.lower) if figure.tested else None

    def differences(self, figure: Figure, block: Sequence[str] = ()) -> list[tuple[Difference, float]]:
        """Of each row but the first: its paired difference to the first, and the p adjusted for all of these."""
        values = self.values(figure.name, block)
        found = [stats.paired(row, values[0]) for row in values[1:]]
        return list(zip(found, stats.holm([difference.p for difference in found]), strict=True))

    def failed(self) -> tuple[Run, ...]:
        """Runs that ended with an error."""
        return tuple(run for run in self.runs if run.state == "failed")

    def records(self) -> Iterator[dict[str, Any]]:
        """One flat dict a run: a key for each axis, seed, state, error, path, and every figure."""
        names = list(dict.fromkeys(name for run in self.runs for name in run.figures))
        for run in self.runs:
            keys = {axis.key: label for axis, label in zip(self.axes, run.labels, strict=True)}
            about = {"seed": run.seed, "state": run.state, "error": run.error, "path": str(run.path)}
            terms = {"epsilon_terms": protection.terms(run.path)} if "epsilon" in names else {}
            yield keys | about | {name: run.figures.get(name, math.nan) for name in names} | terms

    def frame(self) -> pandas.DataFrame:
        """One row a run, as `records`.

        Raises:
            FedclError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise FedclError("a DataFrame needs pandas: pip install 'fedcl[pandas]'") from error
        return pandas.DataFrame(list(self.records()))


def _read(path: Path, entry: dict[str, Any]) -> Run:
    """What there is of one run."""
    run, labels, seed = path / entry["path"], tuple(entry["labels"]), int(entry["seed"])
    status = read_status(run)
    state, error = status.get("state", "missing"), status.get("error", "")
    if entry["error"]:
        return Run(labels, seed, run, "failed", entry["error"], {}, ())
    if state != "finished":
        return Run(labels, seed, run, state, error, {}, ())
    result = Result.load(run)
    curve = metrics_curve(result)
    return Run(labels, seed, run, state, "", figures.figures_of(result), curve)


def metrics_curve(result: Result) -> tuple[float, ...]:
    """A_s for each stage s: the mean accuracy over the tasks met so far."""
    from fedcl.metrics import seen_accuracy

    return tuple(float(value) for value in seen_accuracy(result.known.whole()))
