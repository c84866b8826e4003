"""Which figures a run has, and what each says: Result → Figure. Pure.

Stages and rounds count from 1 here, as people do, and from 0 in metrics.jsonl.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from fedcl.metrics import Floats, Matrix, Scores, by_hospital, hospital_accuracy, mean, peak_forgetting, seen_accuracy
from fedcl.report.charts import Point, Series, curves
from fedcl.report.rows import Look, heat, ranges, stacked, timetable
from fedcl.report.svg import Axis, accuracy_axis, colour, percent
from fedcl.results import Record, Result

MANY = 8  # more hospitals than this are drawn as a crowd, with the best, the worst and the mean named


class Figure(NamedTuple):
    """A drawing with its heading and what to know when reading it."""

    title: str
    caption: str
    svg: Markup
    wide: bool = False
    switch: str = ""  # the hospital switch that redraws it: "known" or "inferred"


def compact(value: float) -> str:
    """1234567 → "1.2 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def names(result: Result) -> list[str]:
    """The tasks' titles, numbered: "1 · 0, 1"."""
    return [task.title if task.title != task.id else f"task {t + 1}" for t, task in enumerate(result.tasks)]


def _stages(result: Result) -> Axis:
    last = max(len(result.accuracy), 2)
    return Axis("after stage", 1, last, lambda v: f"{v:.0f}", whole=True)


def matrix(result: Result, values: Floats, name: str, how: str) -> Figure:
    """R[after stage, on task] of all hospitals pooled; a script redraws it for one hospital."""
    tasks, whole = names(result), result.known.whole()
    stages = [str(s + 1) for s in range(len(values))]
    outline = np.arange(len(values))[:, None] == whole.last[None, :]
    digits = 0 if len(tasks) > 12 else 1
    look = Look(
        stages,
        tasks,
        "after stage",
        "on task",
        lambda v: f"{100 * v:.{digits}f}",
        lambda s, t: f"After stage {s + 1}, on task {tasks[t]}: {value(float(values[s, t]))}",
        void="no module yet, or no test samples",
    )
    title = f"Accuracy in per cent, task {how}"
    about = f"Heat map of the accuracy on each task after each stage, task {how}. Final mean {value(mean(whole_final(values, whole)))}."
    caption = f"Test accuracy in per cent, task {how}. Rows: after which stage. Columns: on which task. A border marks the stage in which a task was last trained."
    return Figure(title, caption, heat(name, title, about, values, look, outline), switch=how)


def whole_final(values: Floats, whole: Matrix) -> Floats:
    """[T] the last row, of seen tasks."""
    return np.where(whole.seen, values[-1], np.nan) if len(values) else np.full(len(whole.last), np.nan)


def value(fraction: float) -> str:
    """A fraction in words: "87.3 %" or "not defined"."""
    return percent(fraction, 1) if np.isfinite(fraction) else "not defined"


def forgetting(scores: Scores, tasks: Sequence[str], name: str, how: str) -> Figure:
    """Per task: the best it ever was, as it was just learned, and what is left."""
    m = scores.whole()
    peak = m.final + peak_forgetting(m)
    marks = [("best ever", peak), ("just learned", m.learned), ("final", m.final)]
    axis = accuracy_axis(np.concatenate([v for _, v in marks]).tolist(), f"test accuracy, task {how}")
    drop = peak_forgetting(m)
    about = "; ".join(f"{t}: lost {value(float(d))}" for t, d in zip(tasks, drop, strict=True) if np.isfinite(d))
    title = f"Forgetting per task, task {how}"
    caption = f"From the best accuracy that a task ever had to what is left of it after the final stage, task {how}. The number is final − best in points; tasks still being learned in the final stage have none."
    return Figure(title, caption, ranges(name, title, about or "No task is old enough to be forgotten.", tasks, marks, axis))


def task_curves(result: Result, values: Floats, name: str, how: str) -> Figure:
    """Test accuracy of each task over the stages, pooled."""
    first = result.known.whole().first
    series = []
    for t, label in enumerate(names(result)):
        start = max(int(first[t]), 0)
        points = [(s + 1.0, float(values[s, t])) for s in range(start, len(values)) if first[t] >= 0]
        series.append(Series(label, points, colour(t)))
    title = f"Each task over the stages, task {how}"
    axis = accuracy_axis([p[1] for s in series for p in s.points], "test accuracy")
    about = f"Test accuracy of each task after each stage since it was met, task {how}."
    return Figure(title, f"Test accuracy on the samples of all hospitals, task {how}, since the task was met.",
                  curves(name, title, about, series, _stages(result), axis))


def hospital_curves(result: Result) -> Figure:
    """Mean accuracy on the tasks met so far, hospital by hospital."""
    whole = result.known.whole()
    rows = [
        seen_accuracy(Matrix(result.accuracy[:, :, c], whole.first, whole.last)) for c in range(len(result.hospitals))
    ]
    lines = [[(s + 1.0, float(v)) for s, v in enumerate(row)] for row in rows]
    if len(rows) <= MANY:
        series = [Series(h, points, colour(c)) for c, (h, points) in enumerate(zip(result.hospitals, lines, strict=True))]
    else:
        series = [Series("", points, "quiet") for points in lines]
        final = hospital_accuracy(result.known)
        if np.isfinite(final).any():
            best, worst = int(np.nanargmax(final)), int(np.nanargmin(final))
            stack = np.array(rows)
            middle = [(s + 1.0, mean(stack[:, s])) for s in range(stack.shape[1])]
            series += [Series(result.hospitals[best], lines[best], "c2"), Series("mean", middle, "c0 strong")]
            series += [Series(result.hospitals[worst], lines[worst], "c1")]
    axis = accuracy_axis([p[1] for s in series for p in s.points], "mean test accuracy, task known")
    title = "Hospitals over the stages, task known"
    caption = "Mean accuracy on the tasks met so far, each hospital on its own test samples."
    if len(rows) > MANY:
        caption += " Named: the best and the worst hospital at the end, and the mean."
    return Figure(title, caption, curves("hospitals-over-stages", title, caption, series, _stages(result), axis))


def merging(result: Result) -> Figure:
    """Per hospital: own model → merged → after the final stage."""
    scores = result.known
    own, merged, final = (np.full(scores.last.shape, np.nan) for _ in range(3))
    t, c = np.nonzero(scores.last >= 0)
    own[t, c] = result.local[scores.last[t, c], t, c]
    merged[t, c] = result.accuracy[scores.last[t, c], t, c]
    final[t, c] = result.accuracy[-1, t, c] if len(result.accuracy) else np.nan
    use = np.isfinite(own) & np.isfinite(merged) & np.isfinite(final)
    means = [np.array([mean(column[ok]) for column, ok in zip(a.T, use.T, strict=True)]) for a in (own, merged, final)]
    marks = list(zip(("own model", "merged", "after the final stage"), means, strict=True))
    axis = accuracy_axis(np.concatenate(means).tolist(), "test accuracy, task known")
    title = "What merging and learning on cost"
    caption = (
        "Mean over a hospital's tasks, task known: its own model after local training, the merged model of the same "
        "stage (the difference is spatial forgetting), and the model after the final stage (temporal forgetting)."
    )
    return Figure(title, caption, ranges("spatial", title, caption, result.hospitals, marks, axis))


def split(result: Result) -> Figure:
    """Hospital × class: how many samples."""
    counts = result.split.sum(axis=(1, 2)).astype(np.float64)
    if _shared_classes(result):  # domains: every task has the same samples' classes; count them task by task
        counts = result.split.sum(axis=2).max(axis=1).astype(np.float64)
    title = "Samples per hospital and class"
    high = float(counts.max(initial=1.0))
    if len(result.classes) > 10:
        look = Look(result.hospitals, result.classes, "hospital", "class", compact if high > 999 else lambda v: f"{v:.0f}",
                    lambda h, k: f"{result.hospitals[h]}, {result.classes[k]}: {counts[h, k]:.0f} samples", high)
        return Figure(title, "Training, validation and test samples together.",
                      heat("split", title, "Heat map of samples per hospital and class.", counts, look), wide=True)
    axis = Axis("samples (training, validation and test)", 0, float(counts.sum(axis=1).max(initial=1.0)), lambda v: f"{v:.0f}")
    about = "; ".join(f"{h}: {int(row.sum())} samples" for h, row in zip(result.hospitals, counts, strict=True))
    return Figure(title, "Training, validation and test samples together, by class.",
                  stacked("split", title, about, counts, result.hospitals, result.classes, axis))


def _shared_classes(result: Result) -> bool:
    return len(result.tasks) > 1 and all(task.classes == result.tasks[0].classes for task in result.tasks)


def schedule(result: Result) -> Figure:
    """Hospital × stage: which task."""
    cells: list[list[tuple[int, ...]]] = [[() for _ in result.schedule] for _ in result.hospitals]
    for stage, clients in enumerate(result.schedule):
        for client, current in enumerate(clients):
            for hospital in result.members[client]:
                cells[hospital][stage] = tuple(current)
    title = "Who trains which task when"
    key = "; ".join(f"{t + 1}: {name}" for t, name in enumerate(names(result)))
    about = "Number of the task that each hospital trains in each stage. " + key
    return Figure(title, f"The number of the task that a hospital trains in a stage. Tasks: {key}.",
                  timetable("schedule", title, about, result.hospitals, cells, names(result)), wide=True)
