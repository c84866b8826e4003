"""`fedcl list`: what there is to choose from."""

from __future__ import annotations

from typing import Annotated

import typer

from fedcl import plugins


def show(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help=f"{', '.join(plugins.KINDS)}; default all.")
    ] = None,
) -> None:
    """What there is to choose from: methods, models, data sets and more."""
    import difflib

    if kind is not None and kind not in plugins.KINDS:
        near = difflib.get_close_matches(kind, plugins.KINDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        typer.echo(f"no kind {kind!r}; {hint}there are: {', '.join(plugins.KINDS)}", err=True)
        raise typer.Exit(2)
    for number, each in enumerate([kind] if kind else plugins.KINDS):
        lines = plugins.describe(each)
        if kind is None:
            typer.echo(f"{chr(10) if number else ''}{each}{'' if lines else ': none yet'}")
        width = max(map(len, lines), default=0)
        for name, line in lines.items():
            typer.echo(f"{'' if kind else '  '}{name:{width}}  {line}")
