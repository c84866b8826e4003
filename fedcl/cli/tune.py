"""`fedcl tune`: settings chosen on validation data, and then one look at the test data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from fedcl.cli.flags import CONFIG, FLAGS, RUN, ConfigFile, Jobs, Quiet, Sets, mistakes, with_flags

if TYPE_CHECKING:
    from rich.console import Console

    from fedcl.tuning import Space, Told, Tuned


@with_flags
def tune(
    flags: dict[str, str],
    config: ConfigFile = None,
    sets: Sets = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="KEY=LOW:HIGH[:log]",
            help="Or KEY=A,B,C. Default: learning rate, strengths.",
            rich_help_panel=CONFIG,
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, metavar="INT", help="How many in all.", rich_help_panel=RUN)] = 20,
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="What to make best, on validation data.", rich_help_panel=RUN)
    ] = "average_accuracy",
    trial_seeds: Annotated[str, typer.Option(metavar="N", help="Seeds of each trial.", rich_help_panel=RUN)] = "1",
    seeds: Annotated[
        str, typer.Option(metavar="N", help="Seeds of the final test; 0 leaves it out.", rich_help_panel=RUN)
    ] = "3",
    jobs: Jobs = 0,
    quiet: Quiet = False,
) -> None:
    """Choose settings on validation data, then test as given against as tuned; the same command goes on."""
    from fedcl import settings
    from fedcl.cli import terminal
    from fedcl.contracts import FedclError
    from fedcl.simulation import polite_interrupt

    console = terminal.console()
    plan = _plan(flags, config, sets or [], search or [], trial_seeds, seeds)
    with terminal.told(FedclError, settings.ConfigErrors), polite_interrupt(lambda event: _stopping(console)) as stop:
        _run(plan, trials, metric, jobs, quiet, console, stop)


class _Plan(NamedTuple):
    """What is searched, and where."""

    base: dict[str, Any]
    space: Space
    folder: Path
    inner: tuple[int, ...]  # seeds of each trial
    outer: tuple[int, ...]  # of the test


def _plan(
    flags: dict[str, str], config: Path | None, sets: list[str], search: list[str], trial_seeds: str, seeds: str
) -> _Plan:
    """What the flags describe, or exit code 2 with all mistakes."""
    from fedcl import settings
    from fedcl.cli import terminal
    from fedcl.comparison import grid
    from fedcl.tuning import space

    keys = {flag.name: flag.key for flag in FLAGS}
    with terminal.told(ValueError, code=2), mistakes(flags):
        base = settings.tree(config, sets, {key: text for key, text in flags.items() if key != "run.output"})
        first = settings.resolve(base)
        parsed = [space.parse(text) for text in search]
        wanted: Space = {keys.get(key, key): part for key, part in parsed} or space.usual(first)
        inner = grid.seeds(trial_seeds, first.seed)
        outer = grid.seeds(seeds, first.seed) if seeds != "0" else ()
    return _Plan(base, wanted, Path(flags.get("run.output") or f"runs/tune-{first.digest()}"), inner, outer)


def _run(
    plan: _Plan, trials: int, metric: str, jobs: int, quiet: bool, console: Console, stop: Callable[[], bool]
) -> None:
    """Search, show, test."""
    from fedcl import comparison, tuning
    from fedcl.cli.compare import show
    from fedcl.tuning import page, study

    found = tuning.tune(
        plan.base,
        plan.space,
        plan.folder,
        trials=trials,
        metric=metric,
        seeds=plan.inner,
        jobs=jobs,
        notify=lambda told, total: None if quiet else _say(console, metric, told, total),
        stop=stop,
    )
    report = page.write(found, plan.space)
    if stop():
        typer.echo("interrupted; the same command goes on", err=True)
        raise typer.Exit(130)
    _summary(console, found, report)
    if plan.outer:
        console.print("\nand now on the test data, for the first time:")
        made, command = study.final(plan.base, found, plan.outer), ["fedcl", *sys.argv[1:]]
        show(comparison.run(made, plan.folder / "final", jobs=jobs, command=command, stop=stop), console)


def _say(console: Console, metric: str, told: Told, total: int) -> None:
    from fedcl.comparison import figures

    chosen = ", ".join(f"{key} = {value}" for key, value in told.chosen.items())
    what = told.error or figures.find(metric).text(told.value)
    console.print(f"[{told.number + 1}/{total}] {chosen}: {what}", soft_wrap=True, markup=False)


def _summary(console: Console, found: Tuned, report: Path) -> None:
    from fedcl.comparison import figures

    figure = figures.find(found.metric)
    console.print(f"best on validation data, {figure.head} {figure.text(found.best.value)}:", soft_wrap=True)
    for key, value in found.best.chosen.items():
        console.print(f"  {key} = {value}", soft_wrap=True, markup=False)
    console.print(f"config  {found.path / 'best.toml'}\nreport  {report}", soft_wrap=True)


def _stopping(console: Console) -> None:
    console.print("stopping: runs end their round and save; Ctrl-C again stops at once", soft_wrap=True)
