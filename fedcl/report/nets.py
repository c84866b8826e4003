"""What the net is made of: parameters and units, how much of them each task uses, and where the weights lie. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedcl.metrics import Floats
from fedcl.report.bars import stacked
from fedcl.report.charts import Series, curves
from fedcl.report.figures import names
from fedcl.report.heat import Look, heat
from fedcl.report.layout import Data, Figure, Switch, Value, variants
from fedcl.report.svg import Axis, Head, from_zero
from fedcl.results import Result
from fedcl.units import count

STAGE = "stage"  # the switch's name
FILE = "distributions.json"


def size(result: Result) -> Figure:
    """Parameters after each stage: the trunk, and the modules of all tasks."""
    parts = np.zeros((len(result.accuracy), 2))
    for r in result.records:
        if r.phase == "model" and r.name == "parameters" and r.task and 0 <= r.stage < len(parts):
            parts[r.stage, int(r.task != "trunk")] += np.nan_to_num(r.value)
    title = "Parameters after each stage"
    rows = [f"stage {s + 1}" for s in range(len(parts))]
    about = "; ".join(f"{row}: {count(total)}" for row, total in zip(rows, parts.sum(axis=1), strict=True))
    head = Head("growth", title, about or "No stage is finished.")
    axis = from_zero(parts.sum(axis=1), "parameters", count)
    caption = "The shared trunk, and the modules and gates of all tasks met so far."
    capacity = result.metrics.get("capacity", float("nan"))
    if np.isfinite(capacity):
        caption += f" In the end {100 * capacity:.0f} % of separate nets, one for each task."
    svg = stacked(head, parts, rows, ("trunk", "task modules"), axis)
    data: list[list[Value]] = [[s + 1, *map(float, part)] for s, part in enumerate(parts)]
    return Figure("growth", title, caption, svg, Data(("after stage", "trunk", "task modules"), data))


def units(result: Result) -> list[Figure]:
    """Units of each layer of the trunk that can grow, stage by stage; nothing where there is none."""
    found = {
        (r.stage, r.note): r.value
        for r in result.records
        if (r.phase, r.name, r.task) == ("model", "units", "trunk") and r.stage >= 0
    }
    layers = list(dict.fromkeys(layer for _, layer in found))
    values = _grid(found, range(len(result.accuracy)), layers)
    if not layers or not values.size:
        return []
    rows = [str(s + 1) for s in range(len(values))]

    def about(s: int, k: int) -> str:
        return f"After stage {s + 1}, layer {layers[k]}: {values[s, k]:.0f} units"

    title = "Units of the trunk"
    events = [r for r in result.records if r.phase == "growth"]
    caption = "Units of each layer that can grow, after each stage."
    if events:
        steps = sorted({(r.stage + 1, r.round + 1) for r in events})
        told = ", ".join(f"{stage} (round {number})" for stage, number in steps[:12])
        caption += f" The net changed its size in stage {told}{' …' if len(steps) > 12 else ''}."
    high = float(np.nanmax(values))
    look = Look(rows, layers, "after stage", "layer", lambda v: f"{v:.0f}", about, high, void="")
    svg = heat(Head("units", title, caption), values, look)
    data: list[list[Value]] = [[s + 1, *map(float, row)] for s, row in enumerate(values)]
    return [Figure("units", title, caption, svg, Data(("after stage", *layers), data), wide=len(layers) > 12)]


def use(result: Result) -> list[Figure]:
    """How much of each layer a task uses: what its gate and its masks let through."""
    order = {task.id: t for t, task in enumerate(result.tasks)}
    found: dict[tuple[int, str], float] = {}
    open_: dict[tuple[int, str], float] = {}
    for r in result.records:
        if r.phase == "model" and r.task in order and r.name in ("use", "units"):
            (found if r.name == "use" else open_)[order[r.task], r.note] = r.value
    layers = list(dict.fromkeys(layer for _, layer in found))
    met = sorted({t for t, _ in found})
    if not met:
        return []
    values, tasks = _grid(found, met, layers), [names(result)[t] for t in met]

    def about(t: int, k: int) -> str:
        number = open_.get((met[t], layers[k]), float("nan"))
        known = f", {number:.0f} units" if np.isfinite(number) else ""
        return f"Task {tasks[t]}, {layers[k]}: {100 * values[t, k]:.0f} % in use{known}"

    title = "How much of the net each task uses"
    caption = (
        "Per cent, after the stage in which a task was last trained. Module: the mean of the task's gate over its own "
        "units, closed ones 0. Layers: the share of the trunk's units, or weights, that its masks leave open."
    )
    look = Look(tasks, layers, "task", "layer", lambda v: f"{100 * v:.0f}", about, void="no mask")
    svg = heat(Head("use", title, caption), values, look)
    rows: list[list[Value]] = [
        [task, layer, round(float(values[t, k]), 4), open_.get((met[t], layer), float("nan"))]
        for t, task in enumerate(tasks)
        for k, layer in enumerate(layers)
    ]
    data = Data(("task", "layer", "share in use", "units in use"), rows)
    return [Figure("use", title, caption, svg, data, wide=len(layers) > 12)]


def _grid(found: dict[tuple[int, str], float], rows: Sequence[int], columns: Sequence[str]) -> Floats:
    cells = [[found.get((row, column), np.nan) for column in columns] for row in rows]
    return np.array(cells, dtype=np.float64).reshape(len(rows), len(columns))


def told(result: Result) -> dict[int, dict[str, Any]]:
    """distributions.json by stage, the last stage first; empty where there is none."""
    try:
        content = json.loads((result.path / FILE).read_text(encoding="utf-8"))
        stages = {int(stage): facts for stage, facts in content.items() if int(stage) < len(result.accuracy)}
    except (OSError, ValueError, AttributeError):
        return {}
    return dict(sorted(stages.items(), reverse=True))


def switch(result: Result) -> Switch:
    """Of which stage the weights are."""
    return Switch(STAGE, "Stage", [str(stage + 1) for stage in told(result)])


def weights(result: Result) -> list[Figure]:
    """Where the trunk's weights lay before and after a stage, and how far they moved."""
    facts = told(result)
    if not facts:
        return []
    figures = [
        _densities(
            "weights",
            "Weights of the trunk",
            "Density of all weights of the trunk, of the run's own parameters, before the stage and after it.",
            {stage: (one["values"]["edge"], one["values"]) for stage, one in facts.items()},
            ("before", "after"),
            "value of a weight",
        ),
        _densities(
            "moves",
            "How far each weight moved",
            "Density of each weight's change in the stage. The narrower, the more the method held the trunk.",
            {stage: (one["moves"]["edge"], {"move": one["moves"]["density"]}) for stage, one in facts.items()},
            ("move",),
            "change of a weight",
        ),
    ]
    return figures + _importance(facts)


def _densities(
    id_: str, title: str, caption: str, parts: dict[int, tuple[float, Any]], keys: Sequence[str], across: str
) -> Figure:
    """Densities over symmetric bins, one drawing a stage."""
    drawn, rows = [], []
    for stage, (edge, columns) in parts.items():
        centres = _centres(-edge, edge, len(columns[keys[0]]))
        lines = [list(zip(centres, columns[key], strict=True)) for key in keys]
        x = Axis(across, -edge, edge, lambda v: f"{v:.3g}".replace("-", "−"))
        drawn.append(_drawing(f"{id_}-{stage + 1}", title, caption, keys, lines, x, "density"))
        rows += [[str(stage + 1), at, *(columns[key][k] for key in keys)] for k, at in enumerate(centres)]
    data = Data(("stage", across, *keys), rows)
    return Figure(id_, title, caption, variants(drawn), data, kind="variants", switch=STAGE)


def _importance(facts: dict[int, dict[str, Any]]) -> list[Figure]:
    """log10 Ω of the weights, and how far those of each size moved."""
    if not any("importance" in one for one in facts.values()):
        return []
    figures = []
    for id_, title, key, unit, caption in (
        (
            "importance",
            "Importance of the weights for earlier tasks",
            "density",
            "density",
            "Density of log10 Ω over weights with Ω > 0, as the method kept it when the stage began (EWC: the diagonal "
            "of the Fisher information); of hospitals' own importances, the mean over the first eight.",
        ),
        (
            "protection",
            "How far weights of each importance moved",
            "moved",
            "mean |change|",
            "Mean absolute change in the stage, by importance when it began. Without protection it mostly rises, as "
            "what the outputs depend on has the larger gradients; a strong penalty makes it fall.",
        ),
    ):
        drawn, rows = [], []
        for stage, one in facts.items():
            part = one.get("importance", {"low": -1.0, "high": 0.0, "density": [None], "moved": [None]})
            values = [float("nan") if value is None else value for value in part[key]]
            centres = _centres(part["low"], part["high"], len(values))
            x = Axis("log10 Ω", part["low"], part["high"], lambda v: f"{v:.3g}".replace("-", "−"))
            points = list(zip(centres, values, strict=True))
            drawn.append(_drawing(f"{id_}-{stage + 1}", title, caption, (unit,), [points], x, unit))
            rows += [[str(stage + 1), at, value] for at, value in points]
        data = Data(("stage", "log10 Ω", unit), rows)
        figures.append(Figure(id_, title, caption, variants(drawn), data, kind="variants", switch=STAGE))
    return figures


def _drawing(id_: str, title: str, caption: str, keys: Sequence[str], lines: Any, x: Axis, up: str) -> Any:
    many = len(keys) > 1
    series = [
        Series(key if many else "", points, f"c{k}") for k, (key, points) in enumerate(zip(keys, lines, strict=True))
    ]
    y = from_zero([b for points in lines for _, b in points], up, lambda v: f"{v:.0f}" if v >= 100 else f"{v:.3g}")
    return curves(Head(id_, f"{title}, stage {id_.rpartition('-')[2]}", caption), series, x, y)


def _centres(low: float, high: float, bins: int) -> list[float]:
    width = (high - low) / bins
    return [float(f"{low + width * (k + 0.5):.5g}") for k in range(bins)]
