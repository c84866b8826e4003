"""Inferring the task: rules by hand, and sums that add up to what pooled data would give."""

from __future__ import annotations

import math

import pytest
import torch

from fedcl import infer
from fedcl.contracts import Batch, FedclError, Task

TASKS = (Task("t0", 0, (0, 1)), Task("t1", 1, (2, 3, 4)))
SURE, UNSURE = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.1, 0.0, 0.0]])


def test_rules_by_hand():
    p = 1 / (1 + math.exp(-4))
    h = (p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)
    assert infer.entropy([SURE, UNSURE])[0, 0].item() == pytest.approx(h)
    assert infer.confidence([SURE, UNSURE])[0, 0].item() == pytest.approx(p)
    assert infer.energy([SURE, UNSURE])[0, 0].item() == pytest.approx(math.log(math.exp(4) + 1))


@pytest.mark.parametrize("rule", infer.RULES)
def test_the_surer_module_answers(rule):
    logits = {"t0": SURE, "t1": UNSURE}
    assert infer.predict(rule, TASKS, logits, torch.zeros(1, 5), {}).tolist() == [0]
    logits = {"t0": torch.tensor([[0.1, 0.0]]), "t1": torch.tensor([[0.0, 5.0, 0.0]])}
    assert infer.predict(rule, TASKS, logits, torch.zeros(1, 5), {}).tolist() == [3]


def _data(task, n, seed):
    """Samples around a mean for each class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(len(task.classes), (n,), generator=generator)
    centre = torch.randn(len(task.classes), 20, generator=torch.Generator().manual_seed(task.index)) * 2
    return Batch(centre[y] + 0.3 * torch.randn(n, 20, generator=generator), y)


def _measure(task, batch):
    return infer.measure(
        "prototypes", task, batch, torch.zeros(0, len(task.classes)), torch.zeros(0, dtype=torch.int64)
    )


def test_hospitals_sums_are_those_of_the_pooled_data():
    parts = [_data(TASKS[0], 40, seed) for seed in (1, 2, 3)]
    pooled = Batch(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))
    merged = infer.merge({}, [_measure(TASKS[0], part) for part in parts])
    for name, value in infer.merge({}, [_measure(TASKS[0], pooled)]).items():
        torch.testing.assert_close(merged[name], value, atol=1e-3, rtol=1e-4)


def test_prototypes_find_the_task_where_outputs_mislead():
    statistics = {}
    for task in TASKS:
        statistics = infer.merge(statistics, [_measure(task, _data(task, 200, 7))])
    prepared = infer.prepare(statistics)
    for task in TASKS:
        test = _data(task, 50, 99)
        logits = {t.id: torch.zeros(50, len(t.classes)) for t in TASKS}
        logits[task.id] = torch.nn.functional.one_hot(test.y, len(task.classes)).float() * 0.1
        other = TASKS[1 - task.index]
        logits[other.id][:, 0] = 50.0  # the wrong module is sure of itself
        said = infer.predict("auto", TASKS, logits, test.x, prepared)
        truth = torch.tensor(task.classes)[test.y]
        assert (said == truth).float().mean() > 0.95
        assert (infer.predict("confidence", TASKS, logits, test.x, {}) == truth).float().mean() < 0.05


def test_a_class_without_samples_is_nobodys_prototype():
    batch = _data(TASKS[1], 60, 3)
    kept = Batch(batch.x[batch.y != 1], batch.y[batch.y != 1])
    prepared = infer.prepare(infer.merge({}, [_measure(TASKS[1], kept)]))
    assert prepared["t1.means"].shape == (2, infer.WIDTH)
    assert all(value.isfinite().all() for value in prepared.values())


def test_temperature_calibrates_an_overconfident_module():
    """Labels are right 3 times in 4, logits say 10:0: the likelihood is best where softmax says 3/4."""
    logits = torch.tensor([[10.0, 0.0]] * 100)
    truth = torch.tensor([0] * 75 + [1] * 25)
    sums = infer.measure("confidence", TASKS[0], Batch(torch.zeros(1, 4), torch.zeros(1)), logits, truth)
    assert set(sums) == {"infer/t0.nll"}
    temperature = infer.prepare(infer.merge({}, [sums]))["t0.temperature"].item()
    best = 10 / math.log(3)
    grid = infer.TEMPERATURES
    assert temperature == pytest.approx(grid[(grid - best).abs().argmin()].item(), rel=0.3)
    prepared = {"t0.temperature": torch.tensor(temperature), "t1.temperature": torch.ones(())}
    sure = {"t0": logits[:1], "t1": torch.tensor([[0.0, 4.0, 0.0]])}
    assert infer.predict("confidence", TASKS, sure, torch.zeros(1, 4), {}).item() == 0
    assert infer.predict("confidence", TASKS, sure, torch.zeros(1, 4), prepared).item() == 3


def test_hospitals_that_meet_a_task_later_add_to_it():
    first, second = _measure(TASKS[0], _data(TASKS[0], 30, 1)), _measure(TASKS[0], _data(TASKS[0], 50, 2))
    statistics = infer.merge(infer.merge({}, [first]), [second])
    assert statistics["t0.count"].sum().item() == 80


def test_no_sum_is_sent_over_too_few_samples():
    """A sum over one sample would be that sample: 256 features of 20 values can be turned around."""
    y = torch.tensor([0] * 4 + [1] * 6)
    x = torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    sent = _measure(TASKS[0], Batch(x, y))
    assert sent["infer/t0.count"].tolist() == [0, 6]
    assert not sent["infer/t0.sum"][0].any()
    alone = _measure(TASKS[0], Batch(x[4:], y[4:]))
    torch.testing.assert_close(sent["infer/t0.outer"], alone["infer/t0.outer"])


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"infer/t0.sum": torch.zeros(2, 3)}, False),
        ({"infer/t9.nll": torch.zeros(21)}, False),
        ({"infer/t0.magic": torch.zeros(1)}, False),
        ({"ewc/new/trunk.w": torch.zeros(7)}, True),
    ],
)
def test_sums_of_another_shape_are_refused(change, fits):
    sent = _measure(TASKS[0], _data(TASKS[0], 30, 1)) | change
    assert (infer.misfit(sent, TASKS) == "") == fits


def test_unknown_rule():
    with pytest.raises(FedclError, match=r"model\.infer"):
        infer.resolve("magic")
