"""`fedcl simulate`: run an experiment, or go on with one."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fedcl.cli.flags import name_of, with_flags

if TYPE_CHECKING:
    from fedcl.config import Config

_CONFIG, _RUN = "Config", "This command"


class Peer(StrEnum):
    """Projects whose own figures `--metrics-compat` adds."""

    fot = "fot"
    target = "target"
    lander = "lander"
    fed_mammoth = "fed-mammoth"


@with_flags
def simulate(
    flags: dict[str, str],
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="TOML file; flags win.", rich_help_panel=_CONFIG),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting, e.g. methods.ewc.strength=300.",
            rich_help_panel=_CONFIG,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan; run and write nothing.", rich_help_panel=_RUN)
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Move a run that is there aside.", rich_help_panel=_RUN)
    ] = False,
    metrics_compat: Annotated[
        Peer | None,
        typer.Option(
            "--metrics-compat",
            metavar="PEER",
            help="Also as fot, target, lander, fed-mammoth.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=_RUN)] = False,
) -> None:
    """Run an experiment in its directory; the same command goes on with an interrupted one.

    Settings come from defaults, then the file, then --set, then flags.
    """
    from fedcl import defaults, plugins, settings
    from fedcl.cli import terminal

    try:
        resolved = settings.resolve(config, sets or [], flags)
    except settings.ConfigErrors as errors:
        for error in errors.errors:
            origin = f" ({name_of(error.key)})" if error.key in flags else ""
            typer.echo(f"{error.key}{origin}{str(error).removeprefix(error.key)}", err=True)
        raise typer.Exit(2) from None
    with terminal.told(plugins.UnknownPlugin, code=2):
        resolved = defaults.fill(resolved)
    if dry_run:
        from fedcl.cli import dry_run as plan

        plan.show(resolved)
    else:
        _run(resolved, fresh, quiet, metrics_compat.value if metrics_compat else "")


def _run(config: Config, fresh: bool, quiet: bool, peer: str) -> None:
    from fedcl import summary
    from fedcl.cli import terminal
    from fedcl.contracts import FedclError
    from fedcl.run_dir import read_status
    from fedcl.simulation import Interrupted
    from fedcl.simulation import simulate as start
    from fedcl.view import View

    console, run = terminal.console(), config.directory()
    finished = not fresh and read_status(run).get("state") == "finished"
    try:
        if quiet:
            result = start(config, fresh=fresh)
        else:
            with View(run, console) as view:
                result = start(config, fresh=fresh, notify=view)
    except FedclError as error:
        _fail(str(error), read_status(run).get("state") == "failed")
    except (Interrupted, KeyboardInterrupt):
        typer.echo(f"interrupted; go on with: {_same_command()}", err=True)
        raise typer.Exit(130) from None
    if finished:
        console.print(f"{run} is finished already; --fresh runs it anew", soft_wrap=True)
    console.print(summary.render(result, peer))


def _fail(message: str, begun: bool) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    if begun:
        typer.echo(f"what was done is saved; go on with: {_same_command()}", err=True)
    raise typer.Exit(1)


def _same_command() -> str:
    """What was typed, without --fresh, which would start anew."""
    return shlex.join(["fedcl", *(word for word in sys.argv[1:] if word != "--fresh")])
