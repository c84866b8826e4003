"""`fedcl new`: a plug-in of one's own to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedcl import starters


def new(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help=", ".join(starters.KINDS), autocompletion=lambda: list(starters.KINDS))
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="For example my_method: the file's name.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where; default here.")] = Path(),
) -> None:
    """Write a plug-in of your own that works, with its test, to start from."""
    from fedcl.cli import terminal
    from fedcl.errors import FedclError

    with terminal.told(FedclError, code=2):
        starter = starters.plan(kind, name)
    with terminal.told(FedclError):
        file, test = starters.write(starter, output)
    typer.echo(f"{file}\n{test}\n")
    there = "" if output == Path() else f"cd {output} && "
    typer.echo(f"run it:   {there}fedcl simulate {starter.flags}")
    typer.echo(f"test it:  {there}python -m pytest {test.name}   # pip install pytest")
