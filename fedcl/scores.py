"""Hospitals' counts → rows of the accuracy matrix, per hospital and on the pooled test data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fedcl.contracts import Params
from fedcl.evaluate import auroc, balanced


def table(replies: Sequence[Params]) -> list[dict[str, Any]]:
    """Rows {client, task, name, value} with client None for all hospitals together.

    Args:
        replies: `<hospital>.<task>.answers` [C, 3] and `<hospital>.<task>.scores` [C or 1, 2, bins], integers.
    """
    rows: list[dict[str, Any]] = []
    pooled: dict[str, tuple[Tensor, Tensor]] = {}
    for reply in replies:
        for key, answers in reply.items():
            hospital, task, kind = key.split(".")
            if kind != "answers":
                continue
            scores = reply[f"{hospital}.{task}.scores"]
            rows += _rows(int(hospital), task, answers, scores)
            if task in pooled:
                pooled[task] = (pooled[task][0] + answers, pooled[task][1] + scores)
            else:
                pooled[task] = (answers, scores)
    for task, (answers, scores) in pooled.items():
        rows += _rows(None, task, answers, scores)
    return rows


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
