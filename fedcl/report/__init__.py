"""A run as one self-contained page, and what other pages are made of.

figures, sites, rounds, plan draw a run; svg, charts, bars, heat draw anything; layout makes a page of figures and
tables. Another page is made in the same way:

    from fedcl.report import Data, Figure, Section, Table, Top, document

    figure = Figure("mean", "Average accuracy", "What to know.", svg, Data(("method", "mean"), [["ewc", 0.98]]))
    html = document(Top("digits"), [], [Section("accuracy", "Accuracy", figures=[figure], tables=[table])])
"""

from __future__ import annotations

from pathlib import Path

from fedcl.report import layout, page
from fedcl.report.layout import Cell, Data, Figure, Section, Switch, Table, Tile, Top, document
from fedcl.report.tables import count, share
from fedcl.results import Result

__all__ = [
    "REPORT",
    "Cell",
    "Data",
    "Figure",
    "Section",
    "Switch",
    "Table",
    "Tile",
    "Top",
    "count",
    "document",
    "render",
    "share",
    "write",
]
REPORT = "report.html"


def write(run: Path) -> Path:
    """Write `report.html` into a run directory, finished or not, and return its path.

    The page needs nothing else: no network, no fonts, no other file.

    Raises:
        FileNotFoundError: it is not a run directory.
        ValueError: its metrics.jsonl is damaged before the last line.
    """
    return layout.write(run / REPORT, render(Result.load(run)))


def render(result: Result) -> str:
    """The page of a run as HTML text."""
    return page.render(result)
