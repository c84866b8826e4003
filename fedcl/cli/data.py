"""`fedcl data`: which data sets are here, and fetching them."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Which data sets are here; fetch one.", no_args_is_help=True)
Root = Annotated[str, typer.Option(metavar="DIR", help="Data root; default $FEDCL_DATA, else ~/.cache/fedcl.")]


@app.command("list")
def show(root: Root = "") -> None:
    """Which data sets are found, and what fetches the others."""
    from fedcl import datasets, plugins

    typer.echo(f"data root: {datasets.home(root)}")
    names = plugins.names("datasets")
    width = max(map(len, names))
    for name in names:
        status = datasets.find(name, root)
        words = f"found    {status.where}" if status.found else f"missing  {status.remedy}"
        typer.echo(f"{name:{width}}  {words}")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="See `fedcl list datasets`; medmnist:bloodmnist names a variant.")],
    root: Root = "",
) -> None:
    """Download a data set. No other command uses the network."""
    from fedcl import datasets
    from fedcl.cli import terminal
    from fedcl.contracts import FedclError

    with terminal.told(FedclError, code=2):
        datasets.find(name, root)
    with terminal.told(FedclError):
        typer.echo(datasets.fetch(name, root))
