"""Charts in rows: heat maps, stacked bars, ranges and the schedule. Pure: numbers in, SVG out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from fedcl.metrics import Bools, Floats
from fedcl.report.svg import Axis, colour, el, hint, line, num, picture, short, text

ROW = 20.0


class Look(NamedTuple):
    """How a heat map writes its values."""

    rows: Sequence[str]
    columns: Sequence[str]
    row_title: str
    column_title: str
    write: Callable[[float], str]  # in the cell
    say: Callable[[int, int], str]  # on the cell
    high: float = 1.0  # full colour; no colour is 0
    void: str = "not defined"


def _gutter(labels: Sequence[str], least: float = 40.0) -> float:
    return max(least, 6.6 * max((len(short(label)) for label in labels), default=0) + 14)


def heat(name: str, title: str, description: str, values: Floats, look: Look, outline: Bools | None = None) -> Markup:
    """[rows, columns] as shades; undefined cells are dashed, cells of `outline` have a border."""
    rows, columns = values.shape
    cell = float(np.clip(640 / max(columns, 1), 27, 66))
    height = 27.0 if rows > 12 else 32.0
    longest = max((len(short(label, 14)) for label in look.columns), default=0)
    steep = longest * 6.6 > cell - 4
    left, top = _gutter(look.rows), 34 + (longest * 5.0 if steep else 8)
    parts = [text(left, 12, look.column_title + " →", "axis-title"), text(0, top - 6, look.row_title + " ↓", "axis-title")]
    for t, label in enumerate(look.columns):
        x = left + (t + 0.5) * cell
        turn = {"transform": f"rotate(-45 {num(x)} {num(top - 8)})"} if steep else {}
        parts.append(text(x, top - 8, short(label, 14), "tick", "start" if steep else "middle", **turn))
    for s in range(rows):
        y = top + s * height
        parts.append(text(left - 8, y + height / 2 + 4, short(look.rows[s]), "tick", "end"))
        for t in range(columns):
            marked = outline is not None and bool(outline[s, t])
            parts.append(_cell((left + t * cell, y, cell, height), float(values[s, t]), look, look.say(s, t), marked))
    bottom = top + rows * height
    width = left + max(columns * cell, 260) + (longest * 5.0 if steep else 4)
    return picture(name, title, description, width, bottom + 34, [*parts, *_shades(left, bottom + 14, look)])


def _cell(box: tuple[float, float, float, float], value: float, look: Look, about: str, marked: bool) -> str:
    x, y, width, height = box
    known = math.isfinite(value)
    share = min(max(value / look.high, 0.0), 1.0) if known and look.high else 0.0
    shade = f"{0.03 + 0.9 * share:.2f}" if known else None
    class_ = "cell" + ("" if known else " void") + (" marked" if marked else "")
    rect = el("rect", hint(about), x=x + 1, y=y + 1, width=width - 2, height=height - 2, class_=class_, fill_opacity=shade)
    class_ = "value" + (" over" if share > 0.58 else "") + (" small" if width < 40 else "")
    return rect + text(x + width / 2, y + height / 2 + 4, look.write(value) if known else "–", class_, "middle")


def _shades(x: float, y: float, look: Look) -> list[str]:
    """The key: five shades from 0 to full."""
    parts = [text(x, y + 10, look.write(0.0), "tick")]
    start = x + 7.0 * len(look.write(0.0)) + 6
    for i in range(5):
        parts.append(el("rect", x=start + 22 * i, y=y, width=20.0, height=12.0, class_="cell", fill_opacity=f"{0.03 + 0.225 * i:.2f}"))
    parts.append(text(start + 114, y + 10, look.write(look.high), "tick"))
    parts.append(el("rect", x=start + 160, y=y, width=20.0, height=12.0, class_="cell void"))
    parts.append(text(start + 186, y + 10, look.void, "tick"))
    return parts


def legend(keys: Sequence[str], width: float) -> tuple[list[str], float]:
    """Swatches with names in as many lines as needed, and the height that they take."""
    parts, x, y = [], 0.0, 4.0
    for k, key in enumerate(keys):
        need = 30 + 6.6 * len(short(key))
        if x and x + need > width:
            x, y = 0.0, y + 18
        parts.append(el("rect", x=x, y=y, width=11.0, height=11.0, rx=2.0, class_=f"fill {colour(k)}"))
        parts.append(text(x + 16, y + 10, short(key), "tick"))
        x += need
    return parts, y + 26


def stacked(
    name: str, title: str, description: str, values: Floats, rows: Sequence[str], keys: Sequence[str], x: Axis
) -> Markup:
    """Horizontal bars: values [rows, keys] side by side from 0, with a key above and the total behind."""
    width, left = 560.0, _gutter(rows)
    parts, top = legend(keys, width)
    across = x.scale(left, width - 70)
    bottom = top + ROW * len(rows)
    for v in x.ticks():
        parts.append(line(across(v), top - 2, across(v), bottom, "grid"))
        parts.append(text(across(v), bottom + 16, x.write(v), "tick", "middle"))
    for r, row in enumerate(rows):
        y, start = top + ROW * r, 0.0
        parts.append(text(left - 8, y + 14, short(row), "tick", "end"))
        for k, key in enumerate(keys):
            size = float(values[r, k])
            if size > 0:
                about = hint(f"{row}, {key}: {x.write(size)}")
                at = across(start)
                class_ = f"fill {colour(k)}"
                parts.append(el("rect", about, x=at, y=y + 2, width=across(start + size) - at, height=ROW - 4, class_=class_))
                start += size
        parts.append(text(across(start) + 6, y + 14, x.write(start), "tick"))
    parts.append(text((left + width - 70) / 2, bottom + 36, x.title, "axis-title", "middle"))
    return picture(name, title, description, width, bottom + 46, parts)


def ranges(
    name: str, title: str, description: str, rows: Sequence[str], marks: Sequence[tuple[str, Floats]], x: Axis
) -> Markup:
    """One line a row from mark to mark, e.g. best → final; marks are (name, [rows]), at most three, told by shape."""
    width, left = 560.0, _gutter(rows)
    across = x.scale(left, width - 62)
    parts: list[str] = []
    at = 0.0
    for k, (label, _) in enumerate(marks):
        parts += [_shape(k, at + 6, 10, ""), text(at + 16, 14, label, "tick")]
        at += 34 + 6.4 * len(label)
    top = 34.0
    bottom = top + ROW * len(rows)
    for v in x.ticks():
        parts.append(line(across(v), top - 4, across(v), bottom, "grid"))
        parts.append(text(across(v), bottom + 16, x.write(v), "tick", "middle"))
    parts.append(text((left + width - 62) / 2, bottom + 36, x.title, "axis-title", "middle"))
    for r, row in enumerate(rows):
        y = top + ROW * (r + 0.5)
        parts.append(text(left - 8, y + 4, short(row), "tick", "end"))
        known = [(k, label, float(v[r])) for k, (label, v) in enumerate(marks) if math.isfinite(v[r])]
        for (_, _, a), (k, _, b) in zip(known, known[1:], strict=False):
            parts.append(line(across(a), y, across(b), y, f"range r{k}"))
        parts += [_shape(k, across(v), y, f"{row}, {label}: {100 * v:.1f} %") for k, label, v in reversed(known)]
        if len(known) > 1:
            parts.append(text(width - 56, y + 4, f"{100 * (known[-1][2] - known[0][2]):+.1f}".replace("-", "−"), "tick"))
    parts.append(text(width - 56, top - 8, "points", "tick"))
    return picture(name, title, description, width, bottom + 46, parts)


def _shape(kind: int, x: float, y: float, about: str) -> str:
    body = hint(about) if about else ""
    if kind == 1:
        return el("path", body, d=f"M{num(x)} {num(y - 6)}v12", class_="shape s1")
    return el("circle", body, cx=x, cy=y, r=4.2, class_=f"shape s{kind}")


def timetable(
    name: str, title: str, description: str, rows: Sequence[str], cells: Sequence[Sequence[tuple[int, ...]]], tasks: Sequence[str]
) -> Markup:
    """cells[row][stage] are the indices of the tasks that a hospital trains in a stage."""
    stages = max((len(row) for row in cells), default=0)
    cell = float(np.clip(560 / max(stages, 1), 27, 66))
    left, top = _gutter(rows), 34.0
    parts = [text(left, 12, "stage →", "axis-title"), text(0, top - 6, "hospital ↓", "axis-title")]
    parts += [text(left + (s + 0.5) * cell, top - 8, str(s + 1), "tick", "middle") for s in range(stages)]
    for r, row in enumerate(rows):
        y = top + r * 24
        parts.append(text(left - 8, y + 16, short(row), "tick", "end"))
        for s, current in enumerate(cells[r]):
            x = left + s * cell
            names = ", ".join(tasks[t] for t in current)
            class_ = f"chip {colour(current[0]).split()[0]}" if current else "cell void"
            about = hint(f"{row}, stage {s + 1}: {names or 'no task'}")
            parts.append(el("rect", about, x=x + 1, y=y + 1, width=cell - 2, height=22.0, class_=class_))
            label = "+".join(str(t + 1) for t in current) if len(current) < 4 else f"{len(current)} tasks"
            parts.append(text(x + cell / 2, y + 16, label or "–", "value small", "middle"))
    return picture(name, title, description, left + max(stages * cell, 200) + 4, top + 24 * len(rows) + 6, parts)
