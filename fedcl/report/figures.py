"""What the model knows of each task over the stages, and what it forgot: Result → Figure. Pure.

Stages and rounds count from 1 here, as people do, and from 0 in metrics.jsonl.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from fedcl.metrics import Floats, Matrix, Scores, mean, peak_forgetting
from fedcl.report.bars import ranges
from fedcl.report.charts import Series, curves
from fedcl.report.heat import Look, heat
from fedcl.report.layout import Data, Figure, Switch, Value
from fedcl.report.svg import Axis, Head, accuracy_axis, colour, percent
from fedcl.results import Result

WAYS = ("known", "inferred")
HOSPITAL, TASK = "hospital", "task"  # the switches' names


def names(result: Result) -> list[str]:
    """The tasks' titles."""
    return [task.title if task.title != task.id else f"task {t + 1}" for t, task in enumerate(result.tasks)]


def switches(result: Result) -> list[Switch]:
    """What a reader can choose."""
    return [
        Switch(HOSPITAL, "Hospital", distinct(["all hospitals, pooled", *result.hospitals])),
        Switch(TASK, "Task", distinct(["all tasks", *names(result)])),
    ]


def distinct(labels: Sequence[str]) -> list[str]:
    """Labels that occur more than once get a number."""
    met: Counter[str] = Counter()
    told = []
    for label in labels:
        met[label] += 1
        told.append(label if met[label] == 1 else f"{label} ({met[label]})")
    return told


def say(fraction: float) -> str:
    """A fraction in words: "87.3 %" or "not defined"."""
    return percent(fraction, 1) if np.isfinite(fraction) else "not defined"


def per_hospital(result: Result, scores: Scores, rows: Callable[[Matrix], list[list[Value]]]) -> list[list[Value]]:
    """Rows of a figure's data for all hospitals pooled, then for each of them, as the hospital switch has them."""
    views = switches(result)[0].views
    alone = len(views) == 2  # one hospital: the pooled samples are its own
    matrices = [scores.whole(), *(scores.hospital(c) for c in range(0 if alone else len(result.hospitals)))]
    return [[view, *row] for view, matrix in zip(views, matrices, strict=False) for row in rows(matrix)]


def matrices(result: Result) -> list[Figure]:
    """R[after stage, on task] of all hospitals pooled, or of one."""
    tasks, last = names(result), result.learned_at
    digits = 0 if len(tasks) > 12 else 1
    figures = []
    for how, scores in zip(WAYS, (result.known, result.unknown), strict=True):
        values = scores.pooled

        def about(s: int, t: int, values: Floats = values) -> str:
            return f"After stage {s + 1}, on task {tasks[t]}: {say(float(values[s, t]))}"

        stages = [str(s + 1) for s in range(len(values))]
        look = Look(stages, tasks, "after stage", "on task", lambda v: f"{100 * v:.{digits}f}", about, digits=digits)
        title = f"Accuracy in per cent, task {how}"
        final = say(mean(scores.whole().final))
        spoken = f"Accuracy on each task after each stage, task {how}; mean in the end {final}."
        outline = np.arange(len(values))[:, None] == last[None, :]
        svg = heat(Head(f"matrix-{how}", title, spoken), values, look, outline)
        caption = f"Test data, task {how}. A border: the stage in which a task was last trained."
        data = Data(("hospital", "after stage", *tasks), per_hospital(result, scores, _by_stage))
        wide = len(tasks) > 12
        figures.append(Figure(f"matrix-{how}", title, caption, svg, data, wide, "heat", HOSPITAL))
    return figures


def _by_stage(matrix: Matrix) -> list[list[Value]]:
    return [[s + 1, *map(_exact, row)] for s, row in enumerate(matrix.values)]


def _exact(value: float) -> float:
    return round(float(value), 4)


def forgetting(result: Result) -> list[Figure]:
    """Per task: the best it ever was, as it was just learned, and what is left."""
    labels = ("best ever", "just learned", "final")
    figures = []
    for how, scores in zip(WAYS, (result.known, result.unknown), strict=True):
        three = _drop(scores.whole())
        title = f"Forgetting per task, task {how}"
        lost = zip(names(result), three[2] - three[0], strict=True)
        about = "; ".join(f"{t}: {100 * d:+.1f} points" for t, d in lost if np.isfinite(d))
        head = Head(f"forgetting-{how}", title, about or "No task is old enough to have been forgotten.")
        caption = f"Test data, task {how}. The number is final − best."
        axis = accuracy_axis(np.concatenate(three).tolist(), "test accuracy")
        svg = ranges(head, names(result), list(zip(labels, three, strict=True)), axis)

        def rows(matrix: Matrix) -> list[list[Value]]:
            columns = zip(*_drop(matrix), strict=True)
            return [[task, *map(_exact, three)] for task, three in zip(names(result), columns, strict=True)]

        data = Data(("hospital", "task", *labels), per_hospital(result, scores, rows))
        figures.append(
            Figure(head.id, title, caption, svg, data, kind="ranges", switch=HOSPITAL, marks=TASK)
        )  # fmt: skip
    return figures


def _drop(m: Matrix) -> tuple[Floats, Floats, Floats]:
    return m.final + peak_forgetting(m), np.where(m.old, m.learned, np.nan), m.final


def stages(result: Result) -> Axis:
    """The finished stages."""
    last = float(max(len(result.accuracy), 2))
    return Axis("after stage", 1.0, last, lambda v: f"{v:.0f}", whole=True)


def task_curves(result: Result) -> list[Figure]:
    """Test accuracy of each task over the stages."""
    first = result.known.whole().first
    met = [t for t in range(len(first)) if first[t] >= 0]
    labels = names(result)
    figures = []
    for how, scores in zip(WAYS, (result.known, result.unknown), strict=True):

        def rows(matrix: Matrix) -> list[list[Value]]:
            values = matrix.values
            return [
                [s + 1, *(_exact(values[s, t]) if s >= first[t] else float("nan") for t in met)]
                for s in range(len(values))
            ]

        title = f"Each task over the stages, task {how}"
        caption = f"Test data, task {how}, from the stage in which the task was met."
        whole = rows(scores.whole())
        series = [
            Series(labels[t], [(float(row[0]), float(row[k + 1])) for row in whole], colour(t))
            for k, t in enumerate(met)
        ]
        axis = accuracy_axis([p[1] for s in series for p in s.points], "test accuracy")
        svg = curves(Head(f"curves-{how}", title, caption), series, stages(result), axis)
        columns = ("hospital", "after stage", *(labels[t] for t in met))
        data = Data(columns, per_hospital(result, scores, rows))
        figures.append(Figure(f"curves-{how}", title, caption, svg, data, False, "curves", HOSPITAL, TASK))
    return figures


def balance(result: Result) -> Figure:
    """Plasticity, stability and what comes of the two, stage by stage."""
    labels = ("plasticity", "stability", "average accuracy")
    past = [result.until(s).known for s in range(len(result.accuracy))]

    def three(m: Matrix) -> list[float]:
        return [mean(np.where(m.seen, m.learned, np.nan)), 1 - mean(peak_forgetting(m)), mean(m.final)]

    views = switches(result)[0].views
    which = [-1, *range(len(result.hospitals))] if len(views) > 2 else [-1]
    data: list[list[Value]] = []
    for view, c in zip(views, which, strict=False):
        for s, scores in enumerate(past):
            data.append([view, s + 1, *map(_exact, three(scores.whole() if c < 0 else scores.hospital(c)))])
    whole = data[: len(past)]
    series = [
        Series(label, [(float(row[1]), float(row[k + 2])) for row in whole], f"c{k}{' strong' if k == 2 else ''}")
        for k, label in enumerate(labels)
    ]
    title = "Plasticity against stability, task known"
    caption = (
        "Plasticity: mean accuracy on each task as it was just learned. Stability: 1 − mean forgetting since a task's "
        "best stage. A method trades one for the other; the average accuracy is what comes of it."
    )
    axis = accuracy_axis([p[1] for s in series for p in s.points], "fraction")
    svg = curves(Head("balance", title, caption), series, stages(result), axis)
    return Figure(
        "balance", title, caption, svg, Data(("hospital", "after stage", *labels), data), False, "curves", HOSPITAL
    )
