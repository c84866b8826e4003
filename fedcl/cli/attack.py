"""`fedcl attack`: what a finished run leaks, measured on its own pipeline."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedcl.cli.flags import Jobs, Quiet

if TYPE_CHECKING:
    from rich.console import Console

    from fedcl.leaks import Found, Progress


class What(StrEnum):
    """What is measured."""

    membership = "membership"
    reconstruction = "reconstruction"
    audit = "audit"


def attack(
    run: Annotated[Path, typer.Argument(help="Run directory, finished.")],
    what: Annotated[
        list[What] | None,
        typer.Option("--what", metavar="KIND", help="membership, reconstruction (default: both), audit; repeatable."),
    ] = None,
    models: Annotated[int, typer.Option(min=3, metavar="INT", help="Reruns, each with half of the candidates.")] = 16,
    candidates: Annotated[int, typer.Option(min=2, metavar="INT", help="Training records of a task, at most.")] = 200,
    new_init: Annotated[
        bool, typer.Option("--new-init/--same-init", help="Reruns start from other weights than the run.")
    ] = False,
    stage: Annotated[int, typer.Option(min=1, metavar="INT", help="Reconstruct from this stage's first step.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="A look: few models, short searches.")] = False,
    jobs: Jobs = 0,
    quiet: Quiet = False,
) -> None:
    """Measure what a finished run leaks: who was in, what an update shows, whether ε holds."""
    from fedcl import leaks
    from fedcl.cli import terminal
    from fedcl.contracts import FedclError
    from fedcl.simulation import Interrupted, polite_interrupt

    console = terminal.console()
    effort = leaks.Effort.quick() if quick else leaks.Effort(leaks.Asked(models, candidates, new_init))
    wanted = {one.value for one in what or (What.membership, What.reconstruction)}
    chosen = [name for name in leaks.WHAT if name in wanted]
    tell = _Tell(console, quiet)
    try:
        with terminal.told(FedclError), polite_interrupt(lambda event: _stopping(console)) as stop:
            found = leaks.attack(run, chosen, effort, stage=stage - 1, jobs=jobs, notify=tell, stop=stop)
            stopped = stop()
    except (Interrupted, KeyboardInterrupt):
        stopped = True
    if stopped:
        typer.echo(f"interrupted; go on with: {shlex.join(['fedcl', *sys.argv[1:]])}", err=True)
        raise typer.Exit(130)
    _show(found, chosen, run, console)


def _show(found: Found, chosen: Sequence[str], run: Path, console: Console) -> None:
    """The tables of what was asked for, and where the files are."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from fedcl.leaks import page, results
    from fedcl.leaks.plan import FOLDER

    for caption, head, rows in results.tables({name: found[name] for name in chosen}):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(caption), title_justify="left")
        for title in head:
            table.add_column(Text(title))
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
    console.print("what an attack does not find may still be there: only ε, with its terms, is a bound")
    console.print(f"report  {run / FOLDER / page.REPORT}", soft_wrap=True)
    console.print(f"figures {run / FOLDER}/{results.RESULTS}, {results.CURVES}", soft_wrap=True)


class _Tell:
    """A line for each model."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self._console, self._quiet, self._since, self._first = console, quiet, time.monotonic(), -1

    def __call__(self, progress: Progress) -> None:
        """One model is trained."""
        from fedcl import units

        self._first = progress.done - 1 if self._first < 0 else self._first
        pace = (time.monotonic() - self._since) / (progress.done - self._first)
        left = progress.total - progress.done
        after = f"; {units.duration(pace * left)} left" if left else ""
        if not self._quiet:
            took = units.duration(progress.seconds)
            self._console.print(f"[{progress.done}/{progress.total}] model trained in {took}{after}", soft_wrap=True)


def _stopping(console: Console) -> None:
    console.print("stopping: models end their round and save; Ctrl-C again stops at once", soft_wrap=True)
