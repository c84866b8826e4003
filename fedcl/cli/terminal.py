"""How commands print, and how they say what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

_WIDE = 160  # columns where nobody watches: tables are not squeezed in a file or a pipe


def console() -> Console:
    """Standard output: plain text unless it is a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, _WIDE))


@contextmanager
def told(*mendable: type[Exception], code: int = 1) -> Iterator[None]:
    """What the user can mend is one line and this exit code; everything else stays a traceback."""
    try:
        yield
    except mendable as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(code) from None
