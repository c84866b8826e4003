"""The command line. Heavy imports are inside the commands, so that help comes at once."""

from __future__ import annotations

import typer

from fedcl.cli import compare, data, deploy, doctor, plugins, runs, simulate, watch

app = typer.Typer(
    name="fedcl",
    help="Federated continual learning: hospitals learn task after task without pooling their data.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong flags or config, 130 interrupted and saved.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(simulate.simulate)
app.command()(compare.compare)
app.command()(watch.watch)
app.command()(runs.report)
app.command()(runs.evaluate)
app.command()(runs.export)
app.command("list")(plugins.show)
app.add_typer(data.app, name="data")
app.add_typer(deploy.app, name="deploy")
app.command()(doctor.doctor)


def main() -> None:
    """Entry point of `fedcl`."""
    app()
