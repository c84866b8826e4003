"""The figures of who has what, when. Pure."""

from __future__ import annotations

import numpy as np

from fedcl.metrics import Floats
from fedcl.report.bars import stacked
from fedcl.report.figures import names
from fedcl.report.heat import Look, heat, timetable
from fedcl.report.layout import Data, Figure, Value
from fedcl.report.sites import MANY
from fedcl.report.svg import FILLS, Head, from_zero, short
from fedcl.results import Result
from fedcl.units import count

Cells = list[list[tuple[int, ...]]]  # [hospital][stage] → tasks


def split(result: Result) -> Figure:
    """Hospital × class: how many samples, all splits together."""
    counts = samples(result)
    title = "Samples per hospital and class"
    caption = "Training, validation and test data together."
    totals = zip(result.hospitals, counts.sum(axis=1), strict=True)
    head = Head("split", title, "; ".join(f"{hospital}: {total:.0f} samples" for hospital, total in totals))
    rows: list[list[Value]] = [[h, *map(float, counts[c])] for c, h in enumerate(result.hospitals)]
    data = Data(("hospital", *result.classes), rows)
    if len(result.classes) <= FILLS:
        axis = from_zero(counts.sum(axis=1), "samples", lambda v: f"{v:.0f}")
        return Figure("split", title, caption, stacked(head, counts, result.hospitals, result.classes, axis), data)

    def say(h: int, k: int) -> str:
        return f"{result.hospitals[h]}, {result.classes[k]}: {counts[h, k]:.0f} samples"

    high = float(counts.max(initial=1.0))
    look = Look(result.hospitals, result.classes, "hospital", "class", count, say, high, void="")
    return Figure("split", title, caption, heat(head, counts, look), data, wide=True)


def samples(result: Result) -> Floats:
    """[C, classes] samples that a hospital holds, each counted once.

    Tasks that are domains share all classes and may share the samples; the largest task counts then.
    """
    parts = result.split.sum(axis=2)
    shared = len(result.tasks) > 1 and all(task.classes == result.tasks[0].classes for task in result.tasks)
    held: Floats = (parts.max(axis=1) if shared else parts.sum(axis=1)).astype(np.float64)
    return held


def schedule(result: Result) -> Figure:
    """Hospital × stage: which task."""
    cells: Cells = [[() for _ in result.schedule] for _ in result.hospitals]
    for stage, clients in enumerate(result.schedule):
        for client, current in enumerate(clients):
            for hospital in result.members[client]:
                cells[hospital][stage] = current
    title = "Who trains which task when"
    key = "; ".join(f"{t + 1} is {name}" for t, name in enumerate(names(result)))
    caption = f"The number of the task that a hospital trains in a stage: {key}."
    rows, different = _same(result.hospitals, cells)
    svg = timetable(Head("schedule", title, caption), rows, different, names(result))
    data: list[list[Value]] = [
        [hospital, s + 1, names(result)[t]]
        for hospital, row in zip(result.hospitals, cells, strict=True)
        for s, current in enumerate(row)
        for t in current
    ]
    columns = ("hospital", "stage", "task")
    return Figure("schedule", title, caption, svg, Data(columns, data), wide=len(result.schedule) > 12)


def _same(hospitals: tuple[str, ...], cells: Cells) -> tuple[list[str], Cells]:
    """Many hospitals: those with the same schedule share a row."""
    if len(hospitals) <= MANY:
        return list(hospitals), cells
    groups: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for hospital, row in zip(hospitals, cells, strict=True):
        groups.setdefault(tuple(row), []).append(hospital)
    rows = [who[0] if len(who) == 1 else f"{short(who[0], 10)} + {len(who) - 1}" for who in groups.values()]
    return rows, [list(row) for row in groups]
