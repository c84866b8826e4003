"""Hospitals' counts → rows of the accuracy matrix, per hospital and on the pooled test data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fedcl.contracts import Params, Task
from fedcl.evaluate import SUM, auroc, balanced, blank


def table(replies: Sequence[Params]) -> list[dict[str, Any]]:
    """Rows {client, task, name, value} with client None for all hospitals together.

    Args:
        replies: `<hospital>.<task>.answers` [C, 3] and `<hospital>.<task>.scores` [C or 1, 2, bins], integers; or in
            each the same `sum.<task>.…` of all hospitals, and then there are no rows of a single one.
    """
    rows: list[dict[str, Any]] = []
    pooled: dict[str, tuple[Tensor, Tensor]] = {}
    for reply in replies:
        for key, answers in reply.items():
            hospital, task, kind = key.split(".")
            if kind != "answers":
                continue
            scores = reply[f"{hospital}.{task}.scores"]
            if hospital == SUM:
                pooled[task] = answers, scores
                continue
            rows += _rows(int(hospital), task, answers, scores)
            if task in pooled:
                pooled[task] = (pooled[task][0] + answers, pooled[task][1] + scores)
            else:
                pooled[task] = (answers, scores)
    for task, (answers, scores) in pooled.items():
        rows += _rows(None, task, answers, scores)
    return rows


def misfit(reply: Params, hospitals: Sequence[int | str], tasks: Sequence[Task]) -> str:
    """Why a client's counts cannot be added; "" if they can.

    Args:
        reply: as in `table`.
        hospitals: those that the client speaks for; or "sum".
        tasks: those that it was asked about.
    """
    like = {f"{hospital}.{name}": value for name, value in blank(tasks).items() for hospital in hospitals}
    for key, value in reply.items():
        cell = key.rpartition(".")[0]
        fits = key in like and value.shape == like[key].shape
        if not fits or value.is_floating_point() or bool((value < 0).any()):
            return f"{key} is no count of a task and hospital that were asked for"
        if f"{cell}.answers" not in reply or f"{cell}.scores" not in reply or not int(reply[f"{cell}.answers"].sum()):
            return f"{cell} has half of its counts"
    return ""


def _rows(client: int | None, task: str, answers: Tensor, scores: Tensor) -> list[dict[str, Any]]:
    n, known, inferred = (int(value) for value in answers.sum(0))
    values = {
        "n": n,
        "accuracy": known / n,
        "accuracy_inferred": inferred / n,
        "balanced_accuracy": balanced(answers),
        "auroc": auroc(scores),
    }
    return [{"client": client, "task": task, "name": name, "value": value} for name, value in values.items()]
