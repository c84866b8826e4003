"""Dynamically Expandable Networks at the server, by numbers that can be checked by hand."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from moments import at, built

from fedcl import structure
from fedcl.growth import _den
from fedcl.growth.den import DEN


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
    net = built()
    rule, params = DEN(), _den_params(net)
    fixed, state = rule.merged(at(net, 1, 0), {}, params, {})
    assert fixed["gates.t1.trunk.layers-0.trains"].eq(0).all()  # the module alone trains
    chosen, _ = rule.merged(at(net, 1, 2), fixed, fixed, state)
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
    net = built()
    params = _den_params(net)
    params["gates.t1.trunk.layers-0.open"][1] = 0.0
    fixed, state = DEN().merged(at(net, 1, 0), {}, params, {})
    chosen, _ = DEN().merged(at(net, 1, 2), fixed, fixed, state)
    assert chosen["gates.t1.trunk.layers-1.trains"].tolist() == [0, 0, 1]
    assert chosen["gates.t1.trunk.layers-0.trains"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("closed", ["weights", "gate"])
def test_a_path_begins_at_the_tasks_output(closed):
    params, layer = _den_params(built()), built().growable(())[1]
    params["tasks.t1.hidden.weight"][3, 1] = 0.5
    assert _den.used_by_module(params, "t1", layer).tolist() == [False, True, True]
    if closed == "weights":
        params["tasks.t1.out.weight"][:, 3] = 0.0
    else:
        params["gates.t1.mask"][3] = 0.0
    assert _den.used_by_module(params, "t1", layer).tolist() == [False, False, True]


@pytest.mark.parametrize(("loss", "units"), [(0.5, 7), (0.005, 4)])
def test_it_expands_where_the_loss_is_above(loss, units):
    net = built()
    rule, params = DEN(units=3, above=0.01), _den_params(net)
    fixed, state = rule.merged(at(net, 1, 0), {}, params, {})
    grown, _ = rule.merged(at(net, 1, 5, loss=loss), fixed, fixed, state)
    assert len(grown["trunk.layers.0.weight"]) == units
    if units == 7:
        assert grown["gates.t1.trunk.layers-0.trains"].tolist() == [0] * 4 + [2] * 3
        assert len(grown["gates.t0.trunk.layers-0.open"]) == 4


def test_a_task_that_nobody_answered_for_is_judged_by_its_last_loss():
    net = built()
    rule, params = DEN(units=3, above=0.01), _den_params(net)
    params, state = rule.merged(at(net, 1, 0), {}, params, {})
    params, state = rule.merged(at(net, 1, 4, loss=0.5), params, params, state)
    grown, state = rule.merged(at(net, 1, 5), params, params, state)
    assert len(grown["trunk.layers.0.weight"]) == 7
    _, state = rule.merged(at(net, 1, 0), {}, params, state)
    assert not any(name.startswith("loss/") for name in state)  # of another stage


def test_new_units_are_pressed_to_go_by_all_who_have_them():
    """Of two tasks one falls short; the other has the new units open, so its hospitals' deltas are in their mean."""
    net = built(tasks=("t0", "t1", "t2"))
    moment = replace(at(net, 1, 0), current=("t1", "t2"), layers=net.growable(("t1", "t2")))
    rule = DEN(units=3, above=0.01)
    params, state = rule.merged(moment, {}, _den_params(net), {})
    params, state = rule.merged(replace(moment, round=2), params, params, state)
    losses = {"t1": 1.0, "t2": 0.0}
    grown, _ = rule.merged(replace(moment, round=5, losses=losses), params, params, state)
    selected = params["gates.t2.trunk.layers-0.trains"].tolist()
    assert grown["gates.t1.trunk.layers-0.trains"].tolist() == [0] * 4 + [2] * 3
    assert grown["gates.t2.trunk.layers-0.trains"].tolist() == selected + [2] * 3
    assert any(selected)


def test_what_nobody_learned_before_is_free_to_train_in_whatever_stage():
    """A hospital alone may meet its first task in the second stage."""
    net = built()
    first = replace(at(net, 1, 0), past=())
    for moment, value in ((first, _den.FREE), (at(net, 1, 0), _den.KEPT)):
        params, _ = DEN().merged(moment, {}, _den_params(net), {})
        assert params["gates.t1.trunk.layers-0.trains"].eq(value).all()
    grown, _ = DEN(above=0.0).merged(replace(first, round=5, losses={"t1": 9.0}), params, params, {})
    assert len(grown["trunk.layers.0.weight"]) == 4


@pytest.mark.parametrize("name", ["mlp", "cnn", "maps"])
def test_a_split_gives_the_old_tasks_back_what_they_had_and_changes_no_current_answer(name):
    trunks = {"mlp": {}, "cnn": {"channels": [3, 4], "width": 6}, "maps": {"channels": [3, 4], "width": 0}}
    net = built("mlp" if name == "mlp" else "cnn", **trunks[name]).eval()
    x = torch.rand(6, 1, 8, 8)
    old = net(x, "t0")
    rule = DEN(units=2, split=0.2)
    params, state = rule.merged(at(net, 1, 0), {}, {k: v.clone() for k, v in net.state_dict().items()}, {})
    params, state = rule.merged(at(net, 1, 5, loss=1.0), params, params, state)
    torch.manual_seed(1)
    moved = {
        k: v + 0.3 * torch.randn_like(v) if k.startswith(("trunk.", "tasks.t1.")) else v for k, v in params.items()
    }
    drifted = _load(net, moved)
    split, _ = rule.merged(at(net, 1, 8, loss=1.0), moved, moved, state)
    after = _load(net, split)
    assert not torch.allclose(drifted(x, "t0"), old, atol=1e-3)
    assert torch.equal(after(x, "t0"), old)  # all units drifted, so all are back, to the bit
    torch.testing.assert_close(after(x, "t1"), drifted(x, "t1"), rtol=1e-5, atol=1e-5)
    first = net.growable(())[0]
    copies = first.units(split) - first.units(moved)
    assert copies > 0
    assert split[structure.masks("t1", first)[1]][-copies:].eq(_den.FREE).all()
    emptied = split | {first.rows[0].name: split[first.rows[0].name].clone()}
    emptied[first.rows[0].name][-1] = 0.0
    last, _ = rule.merged(at(net, 1, 10), emptied, emptied, state)
    assert first.units(last) == first.units(split)  # a copy is not what the group lasso may take


def _load(net, params):
    loaded = copy.deepcopy(net)
    structure.resize(loaded, params)
    loaded.load_state_dict(params)
    return loaded


def test_new_units_that_the_lasso_emptied_go():
    net = built()
    rule = DEN(units=3, split=99.0)
    params, state = rule.merged(at(net, 1, 0), {}, dict(net.state_dict()), {})
    params, state = rule.merged(at(net, 1, 5, loss=1.0), params, params, state)
    params["trunk.layers.0.weight"] = params["trunk.layers.0.weight"].clone()
    params["trunk.layers.0.weight"][[4, 6]] = 0.0
    kept = params["trunk.layers.0.weight"][5].clone()
    tidy, _ = rule.merged(at(net, 1, 8, loss=1.0), params, params, state)
    assert tidy["trunk.layers.0.weight"].shape == (5, 64)
    assert torch.equal(tidy["trunk.layers.0.weight"][4], kept)
    assert tidy["trunk.layers.1.weight"].shape == (6, 5)
    assert len(tidy["gates.t1.trunk.layers-0.open"]) == 5
