"""`fedcl report`, `fedcl evaluate` and `fedcl export`: what can be done with a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(help="Run directory, finished or interrupted.")]
Reported = Annotated[Path, typer.Argument(help="Directory of a run or a comparison.")]


def report(run: Reported) -> None:
    """Rebuild report.html from what a run, or a comparison, recorded, and print its path."""
    from fedcl import comparison
    from fedcl import report as pages
    from fedcl.cli import terminal
    from fedcl.contracts import FedclError

    with terminal.told(FileNotFoundError, ValueError, FedclError):
        if (run / comparison.GRID).exists():
            typer.echo(comparison.rebuild(comparison.Comparison.load(run)))
        else:
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
        rules.resolve(infer or "auto", "--infer")
        if dataset:
            datasets.find(dataset)
    with terminal.told(FedclError):
        scored = rescore.rescore(run, dataset, infer)
        terminal.console().print(summary.by_hospital(scored))


def export(
    run: Annotated[Path, typer.Argument(help="Run directory, finished.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file: .safetensors, .pt2 or .onnx.")
    ],
    form: Annotated[
        str,
        typer.Option("--format", metavar="NAME", help="safetensors, torch.export, onnx; default by the suffix."),
    ] = "",
    int8: Annotated[bool, typer.Option("--int8", help="Weights as 8-bit numbers, one scale an output.")] = False,
    licence: Annotated[
        str, typer.Option("--license", metavar="NAME", help="Of the model, for its card; default unknown.")
    ] = "",
    task: Annotated[
        str, typer.Option("--task", metavar="ID", help="Only this task's net, without what it does not use.")
    ] = "",
) -> None:
    """Write a finished run's merged model as one file, and a model card beside it."""
    from fedcl import export as exports
    from fedcl import units
    from fedcl.cli import terminal
    from fedcl.contracts import FedclError

    with terminal.told(FedclError, code=2):
        exports.form_of(output, form)
    with terminal.told(FedclError):
        done = exports.export(run, output, int8, form, licence, task)
    if done.distance is None:
        part = f" of {units.size(done.bytes_float)} as float32" if int8 else ""
        part = f", of {units.size(done.bytes_float)} for all tasks" if task else part
        typer.echo(f"{output}: {units.size(done.bytes)}{part}")
    else:
        size = units.size(output.stat().st_size)
        typer.echo(f"{output}: {size}; its logits are the run's to {done.distance:.1e} on random samples")
    for name, before, after in done.accuracies:
        now = f", {units.percent(after, 2)} % as exported" if int8 else ""
        typer.echo(f"accuracy, {name}: {units.percent(before, 2)} %{now}")
    if done.unscored:
        typer.echo(f"accuracy is not measured: {done.unscored}")
    typer.echo(f"model card: {done.card}")
