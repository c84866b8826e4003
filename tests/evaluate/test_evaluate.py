"""Counts and what follows from them, against scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from fedcl import evaluate, infer, scores
from fedcl.contracts import Batch, Task


class Fixed(torch.nn.Module):
    """A net whose features are the sample and whose heads read their part of it."""

    def __init__(self, tasks):
        super().__init__()
        self.slices = {task.id: list(task.classes) for task in tasks}

    def owner(self, task):
        return task

    def by_place(self):
        return False

    def forward(self, x, tasks):
        return [x[:, self.slices[task]] for task in tasks]


TASKS = (Task("t0", 0, (0, 1)), Task("t1", 1, (2, 3, 4)))


def _scored(seed=0, n=400):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(5, (n,), generator=generator)
    x = torch.randn(n, 5, generator=generator) + 1.5 * torch.nn.functional.one_hot(y, 5)
    return x, y


def _count(x, y, **options):
    data = [(task, Batch(*(v[torch.isin(y, torch.tensor(task.classes))] for v in (x, y)))) for task in TASKS]
    return evaluate.count(Fixed(TASKS), TASKS, range(5), data, **options), data


def test_against_scikit_learn():
    x, y = _scored()
    counted, data = _count(x, y, rule="entropy")
    for task, batch in data:
        answers, histogram = counted[task.id]
        local = batch.y - task.classes[0]
        logits = batch.x[:, list(task.classes)]
        assert answers[:, 0].tolist() == torch.bincount(local).tolist()
        assert answers[:, 1].sum().item() == int((logits.argmax(1) == local).sum())
        expected = balanced_accuracy_score(local, logits.argmax(1))
        assert evaluate.balanced(answers) == pytest.approx(expected)
        p = logits.softmax(1).numpy()
        many = {"multi_class": "ovr"} if len(task.classes) > 2 else {}
        area = roc_auc_score(local, p if many else p[:, 1], **many)
        assert evaluate.auroc(histogram) == pytest.approx(area, abs=2e-3)  # bins of 0.06 in asinh(log-odds)


def test_auroc_of_a_net_that_is_sure_of_itself():
    x, y = _scored()
    counted, data = _count(50 * x, y)
    for task, batch in data:
        logits, areas = 50 * batch.x[:, list(task.classes)].double(), []
        for place, label in enumerate(task.classes):  # beyond the precision of p, ranks follow the log-odds
            others = [other for other in range(len(task.classes)) if other != place]
            odds = logits[:, place] - logits[:, others].logsumexp(1)
            areas.append(roc_auc_score((batch.y == label).numpy(), odds.numpy()))
        assert evaluate.auroc(counted[task.id][1]) == pytest.approx(sum(areas) / len(areas), abs=5e-3)


def test_everything_ends_on_the_host(monkeypatch):
    """Shapes and devices of a GPU run, without a GPU: tensors that only say where they would be."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        data = [
            (task, Batch(torch.zeros(4, 5, device="cuda"), torch.full((4,), task.classes[0], device="cuda")))
            for task in TASKS
        ]
        monkeypatch.setattr(infer, "_projection", lambda inputs: torch.zeros(inputs, infer.WIDTH))
        prepared = {"whiten": torch.eye(infer.WIDTH)} | {f"{t.id}.means": torch.zeros(2, infer.WIDTH) for t in TASKS}
        for rule in ("prototypes", "entropy"):
            counted = evaluate.count(Fixed(TASKS), TASKS, range(5), data, rule, prepared)
            assert all(value.device.type == "cpu" for pair in counted.values() for value in pair)


def test_inferred_answers_are_about_the_global_class():
    x, y = _scored()
    counted, _ = _count(x, y, rule="energy")
    surest = torch.stack([x[:, :2].logsumexp(1), x[:, 2:].logsumexp(1)], 1).argmax(1)
    said = torch.where(surest == 0, x[:, :2].argmax(1), 2 + x[:, 2:].argmax(1))
    assert sum(int(answers[:, 2].sum()) for answers, _ in counted.values()) == int((said == y).sum())


def test_pooled_rows_are_sums_of_counts():
    x, y = _scored()
    replies, halves = [], (slice(0, 100), slice(100, 400))
    for hospital, half in enumerate(halves):
        counted, _ = _count(x[half], y[half])
        replies.append({
            f"{hospital}.{task}.{kind}": value
            for task, pair in counted.items()
            for kind, value in zip(("answers", "scores"), pair, strict=True)
        })  # fmt: skip
    rows = {(row["client"], row["task"], row["name"]): row["value"] for row in scores.table(replies)}
    whole, _ = _count(x, y)
    for task, (answers, histogram) in whole.items():
        assert rows[None, task, "n"] == int(answers[:, 0].sum()) == rows[0, task, "n"] + rows[1, task, "n"]
        assert rows[None, task, "accuracy"] == answers[:, 1].sum().item() / answers[:, 0].sum().item()
        assert rows[None, task, "auroc"] == evaluate.auroc(histogram)


def test_nothing_to_score_is_nan_or_absent():
    empty = Batch(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    assert evaluate.count(Fixed(TASKS), TASKS, range(5), [(TASKS[0], empty)]) == {}
    one_class = torch.zeros(1, 2, evaluate.BINS, dtype=torch.int32)
    one_class[0, 1, 3] = 5
    assert math.isnan(evaluate.auroc(one_class))
    assert math.isnan(evaluate.balanced(torch.zeros(2, 3, dtype=torch.int32)))
