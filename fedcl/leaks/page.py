"""What attacks found, as one self-contained page."""

from __future__ import annotations

import math
from pathlib import Path

from fedcl.leaks import curve, pictures, results
from fedcl.leaks.plan import FOLDER
from fedcl.leaks.results import Found
from fedcl.report import Cell, Data, Figure, Section, Table, Top, document, layout
from fedcl.report.charts import Series, curves
from fedcl.report.layout import Value
from fedcl.report.svg import Axis, Head, colour

REPORT = "report.html"
_MEMBERSHIP = (
    "Each model is the run again with half of the candidate records, drawn by a coin each; one after the other is "
    "attacked with the others as its shadows. AUC ½ is guessing; what is found at few false positives counts most."
)
_RECONSTRUCTION = (
    "What the server sees of one step on so many records, under the run's own mechanisms. A PSNR says something only "
    "beside that of the mean image, which needs no attack; 20 dB is a blurred likeness, 40 dB a copy."
)
_AUDIT = (
    "A hospital answers one step again and again, each time with a canary by a coin. ε̂ is a lower bound of ε, with "
    "confidence; what the ledger is told of one such answer must not be below it."
)
_FOOT = (
    "A figure says what this attack found with this budget. That an attack finds nothing is no guarantee: that is the "
    "ledger's part."
)


def write(run: Path) -> Path:
    """Write the page into the folder of the attacks, and return its path."""
    return layout.write(run / FOLDER / REPORT, render(run))


def render(run: Path) -> str:
    """The page as HTML text."""
    found = results.read(run)
    sections = []
    if "membership" in found:
        sections.append(_section("membership", "Who was in", _MEMBERSHIP, found, _curves(run, found["membership"])))
    if "reconstruction" in found:
        drawn = _pictures(found["reconstruction"])
        sections.append(_section("reconstruction", "What an update shows", _RECONSTRUCTION, found, drawn))
    if "audit" in found:
        sections.append(_section("audit", "Whether ε holds", _AUDIT, found, []))
    return document(Top(f"Attacks on {run.name}", state="finished", facts=[str(run)]), [], sections, foot=_FOOT)


def _section(what: str, title: str, lead: str, found: Found, figures: list[Figure]) -> Section:
    tables = [
        Table(caption, head, [[Cell(cell, _key(cell)) for cell in row] for row in rows])
        for caption, head, rows in results.tables({what: found[what]})
    ]
    return Section(what, title, lead=lead, figures=figures, tables=tables)


def _key(cell: str) -> float | str:
    """Cells that begin with a number are sorted by it."""
    first = cell.split(" ", 1)[0]
    try:
        return float(first)
    except ValueError:
        return math.inf if first == "∞" else cell


def _curves(run: Path, told: Found) -> list[Figure]:
    """LiRA's AUC of each task over the stages, and the ROC curves at the end."""
    tasks = list(told["candidates"])
    rows: list[list[Value]] = []
    series = []
    for place, task in enumerate(tasks):
        own = [row for row in told["rows"] if (row["task"], row["observer"], row["score"]) == (task, *_SHOWN)]
        points = [(row["stage"] + 1.0, row["auc"][0]) for row in own]
        low, high = ([(row["stage"] + 1.0, row["auc"][side]) for row in own] for side in (1, 2))
        series.append(Series(task, points, colour(place), band=(low, high)))
        rows += [[task, row["stage"] + 1, *row["auc"]] for row in own]
    last = max(row["stage"] for row in told["rows"]) + 1
    title = "Membership of each task's records over the stages"
    caption = (
        "AUC of LiRA on the model after each stage; bands are 95 % intervals. An old checkpoint keeps what it had."
    )
    least = min([0.45, *(float(row[3]) for row in rows)])
    stages = Axis("after stage", 1.0, max(last, 2.0), lambda v: f"{v:.0f}", whole=True)
    up = Axis("AUC", math.floor(20 * least) / 20, max([0.6, *(float(row[4]) for row in rows)]), lambda v: f"{v:.2f}")
    svg = curves(Head("auc", title, caption), series, stages, up)
    figures = [Figure("auc", title, caption, svg, Data(("task", "after stage", "AUC", "low", "high"), rows))]
    points_of = results.read_curves(run)
    for task in tasks:
        own_points = [p for p in points_of if p["task"] == task and int(p["stage"]) == last - 1]
        if own_points:
            figures.append(_roc(task, own_points))
    return figures


_SHOWN = ("the model", "LiRA")


def _roc(task: str, points: list[dict[str, str]]) -> Figure:
    """All scores of one task at the end."""
    names = list(dict.fromkeys(point["score"] for point in points))
    found = [(name, [(float(p["fpr"]), float(p["tpr"])) for p in points if p["score"] == name]) for name in names]
    title = f"ROC of {task} at the end"
    caption = "Both axes are logarithmic; the diagonal is guessing. Points left of a few false positives are chance."
    svg = curve.roc(Head(f"roc-{task}", title, caption), found)
    rows: list[list[Value]] = [[name, fpr, tpr] for name, several in found for fpr, tpr in several]
    return Figure(f"roc-{task}", title, caption, svg, Data(("score", "fpr", "tpr"), rows))


def _pictures(told: Found) -> list[Figure]:
    figures = []
    for shown in told["pictures"]:
        size, images = shown["batch"], shown["rows"]
        title = f"Reconstructions, batch of {size}"
        caption = "The first row is what was trained on; where an attack needs the truth, the table says for what."
        svg = pictures.grid(Head(f"pictures-{size}", title, caption), images)
        rows: list[list[Value]] = [
            [name, place, *(float(value) for line in image for value in line)]
            for name, several in images.items()
            for place, image in enumerate(several)
        ]
        width = len(rows[0]) - 2
        data = Data(("attack", "image", *(f"p{k}" for k in range(width))), rows)
        figures.append(Figure(f"pictures-{size}", title, caption, svg, data, wide=True))
    return figures
