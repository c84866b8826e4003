"""The figures whose axis is the round, and what the model grew to. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from fedcl.metrics import mean
from fedcl.report.charts import Point, Series, curves
from fedcl.report.figures import Figure, compact, names
from fedcl.report.rows import stacked
from fedcl.report.svg import Axis, accuracy_axis, colour, thin
from fedcl.results import Record, Result


def rounds(result: Result) -> Axis:
    """All rounds recorded so far."""
    last = max((r.round for r in result.records), default=0) + 1
    return Axis("round", 1, max(last, 2), lambda v: f"{v:.0f}", whole=True)


def boundaries(result: Result) -> list[tuple[float, str]]:
    """(first round, name) of each stage; names are left out where they would not fit."""
    first: dict[int, int] = {}
    for r in result.records:
        if r.phase == "train":
            first[r.stage] = min(first.get(r.stage, r.round), r.round)
    return [(at + 1.0, f"stage {s + 1}" if len(first) <= 6 else str(s + 1)) for s, at in sorted(first.items())]


def validation(result: Result) -> Figure:
    """Validation accuracy of each task before each scored round, weighted by samples."""
    sizes = {(r.round, r.task, r.client): r.value for r in result.records if r.phase == "validate" and r.name == "n"}
    cells: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for r in result.records:
        if r.phase == "validate" and r.name == "accuracy" and r.task and r.client is not None and np.isfinite(r.value):
            cells[r.task, r.round].append((r.value, sizes.get((r.round, r.task, r.client), 1.0)))
    series = []
    for t, (task, label) in enumerate(zip(result.tasks, names(result), strict=True)):
        at = sorted(number for name, number in cells if name == task.id)
        points = [(number + 1.0, _weighted(cells[task.id, number])) for number in at]
        series.append(Series(label, points, colour(t)))
    title = "Each task over the rounds, validation data"
    axis = accuracy_axis([p[1] for s in series for p in s.points], "validation accuracy")
    caption = "Accuracy of the model that a round starts from, on all hospitals' validation samples, task known. Vertical lines: a stage begins."
    svg = curves("rounds-validation", title, caption, series, rounds(result), axis, boundaries(result))
    return Figure(title, caption, svg, wide=True)


def _weighted(pairs: list[tuple[float, float]]) -> float:
    total = sum(weight for _, weight in pairs)
    return sum(v * weight for v, weight in pairs) / total if total else mean(np.array([v for v, _ in pairs]))


def loss(result: Result) -> Figure:
    """Training loss: mean over clients, and their range."""
    cells: dict[int, list[float]] = defaultdict(list)
    for r in result.records:
        if r.phase == "train" and r.name == "loss" and r.client is not None and np.isfinite(r.value):
            cells[r.round].append(r.value)
    at = sorted(cells)
    low = thin([(n + 1.0, min(cells[n])) for n in at])
    high = thin([(n + 1.0, max(cells[n])) for n in at])
    middle = [(n + 1.0, float(np.mean(cells[n]))) for n in at]
    top = max((v for _, v in high), default=1.0)
    title = "Training loss"
    caption = "Mean of the clients' training losses in a round; the band is from the lowest to the highest client."
    axis = Axis("loss (penalties included)", 0, top or 1.0, lambda v: f"{v:.3g}")
    svg = curves("loss", title, caption, [Series("mean", middle, "c0")], rounds(result), axis, boundaries(result), (low, high))
    return Figure(title, caption, svg)


def traffic(result: Result) -> Figure:
    """Bytes to and from all clients, round by round."""
    series = [
        Series("to clients", per_round(result, "bytes_down"), "c0"),
        Series("from clients", per_round(result, "bytes_up"), "c1"),
    ]
    title = "Bytes per round"
    return _costs(result, "bytes", title, "Payload of all messages in a round, all clients together.", "bytes", series, lambda v: compact(v) + "B")


def duration(result: Result) -> Figure:
    """Wall-clock seconds of each round."""
    series = [Series("round", per_round(result, "seconds"), "c0")]
    return _costs(result, "seconds", "Seconds per round", "Wall-clock time from sending to merging.", "seconds", series, lambda v: f"{v:.3g}")


def per_round(result: Result, name: str) -> list[Point]:
    """(round from 1, value) of a figure that is recorded for all clients together."""
    chosen: list[Record] = [r for r in result.records if r.phase == "train" and r.name == name and r.client is None]
    return sorted((r.round + 1.0, r.value) for r in chosen)


def _costs(result: Result, name: str, title: str, caption: str, unit: str, series: list[Series], write: Callable[[float], str]) -> Figure:
    top = max((v for s in series for _, v in s.points if np.isfinite(v)), default=1.0)
    axis = Axis(unit, 0, top or 1.0, write)
    return Figure(title, caption, curves(f"per-round-{name}", title, caption, series, rounds(result), axis, boundaries(result)))


def growth(result: Result) -> Figure:
    """Parameters after each stage: the trunk, and the modules of all tasks."""
    stages = len(result.accuracy)
    parts = np.zeros((stages, 2))
    for r in result.records:
        if r.phase == "model" and r.name == "parameters" and 0 <= r.stage < stages and np.isfinite(r.value):
            if r.task == "trunk":
                parts[r.stage, 0] = r.value
            elif r.task is not None:
                parts[r.stage, 1] += r.value
    title = "Parameters after each stage"
    axis = Axis("parameters", 0, float(parts.sum(axis=1).max(initial=1.0)), compact)
    rows = [f"stage {s + 1}" for s in range(stages)]
    about = "; ".join(f"{row}: {compact(float(total))}" for row, total in zip(rows, parts.sum(axis=1), strict=True))
    svg = stacked("growth", title, about or "No stage is finished.", parts, rows, ("trunk", "task modules"), axis)
    return Figure(title, "The shared trunk, and the modules of all tasks met so far (their gates included).", svg)
