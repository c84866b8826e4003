"""Charts over time: curves with their names at their ends, and bands. Pure: numbers in, SVG out.

report.js draws the same again when a reader switches; a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from fedcl.report.svg import Axis, Head, el, frame, hint, line, num, picture, short, text, thin

HEIGHT = 290.0
LEFT, TOP, BOTTOM = 54.0, 34.0, 46.0
Point = tuple[float, float]
Scale = Callable[[float], float]
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Series(NamedTuple):
    """One curve: `label` stands at its end; an empty one is drawn without name and dots."""

    label: str
    points: Sequence[Point]
    class_: str
    name: str = ""  # by which a switch finds it, where that is not its label
    band: tuple[Sequence[Point], Sequence[Point]] | None = None  # a lower and an upper curve


def curves(
    head: Head,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    marks: Sequence[tuple[float, str]] = (),
    width: float = 480.0,
) -> Markup:
    """Curves over `x`, with vertical marks (at, name)."""
    longest = max((len(short(s.label)) for s in series), default=0)
    box = (LEFT, TOP, width - 14 - 6.6 * longest - (14 if longest else 0), HEIGHT - BOTTOM)
    across, up = x.scale(box[0], box[2]), y.scale(box[3], box[1])
    parts = frame(x, y, box)
    for at, label in marks:
        parts.append(line(across(at), box[1], across(at), box[3], "mark"))
        parts.append(text(across(at) + 3, box[1] - 2, label, "tick"))
    for s in series:
        if s.band and s.band[0]:
            corners = " ".join(f"{num(across(a))},{num(up(b))}" for a, b in [*s.band[0], *reversed(s.band[1])])
            parts.append(el("polygon", points=corners, class_=f"band {s.class_}"))
    names = _names(series, across, up, box)
    for s, name in zip(series, names, strict=True):
        drawn = _curve(s, [(across(a), up(b)) for a, b in thin(s.points)], x, y) + name
        parts.append(el("g", drawn or " ", class_=f"series {s.class_}", data_name=s.name or s.label))
    if not any(math.isfinite(value) for s in series for _, value in s.points):
        parts.append(text((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, "nothing recorded", "tick void", "middle"))
    facts = {"data_plot": " ".join(map(num, box)), "data_x": f"{x.low:g} {x.high:g} {x.title}"}
    return picture(head, width, HEIGHT, parts, **facts)


def _curve(s: Series, at: Sequence[Point], x: Axis, y: Axis) -> str:
    """The line, broken where a value is undefined, and dots that say their value if they are few."""
    steps, pen = "", "M"
    for a, b in at:
        steps += f"{pen}{num(a)} {num(b)}" if math.isfinite(b) else ""
        pen = "L" if math.isfinite(b) else "M"
    parts = [el("path", d=steps, class_="line")] if "L" in steps else []
    if s.label and len(at) == len(s.points) <= 24:
        for (a, b), (value_x, value_y) in zip(at, s.points, strict=True):
            if math.isfinite(b):
                about = hint(f"{s.label}, {x.title} {x.write(value_x)}: {y.write(value_y)}")
                parts.append(el("circle", about, cx=a, cy=b, r=3.0, class_="dot"))
    return "".join(parts)


def _names(series: Sequence[Series], across: Scale, up: Scale, box: Box) -> list[str]:
    """The curves' names right of their last points, moved apart where they would overlap."""
    ends, parts = [], [""] * len(series)
    for index, s in enumerate(series):
        last = next(((a, b) for a, b in reversed(s.points) if math.isfinite(b)), None)
        if s.label and last and across(last[0]) < box[2] - 60:  # it ended early: named where it ended
            parts[index] = text(across(last[0]) + 6, up(last[1]) + 15, short(s.label), "name")
        elif s.label and last:
            ends.append((up(last[1]), across(last[0]), index))
    ends.sort(key=lambda end: end[0])
    gap = min(13.0, (box[3] - box[1] + 12) / max(len(ends), 1))
    heights = spread([end[0] for end in ends], gap, box[1] - 4, box[3] + 4)
    for (y, x, index), height in zip(ends, heights, strict=True):
        label = series[index].label
        name = el("g", hint(label) + text(box[2] + 16, height + 4, short(label), "name"))
        parts[index] = line(x + 4, y, box[2] + 12, height, "leader") + name
    return parts


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Sorted positions moved as little as needed to be `gap` apart inside low…high."""
    placed: list[float] = []
    for at in wanted:
        placed.append(max(at, placed[-1] + gap if placed else low))
    ceiling = high
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


class Spot(NamedTuple):
    """A point of a scatter plot, with half the length of its whiskers."""

    label: str
    x: float
    y: float
    class_: str = "c0"
    dx: float = 0.0
    dy: float = 0.0


def scatter(head: Head, spots: Sequence[Spot], x: Axis, y: Axis, named: bool = True) -> Markup:
    """Points with whiskers; their names beside them, or only on them where there are many."""
    box = (LEFT, TOP, 480.0 - 26, HEIGHT - BOTTOM)
    across, up = x.scale(box[0], box[2]), y.scale(box[3], box[1])
    parts = frame(x, y, box)
    known = [s for s in spots if math.isfinite(s.x) and math.isfinite(s.y)]
    places = [(across(s.x), up(s.y)) for s in known]
    names = _beside(places, [short(s.label) for s in known], box) if named else [""] * len(known)
    for s, (a, b), name in zip(known, places, names, strict=True):
        body = hint(f"{s.label}: {x.title} {x.write(s.x)}, {y.title} {y.write(s.y)}")
        if s.dx or s.dy:
            body += line(across(s.x - s.dx), b, across(s.x + s.dx), b, "whisker")
            body += line(a, up(s.y - s.dy), a, up(s.y + s.dy), "whisker")
        body += el("circle", cx=a, cy=b, r=4.2, class_="dot") + name
        parts.append(el("g", body, class_=f"series {s.class_}", data_name=s.label))
    if not known:
        parts.append(text((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, "not defined", "tick void", "middle"))
    return picture(head, 480.0, HEIGHT, parts)


def _beside(places: Sequence[Point], labels: Sequence[str], box: Box) -> list[str]:
    """Names right of their points, or left, below or above, where they cover the least of points and other names."""
    taken: list[Box] = [(a - 4, b - 4, a + 4, b + 4) for a, b in places]
    names = []
    for (a, b), label in zip(places, labels, strict=True):
        wide = 6.8 * len(label)
        ways = (
            (a + 8, b + 4, "start", a + 7, b - 7),
            (a - 8, b + 4, "end", a - 7 - wide, b - 7),
            (a, b + 17, "middle", a - wide / 2, b + 7),
            (a, b - 9, "middle", a - wide / 2, b - 20),
        )
        costs = []
        for _, _, _, left, top in ways:
            area = (left, top, left + wide, top + 13)
            outside = max(0.0, box[0] - left) + max(0.0, left + wide - box[2] - 14)
            costs.append(13 * outside + sum(_overlap(area, other) for other in taken))
        x, y, anchor, left, top = ways[costs.index(min(costs))]
        taken.append((left, top, left + wide, top + 13))
        names.append(text(x, y, label, "name", anchor))
    return names


def _overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
