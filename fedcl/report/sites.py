"""Hospital by hospital: the best and the worst, and what merging and learning on cost each. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedcl.metrics import (
    Floats,
    Matrix,
    hospital_accuracy,
    just_learned_forgetting,
    mean,
    merging_drop,
    peak_forgetting,
    seen_accuracy,
)
from fedcl.report.bars import Mark, ranges
from fedcl.report.charts import Series, Spot, curves, scatter
from fedcl.report.figures import HOSPITAL, TASK, names, say, stages, switches
from fedcl.report.heat import Look, heat
from fedcl.report.layout import Data, Figure, Value
from fedcl.report.svg import Head, accuracy_axis, around, colour, points
from fedcl.results import Result

MANY = 8  # more hospitals than this are drawn as a crowd, with the best, the worst and the mean named


def hospital_curves(result: Result) -> Figure:
    """Accuracy hospital by hospital: the mean over the tasks met so far, or one task."""
    whole, final = result.known.whole(), hospital_accuracy(result.known)
    met = (seen_accuracy(Matrix(r, whole.first, whole.last)) for r in np.moveaxis(result.accuracy, 2, 0))
    rows = np.array(list(met)).reshape(len(result.hospitals), -1)
    caption = "Mean accuracy on the tasks met so far, or on one, each hospital on its own test data."
    crowd = len(rows) > MANY
    best, worst = -1, -1
    if crowd and np.isfinite(final).any():
        caption += " Named: the best and the worst hospital in the end, and the mean of all."
        best, worst = int(np.nanargmax(final)), int(np.nanargmin(final))
    series = []
    for c, name in enumerate(result.hospitals):
        class_ = {best: "c2", worst: "c1"}.get(c, "quiet") if crowd else colour(c)
        series.append(_line("" if class_ == "quiet" else name, rows[c], class_, name))
    if crowd:
        series.append(_line("mean", np.array([mean(column) for column in rows.T]), "c0 strong", "mean"))
    data: list[list[Value]] = [
        [view, s + 1, *(round(float(v), 4) for v in row)]
        for view, table in zip(switches(result)[1].views, _per_task(result, rows, crowd), strict=False)
        for s, row in enumerate(table)
    ]
    axis = accuracy_axis(rows.ravel().tolist(), "mean test accuracy, task known")
    title = "Hospitals over the stages, task known"
    svg = curves(Head("hospitals-over-stages", title, caption), series, stages(result), axis)
    columns = ("task", "after stage", *result.hospitals, *(["mean"] if crowd else []))
    return Figure("hospitals-over-stages", title, caption, svg, Data(columns, data), False, "curves", TASK, HOSPITAL)


def _per_task(result: Result, means: Floats, crowd: bool) -> list[Floats]:
    """[S, hospitals (and their mean)] of the tasks met so far, then of each task from when it was met."""
    first = result.known.whole().first
    tables = [means.T]
    for t in range(len(result.tasks)):
        known = (first[t] >= 0) & (np.arange(len(result.accuracy)) >= first[t])
        tables.append(np.where(known[:, None], result.accuracy[:, t], np.nan))
    if crowd:
        tables = [np.column_stack([table, [mean(row) for row in table]]) for table in tables]
    return tables


def _line(label: str, values: Floats, class_: str, name: str) -> Series:
    return Series(label, [(s + 1.0, float(v)) for s, v in enumerate(values)], class_, name)


def merging(result: Result) -> Figure:
    """Per hospital: own model → merged → after the final stage."""
    labels = ("own model", "merged", "after the final stage")
    cells = _three(result)  # [3, T, C]
    whole = np.array([[mean(column) for column in part.T] for part in cells]).reshape(3, -1)
    rows, order = _most(result.hospitals, whole)
    data: list[list[Value]] = []
    for view, values in zip(switches(result)[1].views, [whole, *np.moveaxis(cells, 1, 0)], strict=False):
        chosen = _chosen(values, order)
        data += [[view, row, *(round(float(v), 4) for v in chosen[:, r])] for r, row in enumerate(rows)]
    marks: list[Mark] = list(zip(labels, _chosen(whole, order), strict=True))
    axis = accuracy_axis(np.concatenate([v for _, v in marks]).tolist(), "test accuracy, task known")
    title = "What merging and learning on cost"
    caption = (
        "Mean over a hospital's tasks, or one task, task known: its own model after training, the merged model of that "
        "stage (the step is spatial forgetting), and the model after the final stage (temporal forgetting)."
    )
    if order is not None:
        caption += f" The mean of all hospitals, and the {len(rows) - 1} that lost most."
    svg = ranges(Head("merging", title, caption), rows, marks, axis)
    data_ = Data(("task", "hospital", *labels), data)
    return Figure("merging", title, caption, svg, data_, False, "ranges", TASK, HOSPITAL)


def _three(result: Result) -> Floats:
    """[3, T, C] own model, merged and final, NaN where one of them is undefined."""
    last = result.last
    own, merged, final = np.full((3, *last.shape), np.nan)
    t, c = np.nonzero(last >= 0)
    if len(result.accuracy):
        own[t, c], merged[t, c] = result.local[last[t, c], t, c], result.accuracy[last[t, c], t, c]
        final[t, c] = result.accuracy[-1, t, c]
    cells = np.stack([own, merged, final])
    return np.where(np.isfinite(cells.sum(0)), cells, np.nan)


def _most(hospitals: Sequence[str], values: Floats, most: int = 12) -> tuple[list[str], list[int] | None]:
    """Names of rows; of many hospitals, their mean and those that lost most, and which those are."""
    if len(hospitals) <= most + 1:
        return list(hospitals), None
    order = np.argsort(values[-1] - values[0], kind="stable")[:most].tolist()  # NaN comes last
    return ["mean of all", *(hospitals[h] for h in order)], order


def _chosen(values: Floats, order: list[int] | None) -> Floats:
    """[3, C] → [3, rows]."""
    if order is None:
        return values
    return np.column_stack([np.array([mean(part) for part in values]), values[:, order]])


def drift(result: Result) -> Figure:
    """After each stage: what its merging cost, and what learning on has cost until then."""
    past = [result.until(s).known for s in range(len(result.accuracy))]
    spatial, temporal = [], []
    for s, scores in enumerate(past):
        spatial.append(mean(np.where(scores.last == s, merging_drop(scores), np.nan)))
        own = (mean(just_learned_forgetting(scores.hospital(c))) for c in range(len(result.hospitals)))
        temporal.append(mean(np.array(list(own))))
    lines = {"spatial": spatial, "temporal": temporal}
    series = [
        Series(label, [(s + 1.0, v) for s, v in enumerate(values)], f"c{k}")
        for k, (label, values) in enumerate(lines.items())
    ]
    both = [0.0, *(v for values in lines.values() for v in values)]
    axis = around(both, "points lost", lambda v: points(v).removeprefix("+"))
    title = "Spatial and temporal forgetting over the stages"
    caption = (
        "Mean over hospitals, task known. Spatial: own model after training less the merged model, in that stage. "
        "Temporal: the merged model as each task was just learned less the model now. Below 0 is a gain."
    )
    svg = curves(Head("drift", title, caption), series, stages(result), axis)
    rows: list[list[Value]] = [
        [s + 1, round(a, 4), round(b, 4)] for s, (a, b) in enumerate(zip(spatial, temporal, strict=True))
    ]
    return Figure("drift", title, caption, svg, Data(("after stage", *lines), rows))


def trade(result: Result) -> Figure:
    """Plasticity and stability of each hospital, in the end."""
    spots: list[Spot] = []
    rows: list[list[Value]] = []
    for c, name in enumerate([*result.hospitals, "all, pooled"]):
        pooled = c == len(result.hospitals)  # drawn last: over the others
        m = result.known.whole() if pooled else result.known.hospital(c)
        x, y = mean(np.where(m.seen, m.learned, np.nan)), 1 - mean(peak_forgetting(m))
        spots.append(Spot(name, x, y, "c1 strong" if pooled else "c0"))
        rows.append([name, round(x, 4), round(y, 4)])
    title = "Plasticity against stability of each hospital"
    caption = "After the final stage, task known, each hospital on its own test data. Top right is best."
    across = around([s.x for s in spots], "plasticity: accuracy as just learned")
    up = around([s.y for s in spots], "stability: 1 − forgetting")
    svg = scatter(Head("trade", title, caption), spots, across, up, named=len(spots) <= 2 * MANY)
    return Figure("trade", title, caption, svg, Data(("hospital", "plasticity", "stability"), rows), marks=HOSPITAL)


def final(result: Result) -> Figure:
    """Hospital × task after the final stage."""
    values = result.accuracy[-1].T if len(result.accuracy) else np.full(result.last.T.shape, np.nan)
    values = np.where(result.known.whole().seen[None, :], values, np.nan)
    tasks = names(result)

    def about(h: int, t: int) -> str:
        return f"{result.hospitals[h]}, task {tasks[t]}: {say(float(values[h, t]))}"

    title = "Accuracy in the end, per hospital and task"
    caption = "Per cent after the final stage, task known, each hospital on its own test data."
    look = Look(result.hospitals, tasks, "hospital", "on task", lambda v: f"{100 * v:.0f}", about)
    head = Head("final", title, caption)
    svg = heat(head, values, look)
    rows: list[list[Value]] = [[h, *(round(float(v), 4) for v in values[c])] for c, h in enumerate(result.hospitals)]
    return Figure("final", title, caption, svg, Data(("hospital", *tasks), rows), wide=len(tasks) > 12)
