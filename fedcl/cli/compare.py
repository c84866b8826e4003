"""`fedcl compare`: a grid of settings and seeds, run side by side, and what holds of it."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from fedcl.cli.flags import CONFIG, FLAGS, RUN, ConfigFile, Jobs, Quiet, Sets, mistakes, with_flags

if TYPE_CHECKING:
    from rich.console import Console

    from fedcl.comparison import Comparison, Progress
    from fedcl.comparison.grid import Grid
    from fedcl.comparison.presets import Preset


GridFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="TOML: values with names, metrics, seeds.", rich_help_panel=CONFIG)
]
Privacy = Annotated[
    bool, typer.Option("--privacy", help="Local, central, federated, each mechanism at ε.", rich_help_panel=CONFIG)
]
Quick = Annotated[bool, typer.Option("--quick", help="--privacy, coarse: some minutes.", rich_help_panel=CONFIG)]


@with_flags
def compare(
    flags: dict[str, str],
    config: ConfigFile = None,
    sets: Sets = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="KEY=A,B,C",
            help="Any setting or flag; the first is compared, others make blocks.",
            rich_help_panel=CONFIG,
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="N", help="How many from --seed on (3), or which: 0,3,7.", rich_help_panel=CONFIG)
    ] = "",
    grid: GridFile = None,
    privacy: Privacy = False,
    quick: Quick = False,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="A figure to show; may be repeated.", rich_help_panel=RUN),
    ] = None,
    jobs: Jobs = 0,
    keep_going: Annotated[
        bool,
        typer.Option("--keep-going", help="Leave out combinations that cannot run.", rich_help_panel=RUN),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs; run and write nothing.", rich_help_panel=RUN)
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Run every combination of settings with every seed; the same command does what is missing."""
    from fedcl import comparison
    from fedcl.cli import terminal
    from fedcl.contracts import FedclError

    preset = _preset(grid, privacy, quick)
    made = _grid(flags, config, sets or [], vary or [], seeds, preset, keep_going)
    folder = Path(flags.get("run.output") or Path("runs") / f"compare-{made.digest()}")
    console = terminal.console()
    if dry_run:
        _plan(made, folder, console)
        return
    from fedcl.simulation import polite_interrupt

    with terminal.told(FedclError), _View(made, console, quiet) as view, polite_interrupt(view.stopping) as stop:
        command = ["fedcl", *sys.argv[1:]]
        found = comparison.run(
            made, folder, jobs=jobs, metrics=metrics or preset.metrics, command=command, notify=view, stop=stop
        )
    show(found, console)
    if any(run.state in ("interrupted", "missing", "running") for run in found.runs):
        typer.echo(f"interrupted; go on with: {shlex.join(command)}", err=True)
        raise typer.Exit(130)
    refused = {(cell.labels, cell.seed) for cell in made.cells if cell.error}
    if any((run.labels, run.seed) not in refused for run in found.failed()):
        raise typer.Exit(1)


def show(found: Comparison, console: Console) -> None:
    """The tables, what failed, and where the files are."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from fedcl.comparison import page, protection, write

    for block in found.blocks():
        for head, rows in (write.grid(found, block, lambda text: f"\x00{text}"), write.against(found, block)):
            if not rows:
                continue
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=found.title(block) or None, title_justify="left")
            for place, title in enumerate(head):
                table.add_column(title, justify="right" if place else "left")
            for row in rows:
                table.add_row(*(Text(cell.lstrip("\x00"), "bold" if cell[:1] == "\x00" else "") for cell in row))
            console.print(table)
        for name, terms in protection.stated(found, block):
            console.print(f"{name}: {terms}", soft_wrap=True, markup=False, highlight=False)
    console.print(write.note(found), soft_wrap=True)
    for run in found.failed():
        console.print(f"failed: {', '.join(run.labels)}, seed {run.seed}: {run.error}", soft_wrap=True, markup=False)
    console.print(f"report  {found.path / page.REPORT}", soft_wrap=True)
    console.print(f"tables  {found.path}/comparison.md, .tex, .csv, runs.csv", soft_wrap=True)


def _preset(file: Path | None, privacy: bool, quick: bool) -> Preset:
    """The grid of --grid or --privacy, or exit code 2; an empty one without either."""
    from fedcl.cli import terminal
    from fedcl.comparison import presets

    with terminal.told(ValueError, code=2):
        if file and privacy:
            raise ValueError("--privacy is a grid of its own: leave out --grid, or copy from it")
        if quick and not privacy:
            raise ValueError("--quick is for --privacy")
        if privacy:
            file = presets.shipped("privacy-quick" if quick else "privacy")
        return presets.load(file) if file else presets.Preset()


def _grid(
    flags: dict[str, str],
    config: Path | None,
    sets: list[str],
    vary: list[str],
    seeds: str,
    preset: Preset,
    keep_going: bool,
) -> Grid:
    """The grid that the flags describe, or exit code 2 with all mistakes."""
    from fedcl import settings
    from fedcl.cli import terminal
    from fedcl.comparison import grid

    keys = {flag.name: flag.key for flag in FLAGS}
    common = {key: text for key, text in flags.items() if key != "run.output"}
    with terminal.told(ValueError, code=2), mistakes(flags):
        axes = [grid.parse(text) for text in vary]
        axes = [grid.Axis(keys.get(axis.key, axis.key), axis.values) for axis in axes]
        tree = preset.under(config)
        first = settings.resolve(tree, sets, common).seed
        made = grid.build(preset.with_axes(axes), grid.seeds(seeds or preset.seeds, first), tree, sets, common)
    wrong = {cell.labels: cell.error for cell in made.cells if cell.error}
    if wrong and (not (keep_going or preset.keep_going) or len(wrong) * len(made.seeds) == len(made.cells)):
        for labels, why in wrong.items():
            typer.echo(f"{', '.join(labels)}: {why}", err=True)
        if len(wrong) * len(made.seeds) < len(made.cells):
            typer.echo("leave these out, or --keep-going runs the others and shows these as failed", err=True)
        raise typer.Exit(2)
    return made


def _plan(made: Grid, folder: Path, console: Console) -> None:
    """What would run, and where."""
    from fedcl.comparison.grid import folder as name
    from fedcl.run_dir import read_status

    for cell in made.cells:
        path = folder / name(made.axes, cell.labels) / f"seed-{cell.seed}"
        state = cell.error or read_status(path).get("state", "to do")
        console.print(f"{path}  {state}", soft_wrap=True, markup=False)
    console.print(f"{len(made.cells)} runs", soft_wrap=True)


class _View:
    """A line for each run that has ended; in a terminal also what goes on."""

    def __init__(self, made: Grid, console: Console, quiet: bool) -> None:
        self._console, self._quiet, self._seeds = console, quiet, len(made.seeds)
        self._running: dict[Path, str] = {}
        self._since = time.monotonic()
        self._status = console.status("starting …") if console.is_terminal and not quiet else None

    def __enter__(self) -> _View:
        if self._status:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()

    def __call__(self, progress: Progress) -> None:
        """Take note of a beginning or an end."""
        from fedcl import units

        name = ", ".join([*progress.labels, f"seed {progress.seed}"])
        if progress.kind == "begin":
            self._running[progress.path] = name
        else:
            self._running.pop(progress.path, None)
        left = ""
        if progress.done and progress.done < progress.total:
            pace = (time.monotonic() - self._since) / progress.done
            left = f"; {units.duration(pace * (progress.total - progress.done))} left"
        if self._status:
            self._status.update(f"{progress.done}/{progress.total}{left}: {'; '.join(self._running.values())}")
        if progress.kind == "end" and not self._quiet:
            what = progress.error or f"finished in {units.duration(progress.seconds)}"
            line = f"[{progress.done}/{progress.total}] {name}: {what}{left}"
            self._console.print(line, soft_wrap=True, markup=False)

    def stopping(self, event: object) -> None:
        """Ctrl-C."""
        self._console.print("stopping: runs end their round and save; Ctrl-C again stops at once", soft_wrap=True)
