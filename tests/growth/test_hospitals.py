"""What rules of growth do at a hospital: DEN's step, the price of a search, what pruning measures; by hand and run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from contexts import context
from small import TINY, merged, model

from fedcl.config import Config, Model
from fedcl.contracts import Batch, Moment, Step, role
from fedcl.growth import _den as _den_units
from fedcl.growth.den import DEN
from fedcl.growth.prune import Prune
from fedcl.growth.search import Search
from fedcl.methods import Combination
from fedcl.models import dynamic_net
from fedcl.simulation import simulate

NOTHING = Batch(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
FIRST, SECOND, HIDDEN = "trunk.layers.0", "trunk.layers.1", "tasks.t1.hidden"


def _net():
    """Two inputs, two layers of two units, and a task's module of two units."""
    torch.manual_seed(0)
    net = dynamic_net.build(Model(options={"hidden": [2, 2]}, expansion_units=2, masks="slices"), (2,), 2)
    net.add_task("t1", 2, 2)
    return net


def _params(net, **changed):
    """The net's, bar what is said of some by the ends of their names, with "__" for a dot."""
    made = {name: value.detach().clone() for name, value in net.named_parameters()}
    for end, value in changed.items():
        (name,) = (n for n in made if n.endswith(end.replace("__", ".")))
        made[name] = torch.tensor(value)
    return made


def _digits(tmp_path, rule, options, **more):
    config = merged(TINY, model={"growth": rule, "expansion_units": 8}, growth={rule: options}, **more)
    return simulate(Config.model_validate(merged(config, run={"output": str(tmp_path)})))


# ── DEN ──


def _den(rule, after, trains, memory=None):
    """(before, after) of a step at rate 0.1; `trains` says which units of the two layers do."""
    net = _net()
    names = ("gates.t1.trunk.layers-0.trains", "gates.t1.trunk.layers-1.trains")
    masks = {name: torch.tensor(value) for name, value in zip(names, trains, strict=True)}
    ctx, before = context(net, task=1, buffers=masks), _params(net)
    edited, kept = rule.edit_update(ctx, Step(before, {}, _params(net, **after)), memory or {})
    assert kept == (memory or {})
    return before, edited


def test_the_first_task_shrinks_every_weight_by_the_rate_times_l1():
    """η μ = 0.1 · 0.5: what is not above 0.05 is an exact zero. Nothing is new, so no group goes."""
    after = {
        "layers__0__weight": [[0.3, -0.04], [0.05, -0.5]],
        "layers__0__bias": [0.03, -0.3],
        "layers__1__weight": [[0.0, 1.0], [-0.05, 0.01]],
        "hidden__weight": [[0.04, -0.3], [0.3, 0.0]],
        "hidden__bias": [0.04, 1.0],
    }
    _, found = _den(DEN(l1=0.5, group=100.0, drift=100.0), after, [[_den_units.FREE] * 2] * 2)
    shrunk = {
        f"{FIRST}.weight": [[0.25, 0.0], [0.0, -0.45]],
        f"{FIRST}.bias": [0.0, -0.25],
        f"{SECOND}.weight": [[0.0, 0.95], [0.0, 0.0]],
        f"{HIDDEN}.weight": [[0.0, -0.25], [0.25, 0.0]],
        f"{HIDDEN}.bias": [0.04, 1.0],  # a module's bias is no path
    }
    for name, value in shrunk.items():
        torch.testing.assert_close(found[name], torch.tensor(value))
        assert (found[name] == 0).tolist() == (torch.tensor(value) == 0).tolist()  # to the bit


def test_selected_weights_are_pulled_half_way_and_all_others_go_back():
    """η λ = 0.1 · 10, so (w + W^{t−1}) / 2, with no ℓ1, between selected units only: unit 0 of each layer."""
    after = {
        "layers__0__weight": [[2.0, 4.0], [7.0, 7.0]],
        "layers__0__bias": [1.0, 7.0],
        "layers__1__weight": [[2.0, 7.0], [7.0, 7.0]],
        "layers__1__bias": [3.0, 7.0],
    }
    anchor = {f"anchor/{name}": torch.zeros_like(value) for name, value in _params(_net()).items() if role(name) == ""}
    anchor[f"anchor/{FIRST}.weight"][0] = torch.tensor([1.0, 0.0])
    before, found = _den(DEN(l1=0.5, drift=10.0), after, [[1.0, 0.0], [1.0, 0.0]], anchor)
    assert found[f"{FIRST}.weight"][0].tolist() == [1.5, 2.0]
    assert found[f"{SECOND}.weight"][0, 0].item() == 1.0
    assert [found[f"{layer}.bias"][0].item() for layer in (FIRST, SECOND)] == [0.5, 1.5]
    for name in (f"{FIRST}.weight", f"{FIRST}.bias", f"{SECOND}.weight", f"{SECOND}.bias"):
        assert torch.equal(found[name][1], before[name][1]), name
    assert found[f"{SECOND}.weight"][0, 1] == before[f"{SECOND}.weight"][0, 1]  # it reads a unit that does not train


def test_the_copy_of_a_split_is_shrunk_one_by_one_and_neither_pulled_nor_pressed_to_go():
    after = {"layers__0__weight": [[7.0, 7.0], [1.05, -0.02]], "layers__0__bias": [7.0, 0.3]}
    anchor = {f"anchor/{FIRST}.weight": torch.full((2, 2), 99.0)}
    rule = DEN(l1=0.5, group=1000.0, drift=1000.0)
    _, found = _den(rule, after, [[0.0, _den_units.FREE], [0.0, 0.0]], anchor)
    torch.testing.assert_close(found[f"{FIRST}.weight"][1], torch.tensor([1.0, 0.0]))
    assert found[f"{FIRST}.bias"][1].item() == pytest.approx(0.25)


@pytest.mark.parametrize(("trains", "anchored"), [(_den_units.FREE, False), (0.0, True), (1.0, True)])
def test_a_hospital_is_held_to_what_was_learned_before_and_to_nothing_where_nothing_was(trains, anchored):
    net = _net()
    names = ("gates.t1.trunk.layers-0.trains", "gates.t1.trunk.layers-1.trains")
    ctx = context(net, task=1, stage=3, buffers={name: torch.full((2,), trains) for name in names})
    memory = DEN().begin_task(ctx, _params(net), {})
    assert bool(memory) == anchored
    assert all(name.startswith("anchor/trunk.") for name in memory)


@pytest.mark.parametrize("drift", [0.0, 0.5, 30.0])
def test_the_drift_is_a_proximal_step(drift):
    """Where it ends, w' − w + η λ (w' − W^{t−1}) = 0."""
    weight, anchor = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([[0.0, -1.0], [2.0, 3.5]])
    memory = {f"anchor/{FIRST}.weight": anchor}
    _, found = _den(DEN(drift=drift), {"layers__0__weight": weight.tolist()}, [[1.0, 1.0], [0.0, 0.0]], memory)
    moved = found[f"{FIRST}.weight"].clone().requires_grad_()
    ((moved - weight).square().sum() / 2 + 0.1 * drift / 2 * (moved - anchor).square().sum()).backward()
    torch.testing.assert_close(moved.grad, torch.zeros(2, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("incoming", "left"), [([3.05, -4.05], [1.5, -2.0]), ([1.05, 2.05], [0.0, 0.0])])
def test_a_new_unit_is_shrunk_as_a_group_and_old_weights_stay(incoming, left):
    """Unit 1 of each layer is new: ℓ1 by 0.05, then its ℓ2 norm, 5 or √5, by η γ = 2.5; no drift for what is new."""
    after = {
        "layers__0__weight": [[7.0, 7.0], incoming],
        "layers__0__bias": [7.0, 0.3],
        "layers__1__weight": [[7.0, 0.25], [6.05, 8.05]],
        "layers__1__bias": [7.0, 0.01],
    }
    anchor = {
        f"anchor/{name}": torch.full_like(value, 99.0) for name, value in _params(_net()).items() if "trunk" in name
    }
    before, found = _den(DEN(l1=0.5, group=25.0), after, [[0.0, 2.0], [0.0, 2.0]], anchor)
    torch.testing.assert_close(found[f"{FIRST}.weight"][1], torch.tensor(left))
    torch.testing.assert_close(found[f"{SECOND}.weight"][1], torch.tensor([4.5, 6.0]))  # 10 becomes 7.5
    assert found[f"{SECOND}.weight"][0, 1].item() == pytest.approx(0.2)  # of an old unit, from a new one: ℓ1 alone
    kept = 0.25 if any(left) else 0.0  # a unit that reads nothing answers 0, so that nothing is missed when it goes
    assert [found[f"{layer}.bias"][1].item() for layer in (FIRST, SECOND)] == pytest.approx([kept, 0.0])
    for name in (f"{FIRST}.weight", f"{FIRST}.bias", f"{SECOND}.bias"):
        assert torch.equal(found[name][0], before[name][0]), name
    assert found[f"{SECOND}.weight"][0, 0] == before[f"{SECOND}.weight"][0, 0]


def test_hospitals_end_rounds_with_exact_zeros_and_still_weights(tmp_path, monkeypatch):
    """Of the first task with ℓ1; while the second one's module is trained alone, no bit of the trunk moves."""
    zeros, still, work = [], [], Combination.end_round

    def watched(self, ctx, params, memory):
        weight = params[f"{FIRST}.weight"]
        if ctx.stage == 0:
            zeros.append([float((value == 0).double().mean()) for value in (weight, params["tasks.t0.hidden.weight"])])
        elif ctx.round == 0:
            trunk = [name for name in params if role(name) == ""]
            still.append(all(torch.equal(params[name], ctx.start[name]) for name in trunk))
        return work(self, ctx, params, memory)

    monkeypatch.setattr(Combination, "end_round", watched)
    _digits(tmp_path, "den", {"l1": 0.05}, train={"rounds": 4})
    assert len(zeros) == 3 * 4
    assert min(min(shares) for shares in zeros[3:]) > 0.05
    assert max(max(shares) for shares in zeros) < 1
    assert still == [True] * 3


# ── search ──


def test_the_price_of_open_candidates_by_hand():
    """λ (σ(0) + σ(ln 3)) / 2 with two old units; the gates' slopes are λ σ (1 − σ) / 2."""
    net, rule = _net(), Search(candidates=2, price=0.8, until=0.5)
    gates = torch.tensor([2.0, -9.0, 0.0, math.log(3)], requires_grad=True)
    ctx = context(net, task=1, rounds=4)
    cost = rule.penalty(ctx, {"gates.t1.logits": gates}, NOTHING, {})
    assert cost.item() == pytest.approx(0.8 * (0.5 + 0.75) / 2)
    cost.backward()
    assert gates.grad.tolist() == pytest.approx([0.0, 0.0, 0.4 * 0.25, 0.4 * 0.1875])  # who was there pays nothing
    assert rule.penalty(replace(ctx, round=1), {"gates.t1.logits": gates}, NOTHING, {}) == cost
    assert rule.penalty(replace(ctx, round=2), {"gates.t1.logits": gates}, NOTHING, {}) == 0  # the choice is made
    assert rule.penalty(ctx, {}, NOTHING, {}) == 0


@pytest.mark.parametrize(("price", "units"), [(0.0, {9, 10, 11, 12}), (20.0, {8})])
def test_candidates_that_cost_more_than_they_gain_shut_and_go(tmp_path, price, units):
    """Free ones open where the loss asks for it; dear ones are below a half at every hospital."""
    result = _digits(tmp_path, "search", {"candidates": 4, "price": price}, train={"rounds": 2, "epochs": 3})
    assert {len(value) for name, value in model(result).items() if name.endswith("hidden.bias")} <= units


# ── prune ──

GRADS = {"layers__0__weight": [[3.0, 4.0], [0.0, 2.0]], "hidden__weight": [[1.0, 0.0], [0.0, 0.5]]}
WEIGHTS = {"layers__0__weight": [[0.1, 1.0], [9.0, 4.0]], "hidden__weight": [[2.0, 5.0], [5.0, 6.0]]}


@pytest.mark.parametrize(
    ("importance", "first", "hidden"),
    [
        ("gradient", [5.0, 2.0], [1.0, 0.5]),  # ‖g‖₂ of each unit's incoming weights
        ("fisher", [(0.09 + 16) / 2, 64 / 2], [4 / 2, 9 / 2]),  # ½ Σ (g w)²
    ],
)
def test_importances_are_means_over_steps(importance, first, hidden):
    """Two steps, the second with gradients of zero: half of the first one's."""
    net, rule = _net(), Prune(importance=importance)
    ctx, memory = context(net, task=1, step=2), {}
    none = {name: torch.zeros_like(value) for name, value in net.named_parameters()}
    for grads in (none | {name: _params(net, **GRADS)[name] for name in (f"{FIRST}.weight", f"{HIDDEN}.weight")}, none):
        memory = rule.track(ctx, Step({}, grads, _params(net, **WEIGHTS)), memory)
    sent = rule.upload(rule.end_round(ctx, {}, memory))
    assert set(sent) == {f"t1/{FIRST}", f"t1/{SECOND}", f"t1/{HIDDEN}"}
    assert sent[f"t1/{FIRST}"].tolist() == pytest.approx([value / 2 for value in first])
    assert sent[f"t1/{HIDDEN}"].tolist() == pytest.approx([value / 2 for value in hidden])
    assert sent[f"t1/{SECOND}"].tolist() == [0.0, 0.0]
    again = rule.track(ctx, Step({}, none, _params(net)), rule.end_round(ctx, {}, memory))
    assert not rule.upload(rule.end_round(ctx, {}, again))[f"t1/{FIRST}"].any()  # each round measures anew


@pytest.mark.parametrize(
    ("importance", "first", "hidden"),
    [("magnitude", [0, 1], [0, 1]), ("gradient", [1, 0], [1, 0]), ("fisher", [0, 1], [0, 1])],
)
def test_half_of_the_units_stay_open_those_that_matter_more(importance, first, hidden):
    """From a hospital's step to the server's masks; ‖w‖₂ is (1.0, 9.8) and (5.4, 7.8)."""
    net, rule = _net(), Prune(share=0.5, importance=importance, at=0.5)
    params, state = net.state_dict() | _params(net, **WEIGHTS), {}
    if "track" in rule.hooks():
        ctx = context(net, task=1, step=1)
        memory = rule.track(ctx, Step({}, _params(net, **GRADS), params), {})
        state, _ = rule.server({}, {}, [(7.0, rule.upload(rule.end_round(ctx, {}, memory)))])
    moment = Moment(1, 2, 4, ("t1",), (), {}, tuple(net.growable(("t1",))))
    closed, _ = rule.merged(moment, params, params, state)
    assert closed["gates.t1.trunk.layers-0.open"].tolist() == first
    assert closed["gates.t1.mask"].tolist() == hidden


@pytest.mark.parametrize("importance", ["magnitude", "gradient", "fisher"])
def test_a_federation_closes_the_share_that_matters_least(tmp_path, monkeypatch, importance):
    """A quarter of 8 units of each task, and where hospitals measure, not the ones that are smallest by chance."""
    heard, decide = [], Prune.merged

    def watched(self, moment, before, params, state):
        closed, state = decide(self, moment, before, params, state)
        (task,) = moment.current
        mask = closed[f"gates.{task}.trunk.layers-0.open"]
        found = state.get(f"{task}/{FIRST}", params[f"{FIRST}.weight"].norm(dim=1))
        if not mask.all():
            heard.append((mask, found, f"{task}/{FIRST}" in state))
        return closed, state

    monkeypatch.setattr(Prune, "merged", watched)
    _digits(tmp_path, "prune", {"share": 0.25, "importance": importance, "at": 1.0})
    assert len(heard) == 2
    for mask, found, measured in heard:
        assert measured == (importance != "magnitude")
        assert int(mask.sum()) == 6
        assert found[mask == 0].max() < found[mask == 1].min()
