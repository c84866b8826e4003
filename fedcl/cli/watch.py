"""`fedcl watch`: a run, or all runs of a comparison, seen live from another terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedcl.cli.simulate import Log

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fedcl.contracts import Event
    from fedcl.watch import Watcher

_PAUSE = 0.5  # seconds between looks
_SILENCE = 60.0  # seconds without a record after which it is said


def watch(
    run: Annotated[Path, typer.Argument(help="Run directory, also one to come, or a folder of runs.")],
    once: Annotated[bool, typer.Option("--once", help="Say where it stands, and end.")] = False,
    log: Annotated[Log, typer.Option("--log", metavar="KIND", help="auto, plain or json lines.")] = Log.auto,
) -> None:
    """Show a run as it goes, from another terminal; ends when it is finished or has failed.

    Only the run's files are read: it notices nothing. Exit code 1 says that a run failed.
    """
    from fedcl.cli import terminal
    from fedcl.watch import Watcher, runs

    console = terminal.console()
    try:
        found = runs(run)
        if not found and log is not Log.json:
            console.print(f"{run} has not begun{'' if once else '; waiting'}", soft_wrap=True, markup=False)
        while not found and not once:
            time.sleep(_PAUSE)
            found = runs(run)
        code = 0 if not found else _one(Watcher(run), console, once, log) if found == [run] else _many(run, once, log)
    except KeyboardInterrupt:  # the usual way to leave; the run goes on
        code = 130
    raise typer.Exit(code)


def _one(watcher: Watcher, console: Console, once: bool, log: Log) -> int:
    """Watch one run; the exit code."""
    from fedcl import units
    from fedcl.view import Lines, View

    if log is Log.json:
        lines = Lines(sys.stdout)
        _follow([watcher], lambda _, event: lines(event), once)
        return int(watcher.state == "failed")
    with View(watcher.run, console, live=False if log is Log.plain or once else None) as view:
        fresh = time.monotonic()

        def show(_: Watcher, event: Event) -> None:
            nonlocal fresh
            fresh = time.monotonic()
            view(event)

        def pause() -> None:
            silent = time.monotonic() - fresh
            view.note = f", nothing new for {units.duration(silent)}" if silent > _SILENCE else ""

        for event in watcher.poll():
            view(event)
        view.start_clock()
        _follow([watcher], show, once, pause)
        if once and not watcher.over:
            view.tell()
    if watcher.state == "finished":
        _summary(watcher.run, console)
    return int(watcher.state == "failed")


def _follow(
    watchers: Sequence[Watcher],
    show: Callable[[Watcher, Event], None],
    once: bool,
    pause: Callable[[], None] = lambda: None,
) -> None:
    """Poll until all runs are over."""
    while True:
        for watcher in watchers:
            for event in watcher.poll():
                show(watcher, event)
        if once or all(watcher.over for watcher in watchers):
            return
        pause()
        time.sleep(_PAUSE)


def _summary(run: Path, console: Console) -> None:
    from fedcl import summary
    from fedcl.results import Result

    console.print(summary.render(Result.load(run), ""))


def _many(folder: Path, once: bool, log: Log) -> int:
    """Watch the runs of a folder as a table, or as lines that name the run; the exit code."""
    from rich.live import Live

    from fedcl.cli import terminal
    from fedcl.view import Lines
    from fedcl.watch import Watcher, runs

    watchers: dict[Path, Watcher] = {}
    console = terminal.console()
    lines = Lines(sys.stdout)
    live = log is Log.auto and console.is_terminal and not once
    states: dict[Path, str] = {}
    with Live(console=console, auto_refresh=False, transient=True) as table:
        while True:
            for path in runs(folder):
                watchers.setdefault(path, Watcher(path))
            for path, watcher in watchers.items():
                for event in watcher.poll():
                    if log is Log.json:
                        lines(event, run=str(path.relative_to(folder)))
                if log is not Log.json and not live and not once and states.get(path) != watcher.state:
                    states[path] = watcher.state
                    _line(folder, watcher, console)
            if live:
                table.update(_table(folder, list(watchers.values())), refresh=True)
            if once or all(watcher.over for watcher in watchers.values()):
                break
            time.sleep(_PAUSE)
    if log is not Log.json and (live or once):
        console.print(_table(folder, list(watchers.values())))
    return int(any(watcher.state == "failed" for watcher in watchers.values()))


def _cells(folder: Path, watcher: Watcher) -> list[str]:
    from fedcl import units

    story, state = watcher.story, watcher.state or "to come"
    where = f"{min(story.stage + 1, story.stages)}/{story.stages}" if story.stages else "–"
    number = f"{story.round}/{story.rounds}" if story.stages and not watcher.over else ""
    loss = f"{story.loss:.3g}" if story.loss == story.loss else "–"
    known = units.percent(story.accuracy)
    return [str(watcher.run.relative_to(folder)), state, where, number, loss, known, str(story.alarms or "")]


def _table(folder: Path, watchers: Sequence[Watcher]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, title in enumerate(("run", "state", "stage", "round", "loss", "accuracy %", "alarms")):
        table.add_column(title, justify="left" if place < 2 else "right")
    for watcher in watchers:
        table.add_row(*_cells(folder, watcher))
    return table


def _line(folder: Path, watcher: Watcher, console: Console) -> None:
    name, state, stage, _, _, known, alarms = _cells(folder, watcher)
    text = f"{name}: {state}" + (f", stage {stage}, accuracy {known} %" if state != "to come" else "")
    console.print(text + (f", {alarms} alarms" if alarms else ""), soft_wrap=True, markup=False)
