"""Cells in rows and columns: heat maps and the timetable. Pure: numbers in, SVG out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from fedcl.metrics import Bools, Floats
from fedcl.report.svg import Head, box, fill, gutter, hint, num, picture, short, text

WIDTH = 480.0  # that a few columns share; many columns take more


class Look(NamedTuple):
    """How a heat map names and writes its values."""

    rows: Sequence[str]
    columns: Sequence[str]
    row_title: str
    column_title: str
    write: Callable[[float], str]  # in the cell
    say: Callable[[int, int], str]  # on the cell
    high: float = 1.0  # full colour; no colour is 0
    void: str = "not defined"
    digits: int = 0  # that `write` writes, for the script


def heat(head: Head, values: Floats, look: Look, outline: Bools | None = None) -> Markup:
    """[rows, columns] as shades; undefined cells are empty, cells of `outline` have a border."""
    rows, columns = values.shape
    left = gutter(look.rows, 7.2 * len(look.row_title) + 20)
    cell = _width(left, columns)
    height = 34.0 if rows <= 12 else 27.0 if rows <= 24 else 20.0
    titles, rise = _columns(look, left, cell)
    top = 34 + rise
    parts = [*titles, text(0, top - 8, look.row_title + " ↓", "axis-title")]
    for s in range(rows):
        y = top + s * height
        parts.append(text(left - 8, y + height / 2 + 4, short(look.rows[s]), "tick", "end"))
        for t in range(columns):
            marked = outline is not None and bool(outline[s, t])
            at = (left + t * cell, y, cell, height)
            parts.append(_cell(at, float(values[s, t]), look, look.say(s, t), marked))
    bottom = top + rows * height
    width = left + max(columns * cell, 320) + (30 if rise > 8 else 4)
    return picture(head, width, bottom + 34, [*parts, *_shades(left, bottom + 14, look)], data_digits=look.digits)


def _width(left: float, columns: int) -> float:
    return float(np.clip((WIDTH - left) / max(columns, 1), 27, 84))


def _columns(look: Look, left: float, cell: float) -> tuple[list[str], float]:
    """The column titles, turned where they are too long, and the height that turning takes."""
    longest = 6.6 * max((len(short(label, 14)) for label in look.columns), default=0)
    turned = longest > cell - 4
    rise = longest * 0.75 if turned else 8.0
    parts = [text(left, 12, look.column_title + " →", "axis-title")]
    for t, label in enumerate(look.columns):
        x, y = left + (t + 0.5) * cell, 26 + rise
        turn = {"transform": f"rotate(-45 {num(x)} {num(y)})"} if turned else {}
        parts.append(text(x, y, short(label, 14), "tick", "start" if turned else "middle", **turn))
    return parts, rise


def _cell(at: tuple[float, float, float, float], value: float, look: Look, about: str, marked: bool) -> str:
    x, y, width, height = at
    known = math.isfinite(value)
    share = min(max(value / look.high, 0.0), 1.0) if known and look.high else 0.0
    class_ = "cell" + ("" if known else " void") + (" marked" if marked else "")
    shade = {"fill_opacity": _shade(share)} if known else {}
    area = box(x + 1, y + 1, width - 2, height - 2, class_, hint(about), data_cell=1, **shade)
    class_ = "value" + (" over" if share > 0.58 else "") + (" small" if width < 40 else "")
    return area + text(x + width / 2, y + height / 2 + 4, look.write(value) if known else "–", class_, "middle")


def _shade(share: float) -> str:
    """Opacity of the accent colour; report.js says the same."""
    return f"{0.03 + 0.9 * share:.2f}"


def _shades(x: float, y: float, look: Look) -> list[str]:
    """The key: five shades from 0 to full, and an empty cell."""
    low, high = look.write(0.0), look.write(look.high)
    start = x + 7 * len(low) + 6
    parts = [text(x, y + 10, low, "tick"), text(start + 114, y + 10, high, "tick")]
    parts += [box(start + 22 * i, y, 20, 12, "cell", fill_opacity=_shade(i / 4)) for i in range(5)]
    after = start + 130 + 7 * len(high)
    if look.void:
        parts += [box(after, y, 20, 12, "cell void"), text(after + 26, y + 10, look.void, "tick")]
    return parts


def timetable(
    head: Head, rows: Sequence[str], cells: Sequence[Sequence[tuple[int, ...]]], tasks: Sequence[str]
) -> Markup:
    """cells[row][stage] are the indices of the tasks that a hospital trains in a stage."""
    stages = max((len(row) for row in cells), default=0)
    left, top = gutter(rows, 78.0), 42.0
    cell = _width(left, stages)
    parts = [text(left, 12, "stage →", "axis-title"), text(0, top - 8, "hospital ↓", "axis-title")]
    parts += [text(left + (s + 0.5) * cell, top - 8, str(s + 1), "tick", "middle") for s in range(stages)]
    for r, row in enumerate(rows):
        y = top + r * 24
        parts.append(text(left - 8, y + 16, short(row), "tick", "end"))
        for s, current in enumerate(cells[r]):
            x = left + s * cell
            names = ", ".join(tasks[t] for t in current) or "no task"
            class_ = f"chip {fill(current[0])}" if current else "cell void"
            parts.append(box(x + 1, y + 1, cell - 2, 22, class_, hint(f"{row}, stage {s + 1}: {names}")))
            label = "+".join(str(t + 1) for t in current) if len(current) < 4 else f"{len(current)} tasks"
            parts.append(text(x + cell / 2, y + 16, label or "–", "value small", "middle"))
    return picture(head, left + max(stages * cell, 200) + 4, top + 24 * len(rows) + 6, parts)
