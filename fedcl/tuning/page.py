"""A search as one page: every trial, what each setting did, and how the best one grew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from fedcl.comparison import figures
from fedcl.report import Cell, Data, Figure, Section, Table, Top, document, layout
from fedcl.report.charts import Series, Spot, curves, scatter
from fedcl.report.layout import Value
from fedcl.report.svg import Axis, Head
from fedcl.tuning.space import Range, Space
from fedcl.tuning.study import Told, Tuned

REPORT = "report.html"


def write(tuned: Tuned, space: Space) -> Path:
    """Write `report.html` into the search's folder, and return the path."""
    figure = figures.find(tuned.metric)
    keys = list(tuned.best.chosen)
    facts = [f"{len(tuned.trials)} trials", f"best: {', '.join(f'{k} = {v}' for k, v in tuned.best.chosen.items())}"]
    rows = [
        [
            Cell(str(trial.number), trial.number),
            *(Cell(trial.chosen.get(key, "–"), _number(trial.chosen.get(key, ""))) for key in keys),
            Cell(trial.error or figure.text(trial.value), trial.value),
        ]
        for trial in tuned.trials
    ]
    table = Table("Every trial", ["trial", *keys, f"{figure.head} on validation data"], rows)
    drawn = [_progress(tuned, figure), *(_effect(tuned, figure, key, space) for key in keys)]
    lead = "All on validation samples; a trial's test samples were dropped before it began."
    section = Section("trials", "Trials", lead=lead, figures=drawn, tables=[table])
    return layout.write(tuned.path / REPORT, document(Top("Search", facts=facts), [], [section]))


def _progress(tuned: Tuned, figure: figures.Figure) -> Figure:
    """Each trial's value, and the best so far."""
    known = [(float(t.number + 1), t.value) for t in tuned.trials if math.isfinite(t.value)]
    pick = min if figure.lower else max
    best = [(x, pick(y for _, y in known[: place + 1])) for place, (x, _) in enumerate(known)]
    title, caption = "Trials in their order", "Each trial's mean over seeds, and the best so far; validation data."
    x = Axis("trial", 1, max(len(tuned.trials), 2), lambda v: f"{v:.0f}", whole=True)
    series = [Series("trial", known, "c0"), Series("best", best, "c1")]
    svg = curves(Head("progress", title, caption), series, x, _axis(figure, [y for _, y in known]))
    rows: list[list[Value]] = [[x, y, b] for (x, y), (_, b) in zip(known, best, strict=True)]
    return Figure("progress", title, caption, svg, Data(("trial", "value", "best so far"), rows))


def _effect(tuned: Tuned, figure: figures.Figure, key: str, space: Space) -> Figure:
    """Value against one setting."""
    part = space.get(key)
    log = isinstance(part, Range) and part.log
    labels = sorted({trial.chosen.get(key, "") for trial in tuned.trials})
    numbers = all(isinstance(_number(label), float) for label in labels)

    def place(trial: Told) -> float:
        value = _number(trial.chosen.get(key, ""))
        if not numbers or isinstance(value, str):
            return float(labels.index(trial.chosen.get(key, "")))
        return math.log10(value) if log else value

    def say(at: float) -> str:
        if not numbers:
            return labels[int(at)] if at == int(at) and 0 <= at < len(labels) else ""
        return f"{10**at:.3g}" if log else f"{at:.3g}"

    known = [trial for trial in tuned.trials if math.isfinite(trial.value)]
    spots = [Spot(f"trial {t.number}", place(t), t.value, "c1 strong" if t == tuned.best else "c0") for t in known]
    places = [spot.x for spot in spots]
    x = Axis(key, min(places), max(places) if max(places) > min(places) else min(places) + 1, say, whole=not numbers)
    title, caption = f"What {key} did", "One point a trial, all other settings as they came; the best one is strong."
    name = f"effect-{key.replace('.', '-')}"
    svg = scatter(Head(name, title, caption), spots, x, _axis(figure, [t.value for t in known]), named=False)
    rows: list[list[Value]] = [[t.number, t.chosen.get(key, ""), t.value] for t in known]
    return Figure(name, title, caption, svg, Data(("trial", key, tuned.metric), rows))


def _axis(figure: figures.Figure, values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.01
    return Axis(figure.title, low - room, high + room, figure.text)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
