"""Growth in a federation: together, apart, and without a change of what earlier tasks say."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from small import TINY, merged, model

from fedcl import federation as federations
from fedcl import growing, methods
from fedcl.client import Client
from fedcl.config import Config
from fedcl.contracts import FedclError
from fedcl.defaults import fill
from fedcl.finish import restore
from fedcl.rescore import rescore
from fedcl.server import Server
from fedcl.simulation import simulate

STALLED = {"ratio": 0.99, "window": 1, "patience": 2, "smallest": 0.0}
RULES = {
    "threshold": STALLED | {"where": "both"},
    "progressive": STALLED,
    "search": {"candidates": 4},
    "prune": {"at": 0.5},
    "den": {"above": 0.0, "split": 0.01},
}


def _growing(rule, **more):
    return merged({"train": {"rounds": 4}, "model": {"growth": rule}, "growth": {rule: RULES[rule]}}, **more)


@pytest.mark.parametrize("rule", RULES)
def test_all_hospitals_hold_one_structure_also_who_was_absent(run, rule, monkeypatch):
    """Half of the hospitals train in a round; when all are asked again, all have the same net."""
    held, work = {}, Client.run

    def watched(self, client, job):
        update = work(self, client, job)
        shapes = {name: value.shape for name, value in self.net.state_dict().items() if name in job.arrays}
        held[client, job.phase, job.round] = shapes
        return update

    monkeypatch.setattr(Client, "run", watched)
    result = run(rule, **_growing(rule, federation={"clients": 4, "fraction": 0.5}))
    last = max(number for _, phase, number in held if phase == "evaluate")
    final = {name: value.shape for name, value in model(result).items() if not name.startswith("infer.")}
    for client in range(4):
        assert held[client, "evaluate", last] == final
    trained = [{client for client, phase, number in held if (phase, number) == ("train", k)} for k in range(12)]
    assert all(len(clients) == 2 for clients in trained)  # so two were absent whenever it grew


def test_a_federation_grows_wider_layers_then_heads_then_adapters(tmp_path):
    """One step in each of three stages; whoever answers last knows all of them."""
    options = {"dim": 16, "depth": 1, "heads": 2, "adapters": True}
    vit = _growing("progressive", method="freeze", run={"output": str(tmp_path)}, stream={"tasks": 3})
    vit = merged(vit, data={"val": 0.2}, growth={"progressive": {"units": 4, "heads": 1, "adapter": 2}})
    vit = merged({**TINY, "model": {"name": "vit", "options": options, "expansion_units": 8}}, **vit)
    grown = model(simulate(Config.model_validate(vit)))
    parts = {"up": [36, 36, 36], "attention-qkv": [2, 3, 3], "adapter": [0, 0, 2]}  # of 32, 2 and 0: by stage
    for part, met in parts.items():
        layer = f"blocks-0-{part}"
        assert [len(grown[f"gates.t{k}.trunk.{layer}.open"]) for k in range(3)] == met
    assert len(grown["trunk.blocks.0.attention.qkv.weight"]) == 3 * 3 * 8
    assert len(grown["trunk.blocks.0.adapter.weight"]) == 2


@pytest.mark.parametrize(("rule", "kept"), [*((rule, True) for rule in RULES if rule != "den"), ("den", False)])
def test_old_tasks_answers_keep_every_bit(run, small, rule, kept, monkeypatch):
    """With the trunk's old weights held (freeze) whatever grows, splits or closes later is nothing to them.

    DEN alone retrains what earlier tasks share, which its authors bound by the drift penalty and the split: not kept.
    """
    stages, close = [], Server._close

    def closed(self, stage, uploads):
        close(self, stage, uploads)
        stages.append(dict(self.state.groups[0].params))

    monkeypatch.setattr(Server, "_close", closed)
    changes = _growing(rule, method="finetune" if rule == "den" else "freeze")
    run(rule, **changes)
    config = fill(small(**changes))
    hospitals = federations.build(config)
    x = torch.rand(8, *hospitals.shape)
    nets = [restore(config, hospitals, params) for params in stages]
    sizes = [sum(net.sizes().values()) for net in nets]
    closed_units = sum(int((value == 0).sum()) for name, value in nets[-1].named_buffers() if name.endswith("open"))
    assert closed_units > 0 if rule == "prune" else sizes[0] < sizes[1] < sizes[2], sizes
    for stage, task in enumerate(("t0", "t1")):
        assert torch.equal(nets[stage](x, task), nets[2](x, task)) == kept


def _at_growth(monkeypatch, small, changes):
    """For each growth of a run to come: by task, whether it is current, and how far its answers moved there."""
    moved, merge = [], growing.merged

    def merge_and_compare(method, moment, net, group, before):
        params = group.params
        changed = merge(method, moment, net, group, before)
        if changed:
            old, new = (restore(config, hospitals, held) for held in (params, group.params))
            known = [task for task in (*moment.past, *moment.current) if old.has(task)]
            far = {task: (old(x, task) - new(x, task)).abs().max().item() for task in known}
            moved.append({task: (task in moment.current, distance) for task, distance in far.items()})
        return changed

    config = fill(small(**changes))
    hospitals = federations.build(config)
    x = torch.rand(16, *hospitals.shape)
    monkeypatch.setattr(growing, "merged", merge_and_compare)
    return moved


@pytest.mark.parametrize("heads", ["shared", "domain"])
@pytest.mark.parametrize("rule", ["threshold", "progressive"])
def test_the_trunk_grows_behind_a_head_that_all_tasks_share(run, small, rule, heads, monkeypatch):
    changes = _growing(rule, model={"heads": heads}, method="ewc", stream={"tasks": 2, "kind": "domain"})
    moved = _at_growth(monkeypatch, small, changes)
    result = run("together", **changes)
    assert len(moved) == 2
    assert all(distance <= 1e-6 for each in moved for _, distance in each.values())
    final = model(result)
    assert final["tasks.shared.out.weight"].shape[1] == len(final["trunk.layers.1.weight"]) == 16 + 2 * 16
    assert not math.isnan(result.metrics["average_accuracy"])


@pytest.mark.parametrize("rule", ["threshold", "progressive"])
def test_no_answers_move_at_growth_also_of_tasks_that_are_back(run, small, rule, monkeypatch):
    stream = {"tasks": 2, "schedule": "table", "table": [[0, 0, 0], [1, 1, 1], [0, 0, 0], [1, 1, 1]]}
    changes = _growing(rule, method="ewc", stream=stream)
    moved = _at_growth(monkeypatch, small, changes)
    run("back", **changes)
    assert len(moved) == 4
    assert [each["t0"][0] for each in moved] == [True, False, True, False]
    for each in moved:
        for current, distance in each.values():
            assert distance <= (1e-6 if current else 0.0)


def test_units_that_came_while_a_task_was_away_are_closed_for_it(run):
    """DEN asks for masks of all units; they are there for a task that is back, and leave out what it has not met."""
    stream = {"tasks": 2, "schedule": "table", "table": [[0, 0, 0], [1, 1, 1], [0, 0, 0]]}
    final = model(run("back", **_growing("den", method="finetune", stream=stream)))
    open_ = final["gates.t0.trunk.layers-0.open"]
    assert len(open_) == len(final["trunk.layers.0.weight"])
    met = final["gates.t1.trunk.layers-0.open"]  # 16 units, those of its stage, and none since
    assert 16 < len(met) < len(open_)
    assert open_[16 : len(met)].eq(0).all()
    assert open_[len(met) :].eq(1).any()


LOSING = {  # rule → the round of its choice, the first unit that goes there, who reads the units
    "search": (5, 9, "tasks.t1.out.weight"),
    "den": (8, 18, "trunk.layers.1.weight"),
}


@pytest.mark.parametrize("rule", LOSING)
def test_whoever_keeps_something_of_units_that_went_is_told_once(run, rule, monkeypatch):
    """Half of the hospitals are asked in a round. Momentum, and moments at the server, end before the first.

    DEN takes no rule with moments.
    """
    last, end, name = LOSING[rule]
    heard, held, said, merge, receive = [], [], [], growing.merged, methods.Combination.receive

    def losing(method, moment, net, group, before):
        chosen = moment.stage == 1 and moment.round == last
        if chosen:  # of the new units, from 8 or 16 on, one goes from the middle
            key, values = ("gates.t1.logits", -9.0) if rule == "search" else ("trunk.layers.0.weight", 0.0)
            group.params = group.params | {key: group.params[key].index_fill(0, torch.tensor([end]), values)}
            if rule == "search":
                group.params[key][-2:] = 9.0
        changed = merge(method, moment, net, group, before)
        if chosen:
            part = "t1" if rule == "search" else ""
            moments = group.rules.get(part, {})
            held.append({key: value.shape[1] for key, value in moments.items() if key.endswith(name)})
            said.extend({place.partition("/")[0] for place in group.broadcast})
        return changed

    def told(self, broadcast, memory):
        now, key = receive(self, broadcast, memory), f"optimizer/{name}/momentum_buffer"
        if any(place.partition("/")[0] in said for place in broadcast):
            heard.append((memory[key].shape[1], now[key].shape[1]) if key in memory else ())
        return now

    monkeypatch.setattr(growing, "merged", losing)
    monkeypatch.setattr(methods.Combination, "receive", told)
    rule_of_server = "fedavg" if rule == "den" else "fedadam"
    federation = {"clients": 4, "fraction": 0.5, "aggregator": rule_of_server, "merger": rule_of_server}
    options = {"search": {"candidates": 4, "keep": 0.01}, "den": {"split": 99.0, "group": 0.0, "units": 6}}
    changes = _growing(rule, method="finetune", federation=federation, train={"rounds": 10, "reset": "task"})
    result = run(rule, **merged(changes, growth={rule: options[rule]}))
    assert len(said) == len(held) == 1
    assert bool(held[0]) == (rule == "search")
    assert all(width == end for width in held[0].values())
    assert len(heard) == 4  # some of them in the next stage
    known = [each for each in heard if each]
    assert all(now == min(before, end) for before, now in known)
    assert any(before > end for before, _ in known)
    assert model(result)[name].shape[1] > end


def test_nets_grow_apart_where_modules_stay(run):
    """Each hospital's own loss decides on its own module; the trunk stays one for all."""
    options = RULES["threshold"] | {"where": "module", "ratio": 0.05, "patience": 1}
    growing = _growing("threshold", federation={"merger": "personal"}, train={"rounds": 6}, model={"infer": "entropy"})
    result = run("apart", **merged(growing, growth={"threshold": options}))
    widths = []
    for folder in sorted((result.path / "clients").iterdir()):
        memory = load_file(max(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime))
        widths.append([len(memory[f"own/tasks.t{k}.hidden.weight"]) for k in range(3)])
        for k in range(3):
            assert memory[f"own/gates.t{k}.mask"].shape == memory[f"own/gates.t{k}.logits"].shape == (widths[-1][k],)
    assert any(width > 8 for own in widths for width in own)
    assert len({tuple(own) for own in widths}) > 1
    assert not math.isnan(result.metrics["average_accuracy"])


def test_a_grown_net_is_read_back_and_rescored(run):
    """The file holds the shapes that the net has; who opens it needs no history."""
    result = run("grown", **_growing("threshold"))
    pooled = {r.task: r.value for r in result.records if (r.phase, r.name, r.client) == ("end", "accuracy", None)}
    again = {r["task"]: r["value"] for r in rescore(result.path).rows if (r["name"], r["client"]) == ("accuracy", None)}
    assert again == pooled


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "gpm"}, "one size"),
        ({"method": "hat"}, "both mask"),
        ({"method": "cumulative"}, "alone"),
        ({"growth": {"den": {"units": 3}}}, "does not use"),
        ({"model": {"growth": "den", "name": "cnn"}, "train": {"rounds": 2}}, "four steps"),
        ({"model": {"growth": "prune", "heads": "shared"}}, "heads"),
        ({"model": {"heads": "shared"}}, "where = 'trunk'"),  # by default it widens modules
        ({"model": {"heads": "shared", "masks": "slices"}, "growth": {"threshold": {"where": "trunk"}}}, "masks"),
        ({"model": {"growth": "den", "weight_norm": True}, "train": {"rounds": 4}}, "weight_norm"),
        (
            {"model": {"growth": "den"}, "train": {"rounds": 4}, "federation": {"consolidate_on": "local"}},
            "consolidate",
        ),
        ({"model": {"growth": "den"}, "train": {"rounds": 4}, "federation": {"compress": "int8"}}, "'int8' blurs"),
        ({"model": {"growth": "den"}, "train": {"rounds": 4}, "federation": {"compress": "topk"}}, "'topk' blurs"),
        ({"model": {"growth": "threshold+threshold"}}, "named twice"),
        ({"model": {"growth": "den"}, "train": {"rounds": 4}, "federation": {"aggregator": "fedadam"}}, "momentum"),
        ({"model": {"growth": "den"}, "train": {"rounds": 4}, "federation": {"merger": "fedavgm"}}, "momentum"),
        ({"model": {"growth": "den", "options": {"hidden": []}}, "train": {"rounds": 4}}, "hidden layers"),
        (
            {"model": {"growth": "den"}, "growth": {"den": {"select": 0.6, "retrain": 0.2, "expand": 0.15}}}
            | {"train": {"rounds": 4}},
            "without a round",
        ),
        (
            {"model": {"growth": "den"}, "train": {"rounds": 9, "stream": "hybrid", "consolidate_every": 3}},
            "hybrid",
        ),
        ({"train": {"rounds": 5}}, "after 5 rounds at the earliest"),
        ({"model": {"growth": "progressive"}, "train": {"rounds": 4}}, "after 5 rounds at the earliest"),
        ({"model": {"growth": "prune", "weight_norm": True}}, "weight_norm"),
        (
            {"model": {"growth": "prune", "name": "resnet18"}, "growth": {"prune": {"where": "trunk"}}},
            "resnet18",
        ),
        ({"model": {"growth": "threshold+search"}}, "last units"),
        ({"model": {"growth": "search+threshold"}, "growth": {"threshold": {"where": "both"}}}, "last units"),
        ({"model": {"name": "resnet18"}, "growth": {"threshold": {"where": "trunk"}}}, "resnet18"),
    ],
)
def test_what_cannot_grow_is_refused(changes, says):
    with pytest.raises(FedclError, match=says):
        methods.build(Config.model_validate(merged({"model": {"growth": "threshold"}}, **changes)))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("search", "prune")])
def test_without_validation_samples_nothing_could_decide(run, rule):
    with pytest.raises(FedclError, match=r"take data\.val"):
        run(rule, **_growing(rule, data={"val": 0.0}))
