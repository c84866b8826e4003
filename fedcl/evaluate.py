"""Scoring a model on a hospital's own data: integer counts, so that hospitals' results add up exactly.

Per task: right answers by class, with the task known and with the task inferred, and a histogram of scores from
which AUROC follows. Counts are all that leaves the hospital.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedcl import infer
from fedcl.contracts import Batch, Params, Task
from fedcl.models.dynamic_net import SHARED, DynamicNet

BINS = 256
SUM = "sum"  # in the place of a hospital's number: all of them together
_RANGE = math.asinh(1000.0)  # bins are even in asinh(log-odds): narrow about 0, and up to log-odds of ±1000
_CHUNK = 4096


@torch.no_grad()
def accuracy(net: DynamicNet, task: Task, data: Batch) -> float:
    """Share of right answers with the task known, in [0, 1]; `data.y` holds the module's outputs."""
    net.eval()
    parts = zip(torch.split(data.x, _CHUNK), torch.split(data.y, _CHUNK), strict=True)
    right = sum(int((net(x, task.id).argmax(1) == y).sum()) for x, y in parts)
    return right / max(len(data.y), 1)


@torch.no_grad()
def known(net: DynamicNet, task: Task, x: Tensor) -> Tensor:
    """The logits of the task's own classes with the task known: [n, C], in the order of `task.classes`."""
    net.eval()
    return own(net, task, _logits(net, [task], x)[task.id])


@torch.no_grad()
def wrong(net: DynamicNet, task: Task, data: Batch) -> Tensor:
    """Which of these labels the net, told the task, would not give, [n] bool; `data.y` holds global class ids."""
    guess = known(net, task, data.x).argmax(1)
    return torch.tensor(task.classes)[guess] != data.y


@torch.no_grad()
def losses(net: DynamicNet, task: Task, data: Batch) -> Tensor:
    """Cross-entropy of each sample [n], in the mode that the net is in; `data.y` holds the module's outputs."""
    parts = zip(torch.split(data.x, _CHUNK), torch.split(data.y, _CHUNK), strict=True)
    return torch.cat([torch.nn.functional.cross_entropy(net(x, task.id), y, reduction="none") for x, y in parts])


@torch.no_grad()
def count(
    net: DynamicNet,
    tasks: Sequence[Task],
    seen: Sequence[int],
    data: Sequence[tuple[Task, Batch]],
    rule: str = "auto",
    prepared: Params | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Counts over one hospital's test data of several tasks.

    Args:
        net: with a module for each of `tasks` (or a shared head).
        tasks: those that the rule may choose from.
        seen: global ids of the classes that a shared head knows.
        data: (task, its samples with global class ids).
        rule: how the task is inferred, see `infer`.
        prepared: what `infer.prototypes` needs, see `infer.prepare`.

    Returns:
        task id → (answers [C, 3] int32: samples, right with the task known, right with it inferred, by true class;
        scores [C or 1, 2, BINS] int32: log-odds of a class where it is not (0) and is (1) the true one).
    """
    net.eval()
    result: dict[str, tuple[Tensor, Tensor]] = {}
    for group in _grouped([(task, batch) for task, batch in data if len(batch.y)]):
        x = torch.cat([batch.x for _, batch in group]) if len(group) > 1 else group[0][1].x
        answers = _logits(net, tasks, x)
        guess: Tensor | None = None  # by place a class has no meaning without its task, and needs none
        if net.owner("") != SHARED:
            guess = infer.predict(rule, tasks, answers, x, prepared or {})
        elif not net.by_place():
            chosen = torch.tensor(sorted(seen))
            guess = chosen[_joined(tasks, answers)[:, chosen].argmax(1)]
        start = 0
        for task, batch in group:
            rows = slice(start, start := start + len(batch.y))
            shown = own(net, task, answers[task.id][rows])
            result[task.id] = _counted(task, shown, batch.y.cpu(), None if guess is None else guess[rows])
    return result


def blank(tasks: Sequence[Task]) -> Params:
    """No samples of any task, as `<task>.answers` and `<task>.scores`, see `count`."""
    found: Params = {}
    for task in tasks:
        classes = len(task.classes)
        found[f"{task.id}.answers"] = torch.zeros(classes, 3, dtype=torch.int32)
        found[f"{task.id}.scores"] = torch.zeros(classes if classes > 2 else 1, 2, BINS, dtype=torch.int32)
    return found


def _grouped(data: Sequence[tuple[Task, Batch]]) -> Iterator[list[tuple[Task, Batch]]]:
    """Batches that are answered in one go: few samples together, many alone, so that they need not be copied."""
    group: list[tuple[Task, Batch]] = []
    rows = 0
    for task, batch in data:
        if group and rows + len(batch.y) > _CHUNK:
            yield group
            group, rows = [], 0
        group.append((task, batch))
        rows += len(batch.y)
    if group:
        yield group


def _counted(task: Task, own: Tensor, y: Tensor, guess: Tensor | None) -> tuple[Tensor, Tensor]:
    """(answers, scores) from the logits of the task's classes [n, C], global class ids and guesses of them [n]."""
    classes = torch.tensor(task.classes)
    truth = (y[:, None] == classes).int().argmax(1)
    known = own.argmax(1) == truth
    hits = torch.stack([torch.ones_like(known), known, known if guess is None else guess == y], 1).int()
    answers = torch.zeros(len(classes), 3, dtype=torch.int32).index_add_(0, truth, hits)
    return answers, _histogram(own, truth)


def own(net: DynamicNet, task: Task, logits: Tensor) -> Tensor:
    """The columns of the task's classes [n, C]: all, or some of a head that tasks share."""
    if net.owner("") != SHARED:
        return logits
    return logits[:, : len(task.classes)] if net.by_place() else logits[:, list(task.classes)]


def _logits(net: DynamicNet, tasks: Sequence[Task], x: Tensor) -> dict[str, Tensor]:
    """What the net answers for each task, on the host: [n, outputs]; of a shared head with all classes open."""
    if net.owner("") == SHARED:
        net.allow(None)
    if net.owner("") == SHARED and net.masks == "none":  # every task's answer is the same
        same = torch.cat([net(part, SHARED) for part in torch.split(x, _CHUNK)]).cpu()
        return {task.id: same for task in tasks}
    names = [task.id for task in tasks]
    parts = [net(part, names) for part in torch.split(x, _CHUNK)]
    return {name: torch.cat(columns).cpu() for name, columns in zip(names, zip(*parts, strict=True), strict=True)}


def _joined(tasks: Sequence[Task], logits: dict[str, Tensor]) -> Tensor:
    """Each class's logit as its own task sees it [n, C]; the largest, where several tasks have the class."""
    joined = torch.full_like(logits[tasks[0].id], -math.inf)
    for task in tasks:
        classes = list(task.classes)
        joined[:, classes] = torch.maximum(joined[:, classes], logits[task.id][:, classes])
    return joined


def auroc(scores: Tensor) -> float:
    """Area under the ROC curve from a histogram [C or 1, 2, BINS], one class against the rest, mean over classes.

    The Mann-Whitney statistic with ties at one half: exact up to the bins (0.06 in asinh(log-odds)). NaN without both.
    """
    areas = []
    for negative, positive in scores.double():
        n, p = negative.sum(), positive.sum()
        if n > 0 and p > 0:
            below = negative.cumsum(0) - negative
            areas.append(float((positive * (below + 0.5 * negative)).sum() / (n * p)))
    return sum(areas) / len(areas) if areas else float("nan")


def balanced(answers: Tensor) -> float:
    """Mean recall over the classes that occur, from counts [C, 3]; NaN without samples."""
    n, right = answers[:, 0].double(), answers[:, 1].double()
    present = n > 0
    return float((right[present] / n[present]).mean()) if bool(present.any()) else float("nan")


def _histogram(logits: Tensor, truth: Tensor) -> Tensor:
    classes = logits.shape[1]
    if classes == 1:
        return torch.zeros(1, 2, BINS, dtype=torch.int32)
    odds = _log_odds(logits.double())
    bins = ((torch.asinh(odds) / _RANGE).clamp(-1, 1 - 1e-6) + 1) * (BINS / 2)
    bins = bins.long()
    rows = torch.arange(classes)
    if classes == 2:  # the second class's log-odds say it all
        bins, rows = bins[:, 1:], rows[1:]
    is_class = (truth[:, None] == rows).long()
    index = (torch.arange(len(rows)) * 2 + is_class) * BINS + bins
    counts = torch.zeros(len(rows) * 2 * BINS, dtype=torch.int32)
    counts.index_add_(0, index.flatten(), torch.ones(index.numel(), dtype=torch.int32))
    return counts.reshape(len(rows), 2, BINS)


def _log_odds(logits: Tensor) -> Tensor:
    """Log p_c − log(1 − p_c) of each class, [n, C]; exact also where a net is so sure that 1 − p_c rounds to 0."""
    logp = logits.log_softmax(1)
    top = logp.argmax(1, keepdim=True)
    others = logp.scatter(1, top, -math.inf).logsumexp(1, keepdim=True)
    rest = torch.log1p(-logp.exp().clamp_max(0.5))  # all but the top class are at most ½
    return logp - rest.scatter(1, top, others)
