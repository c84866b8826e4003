"""The figures whose axis is the round. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from fedcl.report.charts import Point, Series, curves
from fedcl.report.figures import HOSPITAL, TASK, names
from fedcl.report.layout import Data, Figure, Value
from fedcl.report.sites import MANY
from fedcl.report.svg import Axis, Head, accuracy_axis, around, colour, from_zero, thin
from fedcl.results import Result
from fedcl.units import size


def rounds(result: Result) -> Axis:
    """All rounds recorded so far."""
    last = max((r.round for r in result.records), default=0) + 1.0
    return Axis("round", 1.0, max(last, 2.0), lambda v: f"{v:.0f}", whole=True)


def boundaries(result: Result) -> list[tuple[float, str]]:
    """(first round, name) of each stage; short names where many must fit."""
    first: dict[int, int] = {}
    for r in result.records:
        if r.phase == "train":
            first[r.stage] = min(first.get(r.stage, r.round), r.round)
    return [(at + 1.0, f"stage {s + 1}" if len(first) <= 6 else str(s + 1)) for s, at in sorted(first.items())]


def validation(result: Result) -> list[Figure]:
    """Validation accuracy of each task over the rounds, weighted by samples; nothing where no round was scored."""
    sizes = {(r.round, r.task, r.client): r.value for r in result.records if (r.phase, r.name) == ("validate", "n")}
    cells: dict[tuple[str | None, int], list[tuple[float, float]]] = defaultdict(list)
    for r in result.records:
        if r.phase == "validate" and r.name == "accuracy" and r.client is not None and math.isfinite(r.value):
            cells[r.task, r.round].append((r.value, sizes.get((r.round, r.task, r.client), 1.0)))
    if not cells:
        return []
    series = []
    for t, (task, label) in enumerate(zip(result.tasks, names(result), strict=True)):
        at = sorted(number for name, number in cells if name == task.id)
        points = [(number + 1.0, _weighted(cells[task.id, number])) for number in at]
        series.append(Series(label, points, colour(t)))
    title = "Each task over the rounds, task known"
    caption = (
        "Validation data of all hospitals, task known: the model that a round starts from. "
        "Vertical lines: a stage begins."
    )
    if max((len(s.points) for s in series), default=0) < 3:
        caption += " Few rounds were scored; run.validate_every = 1 scores each."
    axis = accuracy_axis([p[1] for s in series for p in s.points], "validation accuracy")
    head = Head("validation", title, caption)
    svg = curves(head, series, rounds(result), axis, boundaries(result), width=1040.0)
    return [Figure("validation", title, caption, svg, wide_data("round", series), wide=True, marks=TASK)]


def wide_data(x: str, series: Sequence[Series]) -> Data:
    """Curves as columns, by what they run over."""
    at = sorted({a for s in series for a, _ in s.points})
    columns = [dict(s.points) for s in series]
    rows: list[list[Value]] = [[a, *(column.get(a, float("nan")) for column in columns)] for a in at]
    return Data((x, *(s.name or s.label for s in series)), rows)


def _weighted(pairs: list[tuple[float, float]]) -> float:
    values, weights = np.array(pairs).T
    return float(np.average(values, weights=weights if weights.sum() else None))


def updates(result: Result) -> list[Figure]:
    """Each hospital's update against the others' of its round; nothing where that was not recorded."""
    figures = []
    for name, title, axis_title, caption in (
        (
            "cosine",
            "Direction of updates",
            "cosine",
            "Cosine of a client's update to the others' directions; below 0 it works against them.",
        ),
        ("norm", "Length of updates", "× median", "Norm of a client's update over the median norm of the round."),
    ):
        found: dict[int, list[Point]] = defaultdict(list)
        stages: dict[int, dict[int, None]] = defaultdict(dict)  # the rounds of each, in order
        for r in result.records:
            if (r.phase, r.name) == ("drift", name) and r.client is not None and math.isfinite(r.value):
                found[r.client].append((r.round + 1.0, r.value))
                stages[r.stage][r.round] = None
        if not found:
            continue
        for points in found.values():  # no line leads through a stage that a client sat out
            there = {n for n, _ in points}
            away = [n + 1.0 for rounds in stages.values() if not any(n + 1.0 in there for n in rounds) for n in rounds]
            points[:] = sorted([*points, *((n, math.nan) for n in away)])
        many = len(found) > MANY
        series = []
        for client in sorted(found):
            who = ", ".join(result.hospitals[h] for h in result.members[client][:2])
            series.append(Series("" if many else who, found[client], "quiet" if many else colour(client), who))
        values = [v for s in series for _, v in s.points if math.isfinite(v)]
        axis = around([*values, 0.0], axis_title, lambda v: f"{v:.3g}", 0.25)
        head = Head(f"updates-{name}", title, caption)
        svg = curves(head, series, rounds(result), axis, boundaries(result))
        figures.append(Figure(head.id, title, caption, svg, wide_data("round", series), marks=HOSPITAL))
    return figures


def loss(result: Result) -> Figure:
    """Training loss: mean over clients, and their range."""
    cells: dict[int, list[float]] = defaultdict(list)
    for r in result.records:
        if r.phase == "train" and r.name == "loss" and r.client is not None and math.isfinite(r.value):
            cells[r.round].append(r.value)
    at = sorted(cells)
    low = thin([(n + 1.0, min(cells[n])) for n in at])
    high = thin([(n + 1.0, max(cells[n])) for n in at])
    middle = Series("mean", [(n + 1.0, float(np.mean(cells[n]))) for n in at], "c0", band=(low, high))
    title = "Training loss"
    caption = "Mean over the clients of a round; the band reaches from the lowest client to the highest."
    axis = from_zero([v for _, v in high], "loss", lambda v: f"{v:.3g}")
    head = Head("loss", title, caption)
    svg = curves(head, [middle], rounds(result), axis, boundaries(result))
    data: list[list[Value]] = [[n + 1, float(np.mean(cells[n])), min(cells[n]), max(cells[n])] for n in at]
    return Figure("loss", title, caption, svg, Data(("round", "mean", "lowest", "highest"), data))


def traffic(result: Result) -> Figure:
    """Bytes to and from all clients, round by round."""
    down, up = per_round(result, "bytes_down"), per_round(result, "bytes_up")
    title, caption = "Bytes per round", "Payload of a round's training messages, all clients together."
    series = [Series("to clients", down, "c0"), Series("from clients", up, "c1 d1")]
    if raw := per_round(result, "bytes_up_raw"):
        series.append(Series("from clients, if not compressed", raw, "c2 d2"))
    axis = from_zero([v for _, v in (*down, *up, *raw)], "bytes", size)
    head = Head("traffic", title, caption)
    svg = curves(head, series, rounds(result), axis, boundaries(result))
    return Figure("traffic", title, caption, svg, wide_data("round", series))


def duration(result: Result) -> Figure:
    """Wall-clock seconds of each round."""
    points = per_round(result, "seconds")
    title, caption = "Seconds per round", "Wall-clock time from sending to merging."
    axis = from_zero([v for _, v in points], "seconds", lambda v: f"{v:.3g}")
    series = [Series("seconds", points, "c0")]
    head = Head("duration", title, caption)
    svg = curves(head, series, rounds(result), axis, boundaries(result))
    return Figure("duration", title, caption, svg, wide_data("round", series))


def per_round(result: Result, name: str) -> list[Point]:
    """(round from 1, value) of a figure that is recorded for all clients together."""
    chosen = (r for r in result.records if r.phase == "train" and r.name == name and r.client is None)
    return sorted((r.round + 1.0, r.value) for r in chosen)
