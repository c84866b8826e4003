"""Charts over time: curves with their names at their ends, and bands. Pure: numbers in, SVG out."""

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


class Series(NamedTuple):
    """One curve: `label` stands at its end; an empty one is drawn without name and dots."""

    label: str
    points: Sequence[Point]
    class_: str


def curves(
    head: Head,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    marks: Sequence[tuple[float, str]] = (),
    band: tuple[Sequence[Point], Sequence[Point]] | None = None,
    width: float = 480.0,
) -> Markup:
    """Curves over `x`, with vertical marks (at, name) and a band between a lower and an upper curve."""
    longest = max((len(short(s.label)) for s in series), default=0)
    box = (LEFT, TOP, width - 14 - 6.6 * longest - (14 if longest else 0), HEIGHT - BOTTOM)
    across, up = x.scale(box[0], box[2]), y.scale(box[3], box[1])
    parts = frame(x, y, box)
    for at, label in marks:
        parts.append(line(across(at), box[1], across(at), box[3], "mark"))
        parts.append(text(across(at) + 3, box[1] - 2, label, "tick"))
    if band and band[0]:
        corners = " ".join(f"{num(across(a))},{num(up(b))}" for a, b in [*band[0], *reversed(band[1])])
        parts.append(el("polygon", points=corners, class_="band"))
    parts += [_curve(s, [(across(a), up(b)) for a, b in thin(s.points)], x, y) for s in series]
    if not any(math.isfinite(value) for s in series for _, value in s.points):
        parts.append(text((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, "nothing recorded", "tick", "middle"))
    parts += _names(series, across, up, box)
    return picture(head, width, HEIGHT, parts)


def _curve(s: Series, at: Sequence[Point], x: Axis, y: Axis) -> str:
    """The line, broken where a value is undefined, and dots that say their value if they are few."""
    runs: list[list[str]] = [[]]
    for a, b in at:
        if math.isfinite(b):
            runs[-1].append(f"{num(a)},{num(b)}")
        elif runs[-1]:
            runs.append([])
    parts = [el("polyline", points=" ".join(run), class_=f"line {s.class_}") for run in runs if len(run) > 1]
    if s.label and len(at) == len(s.points) <= 24:
        for (a, b), (value_x, value_y) in zip(at, s.points, strict=True):
            if math.isfinite(b):
                about = hint(f"{s.label}, {x.title} {x.write(value_x)}: {y.write(value_y)}")
                parts.append(el("circle", about, cx=a, cy=b, r=3.0, class_=f"dot {s.class_}"))
    return "".join(parts)


def _names(series: Sequence[Series], across: Scale, up: Scale, box: tuple[float, ...]) -> list[str]:
    """The curves' names right of their last points, moved apart where they would overlap."""
    ends, parts = [], []
    for s in series:
        last = next(((a, b) for a, b in reversed(s.points) if math.isfinite(b)), None)
        if s.label and last and across(last[0]) < box[2] - 60:  # it ended early: named where it ended
            parts.append(text(across(last[0]) + 6, up(last[1]) + 15, short(s.label), f"name {s.class_}"))
        elif s.label and last:
            ends.append((up(last[1]), across(last[0]), s))
    ends.sort(key=lambda end: end[0])
    gap = min(13.0, (box[3] - box[1] + 12) / max(len(ends), 1))
    heights = spread([end[0] for end in ends], gap, box[1] - 4, box[3] + 4)
    for (y, x, s), height in zip(ends, heights, strict=True):
        parts.append(line(x + 4, y, box[2] + 12, height, f"leader {s.class_}"))
        label = text(box[2] + 16, height + 4, short(s.label), f"name {s.class_}")
        parts.append(el("g", hint(s.label) + label))
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
