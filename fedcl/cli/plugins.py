"""`fedcl list`: what there is to choose from."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from typing import Annotated

import typer

from fedcl import citations, plugins, toml


def show(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND]",
            help=f"{', '.join(plugins.KINDS)}; default all.",
            autocompletion=lambda: list(plugins.KINDS),
        ),
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of them, with its options.")] = None,
    bibtex: Annotated[bool, typer.Option("--bibtex", help="The papers that they come from, as BibTeX.")] = False,
) -> None:
    """What there is to choose from: methods, models, data sets and more, with their papers."""
    if kind is not None and kind not in plugins.KINDS:
        raise _unknown("kind", kind, plugins.KINDS)
    if bibtex:
        _bibtex([kind] if kind else plugins.KINDS, name)
        return
    if kind is not None and name is not None:
        _one(kind, name)
        return
    for number, each in enumerate([kind] if kind else plugins.KINDS):
        lines = plugins.describe(each)
        if kind is None:
            typer.echo(f"{chr(10) if number else ''}{each}{'' if lines else ': none yet'}")
        width = max(map(len, lines), default=0)
        for option, line in lines.items():
            papers = "; ".join(paper.short for paper in citations.of(each, option))
            typer.echo(f"{'' if kind else '  '}{option:{width}}  {line}{f' [{papers}]' if papers else ''}")


def _one(kind: str, name: str) -> None:
    """A plug-in's own words, and its options with their defaults."""
    try:
        plugin = plugins.load(kind, name)
    except plugins.UnknownPlugin as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    typer.echo(f"{inspect.getdoc(inspect.getmodule(plugin))}\n\n{inspect.getdoc(plugin)}\n")
    section = {"models": "model.options", "datasets": "data.options"}.get(
        kind, f"{plugins.section(kind)}.{toml.quoted(name)}"
    )
    options = plugins.options(plugin, skip=1 if kind in ("models", "datasets", "trackers") else 0)
    given = {o: p.default for o, p in options.items() if p.default is not p.empty and p.default is not None}
    typer.echo(f"Defaults:\n\n[{section}]\n{toml.dumps(given)}" if given else "No option has a default.")


def _bibtex(kinds: Sequence[str], name: str | None) -> None:
    """Each paper once."""
    if name is not None:
        try:
            plugins.check(kinds[0], name)
            chosen = [(kinds[0], name)]
        except plugins.UnknownPlugin as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from error
    else:
        chosen = [(kind, each) for kind in kinds for each in plugins.names(kind)]
    papers = {paper.key: paper for kind, each in chosen for paper in citations.of(kind, each)}
    typer.echo("\n\n".join(paper.bibtex for _, paper in sorted(papers.items())))


def _unknown(what: str, value: str, known: Sequence[str]) -> typer.Exit:
    near = difflib.get_close_matches(value, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    typer.echo(f"no {what} {value!r}; {hint}there are: {', '.join(known)}", err=True)
    return typer.Exit(2)
