"""The command line. Heavy imports are inside the commands, so that help comes at once."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from fedcl.cli import attack, compare, data, deploy, doctor, new, plugins, runs, simulate, tune, watch

app = typer.Typer(
    name="fedcl",
    help="Federated continual learning: hospitals learn task after task without pooling their data.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong flags or config, 130 interrupted and saved.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        import fedcl

        typer.echo(f"fedcl {fedcl.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command()(simulate.simulate)
app.command()(compare.compare)
app.command()(tune.tune)
app.command()(watch.watch)
app.command()(runs.report)
app.command()(runs.evaluate)
app.command()(runs.export)
app.command()(attack.attack)
app.command("list")(plugins.show)
app.add_typer(data.app, name="data")
app.add_typer(deploy.app, name="deploy")
app.command()(new.new)
app.command()(doctor.doctor)


def main() -> None:
    """Entry point of `fedcl`."""
    sys.path.append(os.getcwd())  # plug-ins of the current folder, found after all that is installed
    app()
