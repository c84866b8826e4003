"""Each rule of growth by numbers that can be checked by hand, on tensors and without a federation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contexts import context
from moments import at, built

from fedcl.contracts import Moment, Step
from fedcl.growth._stall import Stall
from fedcl.growth.den import DEN
from fedcl.growth.progressive import Progressive
from fedcl.growth.prune import Prune
from fedcl.growth.search import Search
from fedcl.growth.threshold import Threshold


def _through(rule, net, losses, rounds=10, stage=0):
    """All rounds of a stage with these validation losses: the rounds after which the net had grown, and the end."""
    params, state = rule.merged(at(net, stage, 0, rounds), {}, net.state_dict(), {})
    grown = []
    for done, loss in enumerate(losses, 1):
        before = sum(value.numel() for value in params.values())
        params, state = rule.merged(at(net, stage, done, rounds, loss), params, params, state)
        if sum(value.numel() for value in params.values()) != before:
            grown.append(done)
    return grown, params


# ── threshold ──


def test_a_window_that_gains_less_than_the_ratio_has_stalled():
    stall = Stall(0.15, window=2, patience=4, smallest=0.01)

    def stalled(*losses):
        state = {}
        for done, loss in enumerate(losses, 1):
            found, state = stall.note(Moment(0, done, 99, ("t0",), (), {"t0": loss}), state)
        return found == ["t0"]

    assert not stalled(1.0, 1.0, 0.84, 0.84)  # gains 16 %
    assert stalled(1.0, 1.0, 0.86, 0.86)  # 14 %
    assert stalled(1.0, 1.0, 1.3, 1.3)  # losing ground is no gain
    assert not stalled(1.0, 1.0, 0.99)  # too short
    assert not stalled(0.009, 0.009, 0.009, 0.009)  # nothing to gain
    assert not stalled(0.0, 0.0, 0.0, 0.0)  # and no division by it


def test_one_expansion_a_patience_and_a_hard_cap():
    net = built()
    rule = Threshold(units=4, limit=11, patience=4, window=1)
    grown, params = _through(rule, net, [1.0] * 12, rounds=20)
    assert grown == [4, 8]  # 5 + 4, then 2 up to the cap, then no more
    assert params["tasks.t0.hidden.weight"].shape == (11, 3)
    assert params["tasks.t1.hidden.weight"].shape == (5, 3)
    assert params["trunk.layers.0.weight"].shape == (4, 64)


@pytest.mark.parametrize("rule", [Threshold(where="trunk", window=1, patience=4), Progressive(window=1, patience=4)])
def test_the_trunk_has_one_patience_for_all_tasks(rule):
    """Two tasks side by side, one of them unheard for a while: their windows end in other rounds."""
    net = built()
    first = Moment(0, 0, 99, ("t0", "t1"), (), {}, net.growable(("t0", "t1")))
    params, state = rule.merged(first, {}, net.state_dict(), {})
    grown = []
    for done in range(1, 17):
        losses = {"t0": 1.0} | ({"t1": 1.0} if done > 3 else {})
        size = len(params["trunk.layers.0.weight"])
        params, state = rule.merged(replace(first, round=done, losses=losses), params, params, state)
        grown += [done] if len(params["trunk.layers.0.weight"]) > size else []
    assert grown == [4, 8, 12, 16]


def test_nothing_grows_in_the_last_round():
    assert _through(Threshold(patience=5, window=1), built(), [1.0] * 5, rounds=5)[0] == []


@pytest.mark.parametrize(("where", "trunk", "module"), [("trunk", 20, 5), ("both", 20, 21), ("module", 4, 21)])
def test_where_it_grows(where, trunk, module):
    _, params = _through(Threshold(where=where, window=1), built(), [1.0] * 5)
    assert len(params["trunk.layers.0.weight"]) == trunk
    assert len(params["tasks.t0.hidden.weight"]) == module


# ── progressive ──


def test_layers_then_heads_then_adapters():
    net = built("vit", dim=8, depth=1, heads=2, adapters=True)
    rule = Progressive(units=3, heads=1, adapter=2, window=1, patience=2)
    sizes = []
    params, state = rule.merged(at(net, 0, 0, 99), {}, net.state_dict(), {})
    for done in range(1, 9):
        params, state = rule.merged(at(net, 0, done, 99, 1.0), params, params, state)
        names = ("up.weight", "attention.qkv.weight", "adapter.weight")
        sizes.append([len(params[f"trunk.blocks.0.{name}"]) for name in names])
    assert sizes[1::2] == [[19, 24, 0], [19, 36, 0], [19, 36, 2], [22, 36, 2]]  # a head is 3 × 4 rows


def test_a_new_stage_takes_the_next_step():
    net = built("vit", dim=8, depth=1, heads=2, adapters=True)
    rule, state, sizes = Progressive(units=3, heads=1, adapter=2, window=1, patience=2), {}, []
    params = net.state_dict()
    for stage in (0, 1, 0):
        for done in range(3):
            moment = at(net, stage, done, 99, 1.0 if done else None)
            params, state = rule.merged(moment, params, params, state)
        names = ("up.weight", "attention.qkv.weight", "adapter.weight")
        sizes.append([len(params[f"trunk.blocks.0.{name}"]) for name in names])
    assert sizes == [[19, 24, 0], [19, 36, 0], [19, 36, 2]]


def test_a_step_without_layers_is_left_out():
    grown, params = _through(Progressive(units=3, window=1, patience=2), built(), [1.0] * 4, rounds=99)
    assert grown == [2, 4]
    assert len(params["trunk.layers.0.weight"]) == 4 + 6


# ── search ──


def test_candidates_come_half_open_and_those_below_go():
    net, rule = built(), Search(candidates=4, until=0.5)
    params, state = rule.merged(at(net, 0, 0), {}, net.state_dict(), {})
    assert params["gates.t0.logits"].tolist() == [2.0] * 5 + [0.0] * 4
    assert params["tasks.t0.out.weight"][:, 5:].eq(0).all()
    params["gates.t0.logits"] = torch.tensor([2.0, -9, 2, 2, 2, 0.1, -0.1, 0.2, 0.0])
    chosen, _ = rule.merged(at(net, 0, 5), params, params, state)
    assert chosen["gates.t0.logits"].tolist() == pytest.approx([2.0, -9, 2, 2, 2, 0.1, 0.2])  # old ones are not asked
    kept = [0, 1, 2, 3, 4, 5, 7]
    assert torch.equal(chosen["tasks.t0.hidden.weight"], params["tasks.t0.hidden.weight"][kept])
    assert torch.equal(chosen["tasks.t0.out.weight"], params["tasks.t0.out.weight"][:, kept])


# ── prune ──


def test_the_smallest_share_is_closed_by_magnitude():
    net = built()
    params = net.state_dict()
    params["trunk.layers.0.weight"] = torch.tensor([3.0, 1.0, 4.0, 2.0])[:, None].expand(4, 64)
    closed, _ = Prune(share=0.5, at=0.7).merged(at(net, 0, 7), params, params, {})
    assert closed["gates.t0.trunk.layers-0.open"].tolist() == [1, 0, 1, 0]
    assert closed["gates.t0.mask"].sum() == 3  # of 5, 2 go
    assert closed["gates.t1.trunk.layers-0.open"].eq(1).all()  # another task sees all
    assert Prune(share=0.5, at=0.7).merged(at(net, 0, 6), params, params, {})[0] is params
    all_but_one, _ = Prune(share=0.99, at=0.7).merged(at(net, 0, 7), params, params, {})
    assert all_but_one["gates.t0.trunk.layers-1.open"].sum() == 1


def test_a_task_that_stays_is_pruned_once():
    """The share is of all its units: what is closed counts."""
    net, rule = built(), Prune(share=0.5)
    params = net.state_dict()
    for stage in range(3):
        params, _ = rule.merged(replace(at(net, 0, 7), stage=stage), params, params, {})
        assert params["gates.t0.mask"].sum() == 3
        assert params["gates.t0.trunk.layers-0.open"].sum() == 2


@pytest.mark.parametrize("importance", ["magnitude", "gradient", "fisher"])
def test_an_adapter_that_has_not_grown_has_nothing_to_close(importance):
    net, rule = built("vit", dim=8, depth=1, heads=2, adapters=True), Prune(share=0.5, importance=importance)
    params = dict(net.named_parameters())
    grads = {name: torch.ones_like(value) for name, value in params.items()}
    sums = rule.track(context(net, task=0), Step({}, grads, params), {})
    assert importance == "magnitude" or sums["sum/t0/trunk.blocks.0.adapter"].shape == (0,)
    closed, _ = rule.merged(at(net, 0, 7), net.state_dict(), net.state_dict(), {})
    assert closed["gates.t0.trunk.blocks-0-up.open"].sum() == 8


def test_hospitals_importances_are_averaged_by_samples():
    rule = Prune(importance="fisher")
    uploads = [
        (1.0, {"t0/trunk.layers.0": torch.tensor([4.0, 0.0, 4.0, 4.0])}),
        (3.0, {"t0/trunk.layers.0": torch.tensor([0.0, 1.0, 4.0, 4.0])}),
        (0.0, {"t0/trunk.layers.0": torch.full((4,), 9.0), "t0/trunk.layers.1": torch.zeros(3)}),  # without samples
    ]
    state, said = rule.server({}, {}, uploads)
    assert said == {}
    assert state["t0/trunk.layers.0"].tolist() == [1.0, 0.75, 4.0, 4.0]
    net = built()
    params = net.state_dict()
    closed, _ = rule.merged(at(net, 0, 7), params, params, state)
    assert closed["gates.t0.trunk.layers-0.open"].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("rule", "options", "says"),
    [
        (Threshold, {"ratio": 1.0}, "ratio"),
        (Threshold, {"where": "roof"}, "roof"),
        (Progressive, {"heads": -1}, "heads"),
        (Search, {"until": 1.0}, "until"),
        (Prune, {"share": 1.0}, "share"),
        (Prune, {"importance": "guess"}, "guess"),
        (DEN, {"select": 0.5, "retrain": 0.5}, "below 1"),
    ],
)
def test_options_out_of_range_are_refused(rule, options, says):
    with pytest.raises(ValueError, match=says):
        rule(**options)
