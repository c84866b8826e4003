"""SVG parts that the charts are made of. Colours are classes: one drawing serves light, dark and print.

Lengths are user units, one CSS pixel at natural size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

LINES, FILLS = 8, 10  # categorical colours in report.css; beyond them lines repeat dashed, fills paler


def el(tag: str, body: str = "", /, **attributes: object) -> str:
    """`<tag …>body</tag>`; `body` is markup, attribute values are escaped, `_` in their names is `-`."""
    values = {name: num(v) if isinstance(v, float) else str(v) for name, v in attributes.items()}
    parts = "".join(f' {n.rstrip("_").replace("_", "-")}="{escape(v)}"' for n, v in values.items() if v)
    return f"<{tag}{parts}>{body}</{tag}>" if body else f"<{tag}{parts}/>"


def num(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, content: str, class_: str = "", anchor: str = "", **attributes: object) -> str:
    """A line of text, escaped."""
    return el("text", escape(content), x=x, y=y, class_=class_, text_anchor=anchor, **attributes)


def hint(content: str) -> str:
    """What a pointer or a screen reader finds on a mark."""
    return el("title", escape(content))


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """A straight line."""
    return el("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def short(label: str, length: int = 18) -> str:
    """The label, cut to `length` characters."""
    return label if len(label) <= length else label[: length - 1].rstrip() + "…"


def box(x: float, y: float, width: float, height: float, class_: str, body: str = "", **more: object) -> str:
    """A rectangle."""
    return el("rect", body, x=x, y=y, width=width, height=height, class_=class_, **more)


class Head(NamedTuple):
    """How a drawing is named: an id, unique on the page, and what screen readers say."""

    id: str
    title: str
    description: str


def picture(head: Head, width: float, height: float, body: Sequence[str], **more: object) -> Markup:
    """A whole drawing. Where there is less than 0.72 of its width it scrolls, so that type stays readable."""
    named = el("title", escape(head.title), id=f"{head.id}-title")
    named += el("desc", escape(head.description), id=f"{head.id}-desc")
    drawing = el(
        "svg",
        named + "".join(body),
        id=head.id,
        role="img",
        aria_labelledby=f"{head.id}-title {head.id}-desc",
        viewBox=f"0 0 {num(width)} {num(height)}",
        style=f"min-width:{num(0.72 * width)}px;max-width:{num(1.12 * width)}px",
        **more,
    )
    return Markup(drawing)  # every text and attribute in it was escaped by `el`, `text` or `hint`


@dataclass(frozen=True)
class Axis:
    """What a scale measures: its title with the unit, its range, and how a value is written."""

    title: str
    low: float
    high: float
    write: Callable[[float], str]
    whole: bool = False  # ticks at whole numbers only

    def scale(self, start: float, stop: float) -> Callable[[float], float]:
        """Value → pixel."""
        span = (self.high - self.low) or 1.0
        return lambda value: start + (value - self.low) / span * (stop - start)

    def ticks(self, wish: int = 5) -> list[float]:
        """About `wish` round values inside the range."""
        span = self.high - self.low
        if span <= 0 or not math.isfinite(span):
            return [self.low]
        rough = span / wish
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough * 0.999)
        if self.whole:
            step = max(1.0, float(round(step)))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def gutter(labels: Sequence[str], least: float = 40.0) -> float:
    """Room for row labels left of a chart."""
    return max(least, 6.6 * max((len(short(label)) for label in labels), default=0) + 14)


def percent(value: float, digits: int = 0) -> str:
    """0.873 → "87 %"."""
    return f"{100 * value:.{digits}f} %"


def points(difference: float) -> str:
    """−0.128 → "−12.8", with a proper minus and no signed zero."""
    words = f"{100 * difference:+.1f}"
    return "0.0" if words[1:] == "0.0" else words.replace("-", "−")


def accuracy_axis(values: Sequence[float], title: str) -> Axis:
    """From a round value at or below the lowest accuracy (at most 90 %) to 100 %."""
    finite = [value for value in values if math.isfinite(value)]
    low = min(0.9, math.floor(round(min(finite, default=0.0), 4) * 20 + 1e-9) / 20)
    return Axis(title, max(low, 0.0), 1.0, percent)


def around(values: Sequence[float], title: str, write: Callable[[float], str] = percent, step: float = 0.05) -> Axis:
    """From a multiple of `step` at or below the lowest value to one at or above the highest."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low = step * math.floor(min(finite) / step + 1e-9)
    return Axis(title, low, max(step * math.ceil(max(finite) / step - 1e-9), low + step), write)


def from_zero(values: Iterable[float], title: str, write: Callable[[float], str]) -> Axis:
    """From 0 to the first tick that no value exceeds."""
    top = max((value for value in values if math.isfinite(value)), default=0.0) or 1.0
    ticks = Axis(title, 0.0, top, write).ticks()
    step = ticks[1] - ticks[0] if len(ticks) > 1 else top
    return Axis(title, 0.0, step * math.ceil(top / step - 1e-9), write)


def frame(x: Axis, y: Axis, box: tuple[float, float, float, float]) -> list[str]:
    """Grid lines, ticks and titles around the plot area (left, top, right, bottom)."""
    left, top, right, bottom = box
    across, up = x.scale(left, right), y.scale(bottom, top)
    grid = [
        line(left, up(v), right, up(v), "grid") + text(left - 8, up(v) + 4, y.write(v), "tick", "end")
        for v in y.ticks()
    ]
    parts = [el("g", "".join(grid), class_="scale")]
    parts += [text(across(v), bottom + 17, x.write(v), "tick", "middle") for v in x.ticks(8)]
    parts.append(line(left, bottom, right, bottom, "axis"))
    parts.append(text((left + right) / 2, bottom + 36, x.title, "axis-title", "middle"))
    parts.append(text(left - 46, top - 14, y.title, "axis-title"))
    return parts


def colour(index: int) -> str:
    """The classes of the n-th line: a colour, and a dash from the second time round."""
    return f"c{index % LINES}" + (f" d{min(index // LINES, 2)}" if index >= LINES else "")


def fill(index: int) -> str:
    """The classes of the n-th area: a colour, paler from the second time round."""
    return f"fill c{index % FILLS}" + (" d1" if index >= FILLS else "")


def thin(points: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """At most `most` of the points, evenly picked, with the first and the last."""
    if len(points) <= most:
        return list(points)
    return [points[i] for i in np.linspace(0, len(points) - 1, most).round().astype(int)]
