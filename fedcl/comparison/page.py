"""A comparison as one self-contained page, made of what a run's report is made of."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from fedcl import metrics, units
from fedcl.comparison import figures, fronts, protection, stats
from fedcl.comparison import write as texts
from fedcl.comparison.stats import Floats
from fedcl.comparison.table import Comparison, Run
from fedcl.report import Cell, Data, Figure, Section, Table, Top, document, layout
from fedcl.report.bars import bars
from fedcl.report.charts import Series, Spot, curves, scatter
from fedcl.report.layout import Value
from fedcl.report.svg import Axis, Head, accuracy_axis, colour

REPORT = "report.html"


def write(comparison: Comparison) -> Path:
    """Write `report.html` into its folder, and return the path."""
    return layout.write(comparison.path / REPORT, render(comparison))


def render(comparison: Comparison) -> str:
    """The page as HTML text."""
    what = comparison.axes[0].key if comparison.axes else "seeds"
    runs, failed = comparison.runs, comparison.failed()
    done = sum(run.state == "finished" for run in runs)
    axes = [f"{axis.key}: {', '.join(axis.values)}" for axis in comparison.axes]
    facts = [*axes, f"seeds {', '.join(map(str, comparison.seeds))}", f"{done} of {len(runs)} runs finished"]
    warning = f"{len(failed)} runs failed; they count nowhere, and stand below with the reason." if failed else ""
    state = "finished" if done == len(runs) else "failed" if failed else "interrupted"
    sections = _privacy(comparison)
    sections += [section for block in comparison.blocks() for section in _block(comparison, block)]
    again = Markup("<pre>{}</pre>").format(comparison.command) if comparison.command else ""
    sections.append(Section("runs", "All runs", tables=[_runs(comparison)], text=again))
    top = Top(f"Comparison of {what}", state=state, facts=facts, warning=warning)
    return document(top, [], sections, fronts.switch(comparison))


def _privacy(comparison: Comparison) -> list[Section]:
    """What ε costs, what it is about, and what no mechanism covers; nothing where no run claims an ε."""
    found = fronts.fronts(comparison)
    if not found:
        return []
    head, rows = protection.covering(comparison)
    cells = [[Cell(word, word) for word in row] for row in rows]
    caption = "What left the hospitals, and what covered it under each mechanism; – did not leave"
    lead = (
        "Differential privacy bounds what any attack can find; a low score of one attack does not. A name's ε is what "
        "the noise was chosen for; what a run spent stands with its terms beside the results."
    )
    return [Section("privacy", "What privacy costs", lead, figures=found, tables=[Table(caption, head, cells)])]


def _terms(comparison: Comparison, block: tuple[str, ...]) -> list[Table]:
    """What the ε of each row is about."""
    rows = [[Cell(row, row), Cell(text, text)] for row, text in protection.stated(comparison, block)]
    first = comparison.axes[0].key if comparison.axes else ""
    return [Table("What ε is about: of the first seed of each row", (first, "terms"), rows)] if rows else []


def _block(comparison: Comparison, block: tuple[str, ...]) -> list[Section]:
    """Tables and figures of one block."""
    number = comparison.blocks().index(block)
    title, own = comparison.title(block), f"-{number}" if block else ""
    drawn = [_bars(comparison, block, figure, own) for figure in comparison.metrics]
    drawn = [_curves(comparison, block, own), _trade(comparison, block, own), *drawn]
    return [
        Section(
            f"results{own}",
            f"Results: {title}" if title else "Results",
            lead=texts.note(comparison),
            tables=[_means(comparison, block), *_terms(comparison, block), *_differences(comparison, block)],
            figures=[figure for figure in drawn if figure],
            short=title,
        )
    ]


def _means(comparison: Comparison, block: tuple[str, ...]) -> Table:
    """Sorted by the mean, marked where it holds."""
    head, rows = texts.grid(comparison, block, lambda text: f"\x00{text}")
    keys = [[stats.mean(row) for row in comparison.values(figure.name, block)] for figure in comparison.metrics]
    cells = [
        [Cell(row[0], row[0]), *(Cell(_strong(text), keys[place][number]) for place, text in enumerate(row[1:]))]
        for number, row in enumerate(rows)
    ]
    return Table("Means over seeds ± standard deviation", head, cells)


def _differences(comparison: Comparison, block: tuple[str, ...]) -> list[Table]:
    head, rows = texts.against(comparison, block)
    if not rows:
        return []
    tested = [figure for figure in comparison.metrics if figure.tested]
    keys = [[d.mean for d, _ in comparison.differences(figure, block)] for figure in tested]
    cells = [
        [Cell(row[0], row[0]), *(Cell(text, keys[place][number]) for place, text in enumerate(row[1:]))]
        for number, row in enumerate(rows)
    ]
    return [Table(f"Paired differences to {comparison.rows()[0]}: mean [95 % interval], adjusted p", head, cells)]


def _strong(text: str) -> str:
    return Markup("<strong>{}</strong>").format(text[1:]) if text[:1] == "\x00" else text


def _bars(comparison: Comparison, block: tuple[str, ...], figure: figures.Figure, own: str) -> Figure | None:
    """One figure's means, with a deviation as whisker."""
    values = comparison.values(figure.name, block)
    means, spreads = (np.array([f(row) for row in values]) for f in (stats.mean, stats.deviation))
    if not np.isfinite(means).any():
        return None
    reach = means + np.nan_to_num(spreads)
    low = float(min(np.nanmin(means - np.nan_to_num(spreads)), 0.0))
    axis = Axis(figure.title, low, float(np.nanmax(reach)) or 1.0, figure.text)
    if figure.kind == "share" and not figure.lower:
        axis = replace(accuracy_axis(list(means - np.nan_to_num(spreads)), figure.title), write=figure.text)
    title = f"{figure.title}, mean over seeds"
    caption = f"{_meaning(figure.name)} {'Less' if figure.lower else 'More'} is better; whiskers are one deviation."
    head = Head(f"bars-{figure.name}{own}", title, caption)
    svg = bars(head, means[:, None], comparison.rows(), [""], axis, np.nan_to_num(spreads)[:, None])
    columns = (
        comparison.axes[0].key if comparison.axes else "run",
        "mean",
        "sd",
        *(f"seed {s}" for s in comparison.seeds),
    )
    rows: list[list[Value]] = [
        [n, float(m), float(d), *map(float, v)]
        for n, m, d, v in zip(comparison.rows(), means, spreads, values, strict=True)
    ]
    return Figure(head.id, title, caption, svg, Data(columns, rows))


def _curves(comparison: Comparison, block: tuple[str, ...], own: str) -> Figure | None:
    """Average accuracy over the tasks met, after each stage."""
    found = {(run.labels, run.seed): run.curve for run in comparison.runs if run.curve}
    stages = max(map(len, found.values()), default=0)
    if stages < 2:
        return None
    series: list[Series] = []
    rows: list[list[Value]] = []
    lows: list[float] = []
    for number, name in enumerate(comparison.rows()):
        labels = (name, *block) if comparison.axes else ()
        seeds: Floats = np.full((len(comparison.seeds), stages), math.nan)
        for place, seed in enumerate(comparison.seeds):
            curve = found.get((labels, seed), ())
            seeds[place, : len(curve)] = curve
        means = [stats.mean(seeds[:, stage]) for stage in range(stages)]
        spreads = [np.nan_to_num(stats.deviation(seeds[:, stage])) for stage in range(stages)]
        points = [(stage + 1.0, mean) for stage, mean in enumerate(means) if math.isfinite(mean)]
        band = (
            [(x, y - float(spreads[int(x) - 1])) for x, y in points],
            [(x, min(y + float(spreads[int(x) - 1]), 1.0)) for x, y in points],
        )
        lows += [y for _, y in band[0]]
        series.append(Series(name, points, colour(number), band=band))
        rows += [
            [name, stage + 1, mean, float(spread)]
            for stage, (mean, spread) in enumerate(zip(means, spreads, strict=True))
        ]
    title = "Average accuracy over the tasks met"
    caption = "After each stage, the task known, mean over seeds; bands are one standard deviation."
    x = Axis("after stage", 1, stages, lambda v: f"{v:.0f}", whole=True)
    head = Head(f"curves{own}", title, caption)
    svg = curves(head, series, x, accuracy_axis(lows, "accuracy"))
    return Figure(head.id, title, caption, svg, Data(("row", "after stage", "mean", "sd"), rows))


def _trade(comparison: Comparison, block: tuple[str, ...], own: str) -> Figure | None:
    """What was learned against what was kept."""
    learned, kept = comparison.values("plasticity", block), comparison.values("stability", block)
    spots: list[Spot] = []
    rows: list[list[Value]] = []
    for number, name in enumerate(comparison.rows()):
        x, y = stats.mean(learned[number]), stats.mean(kept[number])
        dx, dy = (float(np.nan_to_num(stats.deviation(v[number]))) for v in (learned, kept))
        spots.append(Spot(name, x, y, colour(number), dx, dy))
        rows.append([name, x, dx, y, dy])
    if not any(math.isfinite(spot.x) and math.isfinite(spot.y) for spot in spots):
        return None
    title = "Plasticity against stability"
    caption = "Accuracy as just learned, and 1 − forgetting; whiskers are one deviation. Top right is best."
    across = accuracy_axis([s.x - s.dx for s in spots], "plasticity")
    up = accuracy_axis([s.y - s.dy for s in spots], "stability")
    up = replace(up, high=max([1.0, *(s.y + s.dy for s in spots if math.isfinite(s.y))]))
    head = Head(f"trade{own}", title, caption)
    columns = ("row", "plasticity", "sd", "stability", "sd")
    return Figure(head.id, title, caption, scatter(head, spots, across, up), Data(columns, rows))


def _runs(comparison: Comparison) -> Table:
    """Each run with its state and a link to its own report."""
    first = comparison.metrics[0]
    columns = [*(axis.key for axis in comparison.axes), "seed", "state", first.head, "time", "report"]
    rows = []
    for run in comparison.runs:
        value, seconds = (run.figures.get(name, math.nan) for name in (first.name, "seconds"))
        rows.append(
            [
                *(Cell(label, label) for label in run.labels),
                Cell(str(run.seed), run.seed),
                Cell(run.error or run.state, run.state),
                Cell(first.text(value), value),
                Cell(units.duration(seconds), seconds),
                Cell(_link(comparison, run), run.state),
            ]
        )
    return Table("Every run of the grid", columns, rows)


def _link(comparison: Comparison, run: Run) -> str:
    """To the run's report, beside this page."""
    if not (run.path / REPORT).exists():
        return "–"
    address = quote(str((run.path / REPORT).relative_to(comparison.path)))
    return Markup('<a href="{}">report</a>').format(address)


def _meaning(name: str) -> str:
    """A metric's formula."""
    base = name.removesuffix("_inferred")
    if base in figures.MEANINGS:
        return f"{figures.MEANINGS[base]}."
    return f"{metrics.DEFINITIONS[base][1]}." if base in metrics.DEFINITIONS else ""
