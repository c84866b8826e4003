"""What a method may ask of the net beside its task: old answers, and each sample by its own task's head."""

from __future__ import annotations

import pytest
import torch

from fedcl import federation
from fedcl.config import Config
from fedcl.contracts import Job
from fedcl.models.dynamic_net import SHARED
from fedcl.net import Net

TASKS = {
    "stream": {"tasks": 3},
    "partition": {"name": "iid"},
    "data": {"name": "synthetic", "options": {"samples": 180, "classes": 6, "shape": [5]}},
}


def _net(**model):
    config = Config.model_validate(TASKS | {"model": {"options": {"hidden": [4]}, **model}})
    net = Net(config, federation.build(config), torch.device("cpu"))
    for task in net.tasks.values():
        if not net.net.has(task.id):
            net.net.add_task(task.id, 2, 3)
    net.load(dict(net.net.state_dict()))
    return net


def _ask(net, seen=(0, 1, 2, 3)):
    job = Job("train", 1, 0, ("t1",), {}, past=("t0",), seen=seen)
    net.allow(net.tasks["t1"], seen)
    return net.answers(net.tasks["t1"], job)


X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
INDEX = torch.tensor([0, 1, 0, 1, 1, 0])


def test_parameters_come_in_one_order_however_the_modules_came():
    """Sums over them follow it: a resumed run adds all modules at once, another worker in the order of its jobs."""
    config = Config.model_validate(TASKS | {"model": {"options": {"hidden": [4]}}})
    held, orders = federation.build(config), []
    for order in (("t0", "t1", "t2"), ("t2", "t0", "t1")):
        net = Net(config, held, torch.device("cpu"))
        for task in order:
            net.load(net.fresh(task))
        orders.append([name for name, _ in net.parameters(net.train_only(dict(net.net.named_parameters())))])
    assert orders[0] == orders[1]


@pytest.mark.parametrize("masks", ["none", "units", "weights"])
def test_each_sample_is_answered_by_its_own_task(masks):
    net = _net(masks=masks)
    found = _ask(net)["each"]({}, X, INDEX)
    for row, task in enumerate(INDEX.tolist()):
        torch.testing.assert_close(found[row], net.net(X[row : row + 1], f"t{task}")[0])


def test_in_one_head_each_sample_sees_the_classes_that_its_task_may():
    net = _net(heads="shared", mask="task")
    net.net.allow(None)
    raw = net.net(X, SHARED)
    found = _ask(net)["each"]({}, X, INDEX)
    for row, task in enumerate(INDEX.tolist()):
        own = slice(2 * task, 2 * task + 2)
        torch.testing.assert_close(found[row, own], raw[row, own])
        assert found[row].isneginf().sum() == 4


def test_asymmetric_opens_all_classes_met_for_what_is_replayed_only():
    net = _net(heads="shared", mask="asymmetric")
    asks = _ask(net)
    replayed, new = asks["each"]({}, X, INDEX), asks["forward"]({}, X)
    net.net.allow(None)
    raw = net.net(X, SHARED)
    torch.testing.assert_close(replayed[:, :4], raw[:, :4])
    assert replayed[:, 4:].isneginf().all()
    torch.testing.assert_close(new[:, 2:4], raw[:, 2:4])
    assert new[:, [0, 1, 4, 5]].isneginf().all()
    torch.testing.assert_close(asks["each"]({}, X, INDEX, whole=True), raw)


@pytest.mark.parametrize(("mask", "shapes"), [("task", [2]), ("seen", [2]), ("all", [2])])
def test_old_answers_are_about_old_classes_only(mask, shapes):
    net = _net(heads="shared", mask=mask)
    found = _ask(net)["old"]({}, X)
    assert [logits.shape[1] for logits in found] == shapes
    net.net.allow(None)
    torch.testing.assert_close(found[0], net.net(X, SHARED)[:, :2])


def test_asking_leaves_a_shared_head_as_it_was():
    net = _net(heads="shared", mask="task")
    asks = _ask(net)
    before = net.net(X, "t1")
    asks["old"]({}, X, teacher=True)
    asks["each"]({}, X, INDEX)
    assert torch.equal(net.net(X, "t1"), before)
    assert before[:, :2].isneginf().all()


def test_a_teacher_takes_no_gradient_and_drops_nothing():
    config = Config.model_validate(TASKS | {"model": {"options": {"hidden": [4], "dropout": 0.5}}})
    net = Net(config, federation.build(config), torch.device("cpu"))
    for task in net.tasks.values():
        net.net.add_task(task.id, 2, 3)
    net.load(dict(net.net.state_dict()))
    net.net.train()
    taught = _ask(net)["old"]({}, X, teacher=True)[0]
    assert not taught.requires_grad
    assert net.net.training
    torch.testing.assert_close(taught, net.net.eval()(X, "t0").detach())


def test_by_place_labels_are_places_and_no_class_is_closed():
    net = _net(heads="domain")
    assert net.outputs == 2
    assert net.labels(net.tasks["t2"], torch.tensor([4, 5, 4])).tolist() == [0, 1, 0]
    assert net.net.head(net.net.features(X), SHARED).isfinite().all()


def test_domain_incremental_is_scored_by_place(run):
    result = run("domain", model={"heads": "domain"})
    assert (result.pooled == result.pooled_inferred).all()
    assert result.pooled[-1].min() > 0.3
