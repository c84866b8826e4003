"""`fedcl report` and `fedcl evaluate`: what can be done with a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(help="Run directory, finished or interrupted.")]


def report(run: Run) -> None:
    """Rebuild report.html from a run's records, and print its path."""
    from fedcl import report as pages
    from fedcl.cli import terminal

    with terminal.told(FileNotFoundError, ValueError):
        typer.echo(pages.write(run))


def evaluate(
    run: Run,
    dataset: Annotated[
        str,
        typer.Option(metavar="NAME", help="Another data set of the same shape and classes; default the run's."),
    ] = "",
    infer: Annotated[str, typer.Option(metavar="RULE", help="How the task is inferred; default as in the run.")] = "",
) -> None:
    """Test a run's model, or its newest checkpoint, hospital by hospital."""
    from fedcl import datasets, rescore, summary
    from fedcl import infer as rules
    from fedcl.cli import terminal
    from fedcl.contracts import FedclError

    with terminal.told(FedclError, code=2):
        rules.resolve(infer or "auto")
        if dataset:
            datasets.find(dataset)
    with terminal.told(FedclError):
        scored = rescore.rescore(run, dataset, infer)
        terminal.console().print(summary.by_hospital(scored))
