"""One row a thing: stacked bars, and ranges from mark to mark. Pure: numbers in, SVG out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from markupsafe import Markup

from fedcl.metrics import Floats
from fedcl.report.svg import Axis, Head, box, el, fill, gutter, hint, line, num, picture, points, short, text

WIDTH, ROW, RIGHT = 480.0, 20.0, 70.0
Mark = tuple[str, Floats]  # a name, and a value for each row


def _rows(rows: Sequence[str], x: Axis, top: float) -> tuple[list[str], Callable[[float], float], float]:
    """Names, grid and axis of a chart in rows; its scale; and where it ends."""
    left, bottom = gutter(rows), top + ROW * len(rows)
    across = x.scale(left, WIDTH - RIGHT)
    parts = [text((left + WIDTH - RIGHT) / 2, bottom + 36, x.title, "axis-title", "middle")]
    for v in x.ticks():
        parts.append(line(across(v), top - 4, across(v), bottom, "grid"))
        parts.append(text(across(v), bottom + 16, x.write(v), "tick", "middle"))
    parts += [text(left - 8, top + ROW * r + 14, short(row), "tick", "end") for r, row in enumerate(rows)]
    return parts, across, bottom


def legend(keys: Sequence[str]) -> tuple[list[str], float]:
    """Swatches with names, in as many lines as needed, and the height that they take."""
    parts, x, y = [], 0.0, 4.0
    for k, key in enumerate(keys):
        need = 30 + 6.6 * len(short(key))
        if x and x + need > WIDTH:
            x, y = 0.0, y + 18
        parts += [box(x, y, 11, 11, fill(k), rx=2), text(x + 16, y + 10, short(key), "tick")]
        x += need
    return parts, y + 28


def stacked(head: Head, values: Floats, rows: Sequence[str], keys: Sequence[str], x: Axis) -> Markup:
    """Horizontal bars: values [rows, keys] side by side from 0, a key above, the total behind."""
    names, top = legend(keys)
    parts, across, bottom = _rows(rows, x, top)
    for r, row in enumerate(rows):
        y, start = top + ROW * r, 0.0
        for k, key in enumerate(keys):
            size = float(values[r, k])
            if size > 0:
                about, at = hint(f"{row}, {key}: {x.write(size)}"), across(start)
                parts.append(box(at, y + 2, across(start + size) - at, ROW - 4, "part " + fill(k), about))
                start += size
        parts.append(text(across(start) + 6, y + 14, x.write(start), "tick"))
    return picture(head, WIDTH, bottom + 46, [*names, *parts])


def ranges(head: Head, rows: Sequence[str], marks: Sequence[Mark], x: Axis) -> Markup:
    """One line a row from mark to mark, at most three, told by shape; behind it the whole difference."""
    top = 36.0
    parts, across, bottom = _rows(rows, x, top)
    at = 0.0
    for k, (label, _) in enumerate(marks):
        parts += [_shape(k, at + 6, 10, ""), text(at + 16, 14, label, "tick")]
        at += 34 + 6.4 * len(label)
    for r, row in enumerate(rows):
        y = top + ROW * (r + 0.5)
        known = [(k, label, float(v[r])) for k, (label, v) in enumerate(marks) if math.isfinite(v[r])]
        for (_, _, a), (k, _, b) in pairwise(known):
            parts.append(line(across(a), y, across(b), y, f"range r{k}"))
        for k, label, v in reversed(known):
            parts.append(_shape(k, across(v), y, f"{row}, {label}: {100 * v:.1f} %"))
        if len(known) > 1:
            parts.append(text(WIDTH, y + 4, points(known[-1][2] - known[0][2]), "tick", "end"))
    parts.append(text(WIDTH, top - 8, "points", "tick", "end"))
    return picture(head, WIDTH, bottom + 46, parts)


def _shape(kind: int, x: float, y: float, about: str) -> str:
    body = hint(about) if about else ""
    if kind == 1:
        return el("path", body, d=f"M{num(x)} {num(y - 6)}v12", class_="shape s1")
    return el("circle", body, cx=x, cy=y, r=4.2, class_=f"shape s{kind}")
