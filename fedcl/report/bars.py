"""One row a thing: bars side by side or with whiskers, and ranges from mark to mark. Pure: numbers in, SVG out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from markupsafe import Markup

from fedcl.metrics import Floats
from fedcl.report.svg import Axis, Head, box, el, fill, gutter, hint, line, num, picture, points, short, text

WIDTH, ROW, RIGHT = 480.0, 20.0, 70.0
Mark = tuple[str, Floats]  # a name, and a value for each row


def _rows(
    rows: Sequence[str], x: Axis, top: float, row: float = ROW
) -> tuple[list[str], Callable[[float], float], float]:
    """Names, grid and axis of a chart in rows; its scale; and where it ends."""
    left, bottom = gutter(rows), top + row * len(rows)
    across = x.scale(left, WIDTH - RIGHT)
    grid = []
    for v in x.ticks():
        grid.append(line(across(v), top - 4, across(v), bottom, "grid"))
        grid.append(text(across(v), bottom + 16, x.write(v), "tick", "middle"))
    parts = [text((left + WIDTH - RIGHT) / 2, bottom + 36, x.title, "axis-title", "middle")]
    parts.append(el("g", "".join(grid), class_="scale"))
    parts += [text(left - 8, top + row * (r + 0.5) + 4, short(name), "tick", "end") for r, name in enumerate(rows)]
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


def bars(
    head: Head, values: Floats, rows: Sequence[str], keys: Sequence[str], x: Axis, errors: Floats | None = None
) -> Markup:
    """Horizontal bars, one under the other in a row: values [rows, keys] from the axis's low end, NaN is no bar.

    Args:
        head: the drawing's names.
        values: what is drawn.
        rows: names of rows.
        keys: names of the bars of a row; one needs no key above.
        x: the axis.
        errors: [rows, keys] half the length of whiskers; NaN or 0 is none.
    """
    names, top = legend(keys) if len(keys) > 1 else ([], 14.0)
    thick = 12.0 if len(keys) > 1 else 14.0
    row = thick * len(keys) + 8
    parts, across, bottom = _rows(rows, x, top, row)
    for r, row_name in enumerate(rows):
        for k, key in enumerate(keys):
            value, error = float(values[r, k]), float(errors[r, k]) if errors is not None else 0.0
            if not math.isfinite(value):
                continue
            y, end = top + row * r + 4 + thick * k, across(value)
            spread = f" ± {x.write(error)}" if error > 0 else ""
            start = across(min(max(0.0, x.low), x.high))
            about = hint(", ".join(n for n in (row_name, key) if n) + f": {x.write(value)}{spread}")
            parts.append(box(min(start, end), y, abs(end - start), thick - 2, "part " + fill(k), about))
            if error > 0:
                low, high, middle = across(max(value - error, x.low)), across(value + error), y + thick / 2 - 1
                parts.append(line(low, middle, high, middle, "whisker"))
                parts += [line(at, middle - 3, at, middle + 3, "whisker") for at in (low, high)]
                end = max(end, high)
            parts.append(text(max(end, start) + 6, y + thick / 2 + 3, x.write(value), "tick"))
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
        body = ""
        for (_, _, a), (k, _, b) in pairwise(known):
            body += line(across(a), y, across(b), y, f"range r{k}")
        for k, label, v in reversed(known):
            body += _shape(k, across(v), y, f"{row}, {label}: {100 * v:.1f} %")
        if len(known) > 1:
            body += text(WIDTH, y + 4, points(known[-1][2] - known[0][2]), "tick", "end")
        parts.append(el("g", body or " ", class_="row series", data_name=row))
    parts.append(text(WIDTH, top - 8, "points", "tick", "end"))
    plot = f"{num(gutter(rows))} {num(top)} {num(WIDTH - RIGHT)} {num(bottom)}"
    return picture(head, WIDTH, bottom + 46, parts, data_plot=plot)


def _shape(kind: int, x: float, y: float, about: str) -> str:
    body = hint(about) if about else ""
    if kind == 1:
        return el("path", body, d=f"M{num(x)} {num(y - 6)}v12", class_="shape s1")
    return el("circle", body, cx=x, cy=y, r=4.2, class_=f"shape s{kind}")
