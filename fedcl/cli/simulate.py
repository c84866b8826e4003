"""`fedcl simulate`: run an experiment, or go on with one."""

from __future__ import annotations

import json
import shlex
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fedcl.cli.flags import RUN, ConfigFile, Quiet, Sets, mistakes, with_flags

if TYPE_CHECKING:
    from rich.console import Console

    from fedcl.config import Config
    from fedcl.results import Result


class Log(StrEnum):
    """How progress is told."""

    auto = "auto"
    plain = "plain"
    json = "json"


class Peer(StrEnum):
    """Projects whose own figures `--metrics-compat` adds."""

    fot = "fot"
    target = "target"
    lander = "lander"
    fed_mammoth = "fed-mammoth"


@with_flags
def simulate(
    flags: dict[str, str],
    config: ConfigFile = None,
    sets: Sets = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan; run and write nothing.", rich_help_panel=RUN)
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Move a run that is there aside.", rich_help_panel=RUN)
    ] = False,
    metrics_compat: Annotated[
        Peer | None,
        typer.Option(
            "--metrics-compat",
            metavar="PEER",
            help="Also as fot, target, lander, fed-mammoth.",
            rich_help_panel=RUN,
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option("--track", metavar="NAME", help="tensorboard, mlflow, wandb; repeatable.", rich_help_panel=RUN),
    ] = None,
    log: Annotated[
        Log, typer.Option("--log", metavar="KIND", help="auto, plain or json lines.", rich_help_panel=RUN)
    ] = Log.auto,
    quiet: Quiet = False,
) -> None:
    """Run an experiment in its directory; the same command goes on with an interrupted one.

    Settings come from defaults, then the file, then --set, then flags.
    """
    from fedcl import defaults, plugins, settings
    from fedcl.cli import terminal

    with mistakes(flags):
        tracked = [f"run.track={json.dumps(track)}"] if track else []
        resolved = settings.resolve(config, [*(sets or []), *tracked], flags)
    with terminal.told(plugins.UnknownPlugin, code=2):
        resolved = defaults.fill(resolved)
    if dry_run:
        from fedcl.cli import dry_run as plan

        plan.show(resolved)
    else:
        _run(resolved, fresh, quiet, log, metrics_compat.value if metrics_compat else "")


def _run(config: Config, fresh: bool, quiet: bool, log: Log, peer: str) -> None:
    from fedcl import summary
    from fedcl.cli import terminal
    from fedcl.contracts import FedclError
    from fedcl.run_dir import read_status
    from fedcl.simulation import Interrupted

    console, run = terminal.console(), config.directory()
    finished = not fresh and read_status(run).get("state") == "finished"
    try:
        result = _shown(config, fresh, quiet, log, console)
    except FedclError as error:
        _fail(str(error), read_status(run).get("state") == "failed")
    except (Interrupted, KeyboardInterrupt):
        typer.echo(f"interrupted; go on with: {_same_command()}", err=True)
        raise typer.Exit(130) from None
    if log is Log.json:
        return
    if finished:
        console.print(f"{run} is finished already; --fresh runs it anew", soft_wrap=True)
    console.print(summary.render(result, peer))


def _shown(config: Config, fresh: bool, quiet: bool, log: Log, console: Console) -> Result:
    """Run it and show how it goes; as JSON, with a last line that says how it ended."""
    from fedcl.contracts import Event
    from fedcl.simulation import Interrupted, simulate
    from fedcl.view import Lines, View

    if log is Log.json:
        lines = Lines(sys.stdout)
        try:
            result = simulate(config, fresh=fresh, notify=(lambda event: None) if quiet else lines)
        except BaseException as error:
            state = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
            lines(Event("end", -1, -1, {"state": state, "error": str(error)}))
            raise
        facts = {"state": "finished", "error": "", "run": str(result.path), "metrics": result.metrics}
        lines(Event("end", len(result.accuracy), 0, facts))
        return result
    if quiet:
        return simulate(config, fresh=fresh)
    with View(config.directory(), console, live=False if log is Log.plain else None) as view:
        return simulate(config, fresh=fresh, notify=view)


def _fail(message: str, begun: bool) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    if begun:
        typer.echo(f"what was done is saved; go on with: {_same_command()}", err=True)
    raise typer.Exit(1)


def _same_command() -> str:
    """What was typed, without --fresh, which would start anew."""
    return shlex.join(["fedcl", *(word for word in sys.argv[1:] if word != "--fresh")])
