"""What holds for every method: written once, over the plug-ins of the folder."""

from __future__ import annotations

import random

import pytest
import torch
from small import assert_same, model, stop_after

from fedcl import plugins
from fedcl.config import Config
from fedcl.runtime.inline import InlineGrid
from fedcl.simulation import Interrupted, simulate

METHODS = plugins.names("methods")
RULES = {f"{name} of trunks": {"federation": {"aggregator": name}} for name in plugins.names("aggregators")}
RULES |= {f"{name} of modules": {"federation": {"merger": name}} for name in plugins.names("mergers")}
# Whose module is whose differs from stage to stage, and modules of earlier tasks train along.
BACK = {"method": "replay", "stream": {"schedule": "table", "table": [[0, 1, 0], [1, 0, -1], [2, 1, 2]]}}
KINDS = {name: {"method": name} for name in METHODS} | {name: BACK | rule for name, rule in RULES.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_twice(run, kind):
    assert_same(run("a", **KINDS[kind]), run("b", **KINDS[kind]))


def test_another_seed_is_another_run(run):
    one, two = model(run("a")), model(run("b", seed=4))
    assert not all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_resumed_is_uninterrupted(run, small, tmp_path, method, rounds, monkeypatch):
    whole = run("whole", method=method)
    config = small(method=method, run={"output": str(tmp_path / "parts"), "checkpoint_every": 1})
    stop_after(monkeypatch, rounds)
    with pytest.raises(Interrupted):
        simulate(config)
    monkeypatch.undo()
    assert_same(whole, simulate(config))


@pytest.mark.parametrize("reset", ["task", "never"])
def test_optimiser_state_survives_a_resume(run, small, tmp_path, reset, monkeypatch):
    train = {"reset": reset, "optimizer": "adam", "lr": 0.01}
    whole = run("whole", train=train)
    config = small(train=train, run={"output": str(tmp_path / "parts"), "checkpoint_every": 1})
    stop_after(monkeypatch, 3)
    with pytest.raises(Interrupted):
        simulate(config)
    monkeypatch.undo()
    assert_same(whole, simulate(config))
    forgetful = model(run("round", train=train | {"reset": "round"}))
    assert any(not torch.equal(value, forgetful[name]) for name, value in model(whole).items())


@pytest.mark.parametrize("saves", [1, 3, 4])  # within the first stage, after it, within the second
@pytest.mark.parametrize("reset", ["round", "never"])
def test_what_the_server_remembers_survives_a_resume(run, small, tmp_path, reset, saves, monkeypatch):
    changes = {"train": {"reset": reset}, "federation": {"aggregator": "fedadam", "merger": "fedavgm"}}
    whole = run("whole", method="finetune", **changes)
    config = small(method="finetune", **changes, run={"output": str(tmp_path / "parts"), "checkpoint_every": 1})
    stop_after(monkeypatch, saves)
    with pytest.raises(Interrupted):
        simulate(config)
    monkeypatch.undo()
    assert_same(whole, simulate(config))


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_arrival_does_not_matter(run, kind, monkeypatch):
    straight = run("straight", **KINDS[kind])
    pull = InlineGrid.pull_messages
    shuffle = random.Random(0)

    def shuffled(self, message_ids):
        ids = list(message_ids)
        shuffle.shuffle(ids)
        return pull(self, ids)

    monkeypatch.setattr(InlineGrid, "pull_messages", shuffled)
    assert_same(straight, run("shuffled", **KINDS[kind]))


def test_freeze_forgets_nothing_and_finetune_most(tmp_path):
    """On the real digits, short: what a stranger would try first, and reads in the report."""
    results = {}
    for method in ("freeze", "ewc", "finetune"):
        output = {"output": str(tmp_path / method)}
        train = {"rounds": 4, "epochs": 3, "lr": 0.1}
        config = Config.model_validate({"method": method, "train": train, "run": output, "stream": {"tasks": 3}})
        results[method] = simulate(config)
    forgetting = {method: result.metrics["forgetting"] for method, result in results.items()}
    assert forgetting["freeze"] == 0.0
    assert forgetting["finetune"] == max(forgetting.values())
    assert forgetting["finetune"] > 0.02
    report = (results["finetune"].path / "report.html").read_text()
    assert f"{100 * forgetting['finetune']:.1f}" in report


def test_frozen_tensors_do_not_move_by_a_bit(run, small, tmp_path):
    train = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1}
    short = run("short", method="freeze", train=train, stream={"classes": [[0, 1]], "tasks": 1})
    long = run("long", method="freeze", train=train, stream={"classes": [[0, 1], [2, 3]], "tasks": 2})
    first, second = model(short), model(long)
    for name in first:
        if name.startswith(("trunk.", "tasks.t0", "gates.t0")):
            assert torch.equal(first[name], second[name]), name


def test_old_modules_stay_while_the_trunk_moves(run):
    short = model(run("short", method="finetune", stream={"classes": [[0, 1]], "tasks": 1}))
    long = model(run("long", method="finetune", stream={"classes": [[0, 1], [2, 3]], "tasks": 2}))
    assert not torch.equal(short["trunk.layers.0.weight"], long["trunk.layers.0.weight"])
    for name in short:
        if name.startswith(("tasks.t0", "gates.t0")):
            assert torch.equal(short[name], long[name]), name


def test_a_hospital_without_the_task_leaves_its_module_alone(run):
    """t1 belongs to hospital 2 alone: whatever 0 and 1 hold of t0, t1's module is the same."""
    table = [[0, 0, -1], [-1, -1, 1]]
    stream = {"tasks": 2, "classes": [[0, 1, 2], [3, 4, 5]], "schedule": "table", "table": table}
    both = run("both", method="freeze", methods={"freeze": {"after": 0}}, stream=stream)
    table = [[0, -1, -1], [-1, -1, 1]]
    alone = run("alone", method="freeze", methods={"freeze": {"after": 0}}, stream=stream | {"table": table})
    for name, value in model(alone).items():
        if name.startswith(("tasks.t1", "gates.t1", "trunk.")):
            assert torch.equal(value, model(both)[name]), name
