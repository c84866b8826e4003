"""Each rule of growth by numbers that can be checked by hand, on tensors and without a federation."""

from __future__ import annotations

import copy

import pytest
import torch

from fedcl import structure
from fedcl.config import Model
from fedcl.contracts import Moment
from fedcl.growth import _den
from fedcl.growth._stall import Stall
from fedcl.growth.den import DEN
from fedcl.growth.progressive import Progressive
from fedcl.growth.prune import Prune
from fedcl.growth.search import Search
from fedcl.growth.threshold import Threshold
from fedcl.models import dynamic_net


def _net(name="mlp", tasks=("t0", "t1"), **options):
    torch.manual_seed(0)
    model = Model(name=name, options=options or {"hidden": [4, 3]}, expansion_units=5, masks="slices")
    net = dynamic_net.build(model, (1, 8, 8), 4)
    for task in tasks:
        net.add_task(task, 2, 5)
    return net


def _moment(net, stage, done, rounds=10, loss=None):
    layers = net.growable((f"t{stage}",))
    past = tuple(f"t{k}" for k in range(stage))
    return Moment(stage, done, rounds, (f"t{stage}",), past, {} if loss is None else {f"t{stage}": loss}, layers)


def _through(rule, net, losses, rounds=10, stage=0):
    """All rounds of a stage with these validation losses: the rounds after which the net had grown, and the end."""
    params, state = rule.merged(_moment(net, stage, 0, rounds), {}, net.state_dict(), {})
    grown = []
    for done, loss in enumerate(losses, 1):
        before = sum(value.numel() for value in params.values())
        params, state = rule.merged(_moment(net, stage, done, rounds, loss), params, params, state)
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
    net = _net()
    rule = Threshold(units=4, limit=11, patience=4, window=1)
    grown, params = _through(rule, net, [1.0] * 12, rounds=20)
    assert grown == [4, 8]  # 5 + 4, then 2 up to the cap, then no more
    assert params["tasks.t0.hidden.weight"].shape == (11, 3)
    assert params["tasks.t1.hidden.weight"].shape == (5, 3)
    assert params["trunk.layers.0.weight"].shape == (4, 64)


def test_nothing_grows_in_the_last_round():
    assert _through(Threshold(patience=5, window=1), _net(), [1.0] * 5, rounds=5)[0] == []


@pytest.mark.parametrize(("where", "trunk", "module"), [("trunk", 20, 5), ("both", 20, 21), ("module", 4, 21)])
def test_where_it_grows(where, trunk, module):
    _, params = _through(Threshold(where=where, window=1), _net(), [1.0] * 5)
    assert len(params["trunk.layers.0.weight"]) == trunk
    assert len(params["tasks.t0.hidden.weight"]) == module


# ── progressive ──


def test_layers_then_heads_then_adapters():
    net = _net("vit", dim=8, depth=1, heads=2, adapters=True)
    rule = Progressive(units=3, heads=1, adapter=2, window=1, patience=2)
    sizes = []
    params, state = rule.merged(_moment(net, 0, 0, 99), {}, net.state_dict(), {})
    for done in range(1, 9):
        params, state = rule.merged(_moment(net, 0, done, 99, 1.0), params, params, state)
        names = ("up.weight", "attention.qkv.weight", "adapter.weight")
        sizes.append([len(params[f"trunk.blocks.0.{name}"]) for name in names])
    assert sizes[1::2] == [[19, 24, 0], [19, 36, 0], [19, 36, 2], [22, 36, 2]]  # a head is 3 × 4 rows


def test_a_step_without_layers_is_left_out():
    grown, params = _through(Progressive(units=3, window=1, patience=2), _net(), [1.0] * 4, rounds=99)
    assert grown == [2, 4]
    assert len(params["trunk.layers.0.weight"]) == 4 + 6


# ── search ──


def test_candidates_come_half_open_and_those_below_go():
    net, rule = _net(), Search(candidates=4, until=0.5)
    params, state = rule.merged(_moment(net, 0, 0), {}, net.state_dict(), {})
    assert params["gates.t0.logits"].tolist() == [2.0] * 5 + [0.0] * 4
    assert params["tasks.t0.out.weight"][:, 5:].eq(0).all()
    params["gates.t0.logits"] = torch.tensor([2.0, -9, 2, 2, 2, 0.1, -0.1, 0.2, 0.0])
    chosen, _ = rule.merged(_moment(net, 0, 5), params, params, state)
    assert chosen["gates.t0.logits"].tolist() == pytest.approx([2.0, -9, 2, 2, 2, 0.1, 0.2])  # old ones are not asked
    kept = [0, 1, 2, 3, 4, 5, 7]
    assert torch.equal(chosen["tasks.t0.hidden.weight"], params["tasks.t0.hidden.weight"][kept])
    assert torch.equal(chosen["tasks.t0.out.weight"], params["tasks.t0.out.weight"][:, kept])


# ── prune ──


def test_the_smallest_share_is_closed_by_magnitude():
    net = _net()
    params = net.state_dict()
    params["trunk.layers.0.weight"] = torch.tensor([3.0, 1.0, 4.0, 2.0])[:, None].expand(4, 64)
    closed, _ = Prune(share=0.5, at=0.7).merged(_moment(net, 0, 7), params, params, {})
    assert closed["gates.t0.trunk.layers-0.open"].tolist() == [1, 0, 1, 0]
    assert closed["gates.t0.mask"].sum() == 3  # of 5, 2 go
    assert closed["gates.t1.trunk.layers-0.open"].eq(1).all()  # another task sees all
    assert Prune(share=0.5, at=0.7).merged(_moment(net, 0, 6), params, params, {})[0] is params
    all_but_one, _ = Prune(share=0.99, at=0.7).merged(_moment(net, 0, 7), params, params, {})
    assert all_but_one["gates.t0.trunk.layers-1.open"].sum() == 1


def test_hospitals_importances_are_averaged_by_samples():
    rule = Prune(importance="fisher")
    uploads = [
        (1.0, {"t0/trunk.layers.0": torch.tensor([4.0, 0.0, 4.0, 4.0])}),
        (3.0, {"t0/trunk.layers.0": torch.tensor([0.0, 1.0, 4.0, 4.0])}),
    ]
    state, said = rule.server({}, {}, uploads)
    assert said == {}
    assert state["t0/trunk.layers.0"].tolist() == [1.0, 0.75, 4.0, 4.0]
    net = _net()
    params = net.state_dict()
    closed, _ = rule.merged(_moment(net, 0, 7), params, params, state)
    assert closed["gates.t0.trunk.layers-0.open"].tolist() == [1, 0, 1, 1]


# ── DEN ──


def test_shrinkage_by_hand():
    assert _den.soft(torch.tensor([0.3, -0.1, 0.05, -0.5]), 0.1).tolist() == pytest.approx([0.2, 0.0, 0.0, -0.4])
    shrunk = _den.shrink(torch.tensor([[3.0, 4.0], [0.03, 0.04]]), 0.5)
    assert shrunk.tolist() == [pytest.approx([2.7, 3.6]), [0.0, 0.0]]


def _den_params(net):
    """Paths of one unit each: input → unit 1 of the first layer → unit 2 of the second → the module."""
    params = {name: value.clone() for name, value in net.state_dict().items()}
    params["trunk.layers.1.weight"] = torch.zeros(3, 4)
    params["trunk.layers.1.weight"][2, 1] = 0.5
    params["trunk.layers.1.weight"][0, 3] = 0.5  # leads to a unit that the module does not read
    params["tasks.t1.hidden.weight"] = torch.zeros(5, 3)
    params["tasks.t1.hidden.weight"][4, 2] = 0.5
    return params


def test_selection_follows_paths_of_non_zero_weights_from_above():
    net = _net()
    rule, params = DEN(), _den_params(net)
    fixed, state = rule.merged(_moment(net, 1, 0), {}, params, {})
    assert fixed["gates.t1.trunk.layers-0.trains"].eq(0).all()  # the module alone trains
    chosen, _ = rule.merged(_moment(net, 1, 2), fixed, fixed, state)
    assert chosen["gates.t1.trunk.layers-1.trains"].tolist() == [0, 0, 1]
    assert chosen["gates.t1.trunk.layers-0.trains"].tolist() == [0, 1, 0, 0]
    free, both = _den.ends(
        chosen["gates.t1.trunk.layers-1.trains"],
        chosen["gates.t1.trunk.layers-0.trains"],
        params["trunk.layers.1.weight"],
    )
    assert not free.any()
    assert both.nonzero().tolist() == [[2, 1]]


def test_selection_leaves_out_what_is_closed_for_the_task():
    net = _net()
    params = _den_params(net)
    params["gates.t1.trunk.layers-0.open"][1] = 0.0
    fixed, state = DEN().merged(_moment(net, 1, 0), {}, params, {})
    chosen, _ = DEN().merged(_moment(net, 1, 2), fixed, fixed, state)
    assert chosen["gates.t1.trunk.layers-1.trains"].tolist() == [0, 0, 1]
    assert chosen["gates.t1.trunk.layers-0.trains"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("closed", ["weights", "gate"])
def test_a_path_begins_at_the_tasks_output(closed):
    params, layer = _den_params(_net()), _net().growable(())[1]
    params["tasks.t1.hidden.weight"][3, 1] = 0.5
    assert _den.used_by_module(params, "t1", layer).tolist() == [False, True, True]
    if closed == "weights":
        params["tasks.t1.out.weight"][:, 3] = 0.0
    else:
        params["gates.t1.mask"][3] = 0.0
    assert _den.used_by_module(params, "t1", layer).tolist() == [False, False, True]


@pytest.mark.parametrize(("loss", "units"), [(0.5, 7), (0.005, 4)])
def test_it_expands_where_the_loss_is_above(loss, units):
    net = _net()
    rule, params = DEN(units=3, above=0.01), _den_params(net)
    fixed, state = rule.merged(_moment(net, 1, 0), {}, params, {})
    grown, _ = rule.merged(_moment(net, 1, 5, loss=loss), fixed, fixed, state)
    assert len(grown["trunk.layers.0.weight"]) == units
    if units == 7:
        assert grown["gates.t1.trunk.layers-0.trains"].tolist() == [0] * 4 + [2] * 3
        assert len(grown["gates.t0.trunk.layers-0.open"]) == 4


@pytest.mark.parametrize("name", ["mlp", "cnn", "maps"])
def test_a_split_gives_the_old_tasks_back_what_they_had_and_changes_no_current_answer(name):
    trunks = {"mlp": {}, "cnn": {"channels": [3, 4], "width": 6}, "maps": {"channels": [3, 4], "width": 0}}
    net = _net("mlp" if name == "mlp" else "cnn", **trunks[name]).eval()
    x = torch.rand(6, 1, 8, 8)
    old = net(x, "t0")
    rule = DEN(units=2, split=0.2)
    params, state = rule.merged(_moment(net, 1, 0), {}, {k: v.clone() for k, v in net.state_dict().items()}, {})
    params, state = rule.merged(_moment(net, 1, 5, loss=1.0), params, params, state)
    torch.manual_seed(1)
    moved = {
        k: v + 0.3 * torch.randn_like(v) if k.startswith(("trunk.", "tasks.t1.")) else v for k, v in params.items()
    }
    drifted = _load(net, moved)
    split, _ = rule.merged(_moment(net, 1, 8, loss=1.0), moved, moved, state)
    after = _load(net, split)
    assert not torch.allclose(drifted(x, "t0"), old, atol=1e-3)
    torch.testing.assert_close(after(x, "t0"), old, rtol=0, atol=1e-6)  # all units drifted, so all are back
    torch.testing.assert_close(after(x, "t1"), drifted(x, "t1"), rtol=1e-5, atol=1e-5)
    first = net.growable(())[0]
    assert first.units(split) > first.units(moved)


def _load(net, params):
    loaded = copy.deepcopy(net)
    structure.resize(loaded, params)
    loaded.load_state_dict(params)
    return loaded


def test_new_units_that_the_lasso_emptied_go():
    net = _net()
    rule = DEN(units=3, split=99.0)
    params, state = rule.merged(_moment(net, 1, 0), {}, dict(net.state_dict()), {})
    params, state = rule.merged(_moment(net, 1, 5, loss=1.0), params, params, state)
    params["trunk.layers.0.weight"] = params["trunk.layers.0.weight"].clone()
    params["trunk.layers.0.weight"][[4, 6]] = 0.0
    kept = params["trunk.layers.0.weight"][5].clone()
    tidy, _ = rule.merged(_moment(net, 1, 8, loss=1.0), params, params, state)
    assert tidy["trunk.layers.0.weight"].shape == (5, 64)
    assert torch.equal(tidy["trunk.layers.0.weight"][4], kept)
    assert tidy["trunk.layers.1.weight"].shape == (6, 5)
    assert len(tidy["gates.t1.trunk.layers-0.open"]) == 5


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
