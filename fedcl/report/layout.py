"""What a page is made of, and the page from it: sections of figures and tables in, one self-contained HTML text out.

A figure carries its numbers: they are its CSV to download, its table to read, and what a switch redraws it from.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

Value = str | float
Kind = Literal["", "heat", "curves", "ranges", "variants"]


class Cell(NamedTuple):
    """A table cell: what is read, and what is sorted by."""

    text: str
    key: float | str


class Data(NamedTuple):
    """A figure's numbers, as its CSV has them: NaN is an empty field.

    A figure that can be switched has one block of rows for each view, in the order of the switch, and the view's name
    in the first column; then comes the name of a row, then what is drawn.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]

    @property
    def uri(self) -> str:
        """The CSV as an address that holds it: nothing is fetched."""
        return "data:text/csv;charset=utf-8," + quote(self.csv, safe="!*'(),/:;@$~")

    @property
    def csv(self) -> str:
        """RFC 4180, but for line ends of one character."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_field(value) for value in row] for row in self.rows)
        return text.getvalue()


class Figure(NamedTuple):
    """A drawing with its heading, what to know when reading it, and its numbers.

    `switch` names the switch that redraws it, and `kind` is how; a figure without a switch needs neither. Curves and
    rows may also be `marks` of a switch: what has the name of its chosen view is drawn strong.
    """

    id: str
    title: str
    caption: str
    svg: Markup
    data: Data
    wide: bool = False
    kind: Kind = ""
    switch: str = ""
    marks: str = ""


class Table(NamedTuple):
    """A table that its reader can sort: `rows` as wide as `columns`, the first cell names the row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


class Switch(NamedTuple):
    """A choice of the reader: the same in all sections that have a figure with it."""

    name: str
    label: str  # before the choice: "Test samples of"
    views: Sequence[str]  # the first is the one that was drawn


class Tile(NamedTuple):
    """A headline number."""

    title: str
    value: str
    unit: str = ""
    notes: Sequence[str] = ()  # on what terms


class Section(NamedTuple):
    """A part of a page. `lead` and `text` are plain text, or markup that its maker answers for."""

    id: str
    title: str
    lead: str | Markup = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    text: str | Markup = ""  # after the tables
    short: str = ""  # in the page's index, where the title is too long


class Top(NamedTuple):
    """A page's head."""

    title: str
    kicker: str = "Federated continual learning"
    state: str = ""  # finished, interrupted, failed, running
    facts: Sequence[str] = ()
    warning: str = ""


def variants(drawings: Sequence[Markup]) -> Markup:
    """Drawings of which a switch shows one, in the order of its views: for a figure of that kind."""
    parts = (
        Markup('<div class="variant"{}>{}</div>').format(Markup(" hidden") if k else "", drawing)
        for k, drawing in enumerate(drawings)
    )
    return Markup("").join(parts)


def document(
    top: Top,
    tiles: Sequence[Sequence[Tile]],
    sections: Sequence[Section],
    switches: Sequence[Switch] = (),
    foot: str | Markup = "",
) -> str:
    """A page as HTML text; it needs nothing else: no network, no fonts, no other file."""
    return fragment(
        "page.html",
        top=top,
        tiles=tiles,
        sections=[section for section in sections if section.figures or section.tables or section.text],
        switches={switch.name: switch for switch in switches if len(switch.views) > 1},
        foot=foot,
    )


def fragment(template: str, /, **values: object) -> Markup:
    """A template of this folder, filled; every value that is not markup is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return Markup(environment.get_template(template).render(values))


def write(path: Path, html: str) -> Path:
    """Put a page in its place in one step: a reader never sees half of it."""
    draft = path.with_name(f"{path.name}.part")
    draft.write_text(html, encoding="utf-8")
    draft.replace(path)
    return path


def _field(value: Value) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.6g}" if math.isfinite(value) else ""
