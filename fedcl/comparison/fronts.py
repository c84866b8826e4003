"""What privacy costs: figures of a comparison against ε, a curve for each mechanism or each method.

ε is what the runs spent, on a logarithmic axis; a federation without any mechanism is ε = ∞ at its right end. Only
curves of one unit and one neighbouring relation may be read beside each other; the table of terms says which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from fedcl.accounting.statement import up
from fedcl.comparison import figures, leakage, protection, stats
from fedcl.comparison.table import Comparison
from fedcl.report import Data, Figure
from fedcl.report.charts import Series
from fedcl.report.charts import curves as draw
from fedcl.report.layout import Switch, Value, variants
from fedcl.report.svg import Axis, Head, accuracy_axis, around, colour

SWITCH = "front"
SHOWN = ("forgetting", "average_accuracy", "worst_hospital_accuracy", leakage.FIGURE)
_BEYOND = 0.4  # of the logarithm: how far ∞ is from the largest ε


class Point(NamedTuple):
    """A row of a block: ε and one figure over seeds."""

    curve: str  # the row without its ε: the mechanism
    block: str
    epsilon: float  # mean over seeds, ∞ without a mechanism
    mean: float
    spread: float  # standard deviation, NaN with one seed
    seeds: int


@dataclass(frozen=True)
class EpsilonAxis(Axis):
    """Places log₁₀ ε, with ∞ at the right; ticks where points are."""

    known: tuple[float, ...] = ()  # finite ε

    def place(self, epsilon: float) -> float:
        """Where an ε lies."""
        return math.log10(epsilon) if math.isfinite(epsilon) else self.high

    def ticks(self, wish: int = 5) -> list[float]:
        """At each ε that there is, apart enough to be read, and at ∞."""
        found: list[float] = []
        for epsilon in self.known:
            at = math.log10(epsilon)
            if not found or at - found[-1] > (self.high - self.low) / 16:
                found.append(at)
        return [*found, self.high]


def switch(comparison: Comparison) -> list[Switch]:
    """The choice of what is a curve; empty where no ε was spent."""
    views = _views(points(comparison, SHOWN[1]))
    return [Switch(SWITCH, "Curves of", tuple(views))] if views else []


def fronts(comparison: Comparison) -> list[Figure]:
    """A figure for each of `SHOWN` that the runs have."""
    found = ((figures.find(name), points(comparison, name)) for name in SHOWN)
    about = protection.about(comparison)
    return [_front(figure, views, about) for figure, known in found if (views := _views(known))]


def points(comparison: Comparison, metric: str) -> list[Point]:
    """All rows with an ε or without a mechanism, by block and row; none where no row has an ε."""
    free = {run.labels for run in comparison.runs if run.state == "finished" and protection.open_ended(run)}
    found = []
    for block in comparison.blocks():
        values, spent = comparison.values(metric, block), comparison.values("epsilon", block)
        for row, own, cost in zip(comparison.rows(), values, spent, strict=True):
            epsilon = math.inf if (row, *block) in free else stats.mean(cost)
            known = int(np.isfinite(own).sum())
            if known and epsilon > 0:
                mean, spread = stats.mean(own), stats.deviation(own)
                found.append(Point(protection.curve(row), ", ".join(block), epsilon, mean, spread, known))
    return found if any(math.isfinite(point.epsilon) for point in found) else []


def _views(known: Sequence[Point]) -> dict[str, dict[str, list[Point]]]:
    """View → curve → points from small ε to ∞: for each block its mechanisms, for each mechanism the blocks."""
    blocks = list(dict.fromkeys(point.block for point in known))
    names = list(dict.fromkeys(point.curve for point in known if math.isfinite(point.epsilon)))
    views = {block or "all": {name: _line(known, name, block) for name in names} for block in blocks}
    if len(blocks) > 1:
        views |= {name: {block: _line(known, name, block) for block in blocks} for name in names}
    whole = {view: {name: line for name, line in lines.items() if line} for view, lines in views.items()}
    return {view: lines for view, lines in whole.items() if lines}


def _line(known: Iterable[Point], name: str, block: str) -> list[Point]:
    """A mechanism's points and those at ∞; none where the mechanism has none."""
    own = [p for p in known if p.block == block and (p.curve == name or p.epsilon == math.inf)]
    return sorted(own, key=lambda p: p.epsilon) if any(p.curve == name for p in own) else []


def _front(figure: figures.Figure, views: dict[str, dict[str, list[Point]]], about: str) -> Figure:
    """One figure against ε, a drawing for each view."""
    title = f"{figure.title} against ε"
    caption = (
        f"ε as spent in the whole run, logarithmic; ∞ is without noise. {about}; all terms stand with the results. "
        f"{'Lower' if figure.lower else 'Higher'} is better; mean over seeds, bands are one deviation."
    )
    every = [point for lines in views.values() for line in lines.values() for point in line]
    x = _across([point.epsilon for point in every])
    edges = [point.mean + sign * float(np.nan_to_num(point.spread)) for point in every for sign in (-1, 1)]
    y = around(edges, figure.head) if figure.lower else accuracy_axis(edges, figure.head)
    drawings: list[Markup] = []
    rows: list[list[Value]] = []
    for number, (view, lines) in enumerate(views.items()):
        series = [_series(name, line, colour(place), x, y) for place, (name, line) in enumerate(lines.items())]
        head = Head(f"front-{figure.name}-{number}", f"{title}: {view}", caption)
        drawings.append(draw(head, series, x, replace(y, write=figure.text)))
        rows += [
            [view, name, up(p.epsilon), p.mean, p.spread, float(p.seeds)] for name, line in lines.items() for p in line
        ]
    data = Data(("curves of", "curve", "ε", "mean", "sd", "seeds"), rows)
    id_ = f"front-{figure.name}"
    return Figure(id_, title, caption, variants(drawings), data, kind="variants", switch=SWITCH)


def _across(spent: Sequence[float]) -> EpsilonAxis:
    """The axis that has all of these."""
    finite = sorted({epsilon for epsilon in spent if math.isfinite(epsilon)})
    low, high = math.log10(finite[0]), math.log10(finite[-1])

    def write(at: float) -> str:
        return "∞" if at >= high + _BEYOND else f"{10**at:.2g}"

    return EpsilonAxis("ε (terms below)", low, high + _BEYOND, write, known=tuple(finite))


def _series(name: str, line: Sequence[Point], class_: str, x: EpsilonAxis, y: Axis) -> Series:
    """A curve with its band, inside the drawing."""
    at = [(x.place(p.epsilon), p.mean) for p in line]
    reach = [(x.place(p.epsilon), p.mean, float(np.nan_to_num(p.spread))) for p in line]
    band = (
        [(a, max(mean - spread, y.low)) for a, mean, spread in reach],
        [(a, min(mean + spread, y.high)) for a, mean, spread in reach],
    )
    return Series(name, at, class_, band=band)
