"""Which figures a run has over its stages, and what each says: Result → Figure. Pure.

Stages and rounds count from 1 here, as people do, and from 0 in metrics.jsonl.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from fedcl.metrics import Floats, Matrix, Scores, hospital_accuracy, mean, peak_forgetting, seen_accuracy
from fedcl.report.bars import Mark, ranges
from fedcl.report.charts import Series, curves
from fedcl.report.heat import Look, heat
from fedcl.report.svg import Axis, Head, accuracy_axis, colour, percent
from fedcl.results import Result

MANY = 8  # more hospitals than this are drawn as a crowd, with the best, the worst and the mean named
WAYS = ("known", "inferred")


class Figure(NamedTuple):
    """A drawing with its heading and what to know when reading it."""

    title: str
    caption: str
    svg: Markup
    wide: bool = False
    switch: str = ""  # the hospital switch redraws it with these accuracies: "known" or "inferred"


def names(result: Result) -> list[str]:
    """The tasks' titles."""
    return [task.title if task.title != task.id else f"task {t + 1}" for t, task in enumerate(result.tasks)]


def say(fraction: float) -> str:
    """A fraction in words: "87.3 %" or "not defined"."""
    return percent(fraction, 1) if np.isfinite(fraction) else "not defined"


def matrices(result: Result) -> list[Figure]:
    """R[after stage, on task] of all hospitals pooled; a script redraws it for one hospital."""
    tasks, last = names(result), result.learned_at
    digits = 0 if len(tasks) > 12 else 1
    figures = []
    for how, scores in zip(WAYS, (result.known, result.unknown), strict=True):
        values = scores.pooled

        def about(s: int, t: int, values: Floats = values) -> str:
            return f"After stage {s + 1}, on task {tasks[t]}: {say(float(values[s, t]))}"

        stages = [str(s + 1) for s in range(len(values))]
        look = Look(stages, tasks, "after stage", "on task", lambda v: f"{100 * v:.{digits}f}", about)
        title = f"Accuracy in per cent, task {how}"
        final = say(mean(scores.whole().final))
        spoken = f"Accuracy on each task after each stage, task {how}; mean in the end {final}."
        outline = np.arange(len(values))[:, None] == last[None, :]
        svg = heat(Head(f"matrix-{how}", title, spoken), values, look, outline)
        figures.append(
            Figure(
                title,
                f"Test data, task {how}. A border: the stage in which a task was last trained.",
                svg,
                len(tasks) > 12,
                how,
            )
        )
    return figures


def forgetting(result: Result) -> list[Figure]:
    """Per task: the best it ever was, as it was just learned, and what is left; on one common axis."""
    marks = [_drop(scores) for scores in (result.known, result.unknown)]
    axis = accuracy_axis(np.concatenate([v for pair in marks for _, v in pair]).tolist(), "test accuracy")
    figures = []
    for how, three in zip(WAYS, marks, strict=True):
        title = f"Forgetting per task, task {how}"
        lost = zip(names(result), three[2][1] - three[0][1], strict=True)
        about = "; ".join(f"{t}: {100 * d:+.1f} points" for t, d in lost if np.isfinite(d))
        head = Head(f"forgetting-{how}", title, about or "No task is old enough to have been forgotten.")
        caption = f"Test data of all hospitals, task {how}. The number is final − best."
        figures.append(Figure(title, caption, ranges(head, names(result), three, axis)))
    return figures


def _drop(scores: Scores) -> list[Mark]:
    m = scores.whole()
    learned = np.where(m.old, m.learned, np.nan)
    return [("best ever", m.final + peak_forgetting(m)), ("just learned", learned), ("final", m.final)]


def stages(result: Result) -> Axis:
    """The finished stages."""
    last = float(max(len(result.accuracy), 2))
    return Axis("after stage", 1.0, last, lambda v: f"{v:.0f}", whole=True)


def task_curves(result: Result) -> list[Figure]:
    """Test accuracy of each task over the stages, pooled; on one common axis."""
    first = result.known.whole().first
    both = []
    for values in (result.pooled, result.pooled_inferred):
        both.append(
            [
                Series(label, [(s + 1.0, float(values[s, t])) for s in range(first[t], len(values))], colour(t))
                for t, label in enumerate(names(result))
                if first[t] >= 0
            ]
        )
    axis = accuracy_axis([p[1] for series in both for s in series for p in s.points], "test accuracy")
    figures = []
    for how, series in zip(WAYS, both, strict=True):
        title = f"Each task over the stages, task {how}"
        caption = f"Test data of all hospitals, task {how}, from the stage in which the task was met."
        head = Head(f"curves-{how}", title, caption)
        figures.append(Figure(title, caption, curves(head, series, stages(result), axis)))
    return figures


def hospital_curves(result: Result) -> Figure:
    """Mean accuracy on the tasks met so far, hospital by hospital."""
    whole, final = result.known.whole(), hospital_accuracy(result.known)
    met = (seen_accuracy(Matrix(r, whole.first, whole.last)) for r in np.moveaxis(result.accuracy, 2, 0))
    rows = np.array(list(met)).reshape(len(result.hospitals), -1)
    caption = "Mean accuracy on the tasks met so far, each hospital on its own test data."
    if len(rows) <= MANY:
        series = [_line(h, rows[c], colour(c)) for c, h in enumerate(result.hospitals)]
    else:
        series = [_line("", row, "quiet") for row in rows]
        if np.isfinite(final).any():
            caption += " Named: the best and the worst hospital in the end, and the mean of all."
            best, worst = int(np.nanargmax(final)), int(np.nanargmin(final))
            series.append(_line(result.hospitals[best], rows[best], "c2"))
            series.append(_line("mean", np.array([mean(column) for column in rows.T]), "c0 strong"))
            series.append(_line(result.hospitals[worst], rows[worst], "c1"))
    axis = accuracy_axis(rows.ravel().tolist(), "mean test accuracy, task known")
    title = "Hospitals over the stages, task known"
    head = Head("hospitals-over-stages", title, caption)
    return Figure(title, caption, curves(head, series, stages(result), axis))


def _line(label: str, values: Floats, class_: str) -> Series:
    return Series(label, [(s + 1.0, float(v)) for s, v in enumerate(values)], class_)


def merging(result: Result) -> Figure:
    """Per hospital: own model → merged → after the final stage."""
    last = result.last
    own, merged, final = np.full((3, *last.shape), np.nan)
    t, c = np.nonzero(last >= 0)
    if len(result.accuracy):
        own[t, c], merged[t, c] = result.local[last[t, c], t, c], result.accuracy[last[t, c], t, c]
        final[t, c] = result.accuracy[-1, t, c]
    use = np.isfinite(own + merged + final)
    marks = [
        (label, np.array([mean(a[use[:, h], h]) for h in range(last.shape[1])]))
        for label, a in (("own model", own), ("merged", merged), ("after the final stage", final))
    ]
    rows, marks = _most(list(result.hospitals), marks)
    axis = accuracy_axis(np.concatenate([v for _, v in marks]).tolist(), "test accuracy, task known")
    title = "What merging and learning on cost"
    caption = (
        "Mean over a hospital's tasks, task known: its own model after training, the merged model of that "
        "stage (the step is spatial forgetting), and the model after the final stage (temporal forgetting)."
    )
    if len(rows) < len(result.hospitals):
        caption += f" The mean of all hospitals, and the {len(rows) - 1} that lost most."
    return Figure(title, caption, ranges(Head("merging", title, caption), rows, marks, axis))


def _most(rows: list[str], marks: list[Mark], most: int = 12) -> tuple[list[str], list[Mark]]:
    """Many hospitals: their mean, and those that lost most."""
    if len(rows) <= most + 1:
        return rows, marks
    order = np.argsort(marks[-1][1] - marks[0][1], kind="stable")[:most]  # NaN comes last
    few = [(label, np.concatenate([[mean(v)], v[order]])) for label, v in marks]
    return ["mean of all", *(rows[h] for h in order)], few
