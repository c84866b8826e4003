"""The few SVG parts that the charts are made of. Colours are classes, so that one drawing serves light, dark and print.

Lengths are user units, one CSS pixel at natural size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup

PALETTE = 8  # categorical colours in report.css; series beyond them repeat them dashed


def el(tag: str, body: str = "", /, **attributes: object) -> str:
    """`<tag …>body</tag>`; `body` is markup, attribute values are escaped, `_` in their names is `-`."""
    parts = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(num(value) if isinstance(value, float) else str(value))}"'
        for name, value in attributes.items()
        if value not in (None, "")
    )
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


def picture(name: str, title: str, description: str, width: float, height: float, body: Sequence[str]) -> Markup:
    """A whole drawing, named for screen readers."""
    head = el("title", escape(title), id=f"{name}-title") + el("desc", escape(description), id=f"{name}-desc")
    return Markup(  # noqa: S704 - every text and attribute above was escaped by `el`
        el(
            "svg",
            head + "".join(body),
            id=name,
            role="img",
            aria_labelledby=f"{name}-title {name}-desc",
            viewBox=f"0 0 {num(width)} {num(height)}",
            width=float(width),
            height=float(height),
        )
    )


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


def percent(value: float, digits: int = 0) -> str:
    """0.873 → "87 %"."""
    return f"{100 * value:.{digits}f} %"


def accuracy_axis(values: Sequence[float], title: str) -> Axis:
    """From a round value at or below the lowest accuracy (never above 50 %) to 100 %."""
    finite = [value for value in values if math.isfinite(value)]
    low = min(0.5, math.floor(min(finite, default=0.0) * 10) / 10)
    return Axis(title, max(low, 0.0), 1.0, percent)


def frame(x: Axis, y: Axis, box: tuple[float, float, float, float]) -> list[str]:
    """Grid lines, ticks and titles around the plot area (left, top, right, bottom)."""
    left, top, right, bottom = box
    across, up = x.scale(left, right), y.scale(bottom, top)
    parts = [line(left, up(v), right, up(v), "grid") for v in y.ticks()]
    parts += [text(left - 8, up(v) + 4, y.write(v), "tick", "end") for v in y.ticks()]
    parts += [text(across(v), bottom + 17, x.write(v), "tick", "middle") for v in x.ticks(8)]
    parts.append(line(left, bottom, right, bottom, "axis"))
    parts.append(text((left + right) / 2, bottom + 36, x.title, "axis-title", "middle"))
    parts.append(text(left - 46, top - 14, y.title, "axis-title"))
    return parts


def colour(index: int) -> str:
    """The classes of the n-th category: a colour, and a dash from the second time round."""
    return f"c{index % PALETTE}" + (f" d{min(index // PALETTE, 2)}" if index >= PALETTE else "")


def thin(points: Sequence[tuple[float, float]], most: int = 160) -> list[tuple[float, float]]:
    """At most `most` of the points, evenly picked, with the first and the last."""
    if len(points) <= most:
        return list(points)
    return [points[i] for i in np.linspace(0, len(points) - 1, most).round().astype(int)]
