"""Growth, for every layer of every trunk: no answer changes when units come, nor ever for who has not met them."""

from __future__ import annotations

import copy

import pytest
import torch

from fedcl import own, structure
from fedcl.config import Model
from fedcl.contracts import Job
from fedcl.extract import extract
from fedcl.models import dynamic_net

TRUNKS = {
    "mlp": Model(name="mlp", options={"hidden": [9, 7]}, expansion_units=5, masks="slices"),
    "normed": Model(name="mlp", options={"hidden": [9, 7]}, expansion_units=5, masks="slices", weight_norm=True),
    "no bias": Model(name="mlp", options={"hidden": [9], "bias": False}, expansion_units=5, masks="slices"),
    "cnn": Model(name="cnn", options={"channels": [3, 4], "width": 6}, expansion_units=5, masks="slices"),
    "maps": Model(name="cnn", options={"channels": [3, 4], "width": 0}, expansion_units=5, masks="slices"),
    "vit": Model(name="vit", options={"dim": 8, "depth": 2, "heads": 2}, expansion_units=5, masks="slices"),
    "adapters": Model(name="vit", options={"dim": 8, "depth": 2, "heads": 2, "adapters": True}, masks="slices"),
}
SHAPE = (1, 8, 8)


def _net(model):
    torch.manual_seed(0)
    net = dynamic_net.build(model, SHAPE, 4)
    net.add_task("t0", 3, model.expansion_units)
    net.add_task("t1", 2, model.expansion_units)
    return net.eval()


def _grown(net, params):
    grown = copy.deepcopy(net)
    structure.resize(grown, params)
    grown.load_state_dict(params)
    return grown


def _layers(net):
    return net.growable(["t1"])


CASES = [(name, place) for name, model in TRUNKS.items() for place in range(len(_layers(_net(model))))]

TRUNK_CASES = [(name, place) for name, place in CASES if place < len(_net(TRUNKS[name]).growable(()))]


@pytest.mark.parametrize(("name", "place"), CASES)
def test_growth_changes_no_answer(name, place):
    net, x = _net(TRUNKS[name]), torch.rand(6, *SHAPE)
    layer, params = _layers(net)[place], net.state_dict()
    wider = structure.widen(params, layer, 3, ["t1"], torch.Generator().manual_seed(1))
    grown = _grown(net, wider)
    assert layer.units(wider) == layer.units(params) + 3
    assert torch.equal(grown(x, "t0"), net(x, "t0")), "an old task's answers keep every bit"
    torch.testing.assert_close(grown(x, "t1"), net(x, "t1"), rtol=0, atol=1e-6)  # a wider product reorders sums

    moved = {  # whatever the new units learn
        key: value if value.shape == params[key].shape else value + _only_new(value, params[key].shape)
        for key, value in wider.items()
        if not key.endswith(".open")
    }
    trained = _grown(net, wider | moved)
    assert torch.equal(trained(x, "t0"), net(x, "t0"))
    assert not torch.allclose(trained(x, "t1"), net(x, "t1"), atol=1e-4), "the current task uses them"


def _only_new(value, old):
    noise = torch.rand_like(value)
    noise[tuple(slice(size) for size in old)] = 0
    return noise


@pytest.mark.parametrize(("name", "place"), TRUNK_CASES)
def test_a_task_that_is_back_grows_without_the_units_that_others_got(name, place):
    net, x = _net(TRUNKS[name]), torch.rand(6, *SHAPE)
    layer, draws = net.growable(())[place], torch.Generator().manual_seed(1)
    wider = structure.widen(net.state_dict(), layer, 3, ["t1"], draws)
    learned = {  # t1 goes on with what it shares and with its own
        key: value + 0.3 * torch.randn_like(value) if key.startswith(("trunk.", "tasks.t1.")) else value
        for key, value in wider.items()
    }
    before = _grown(net, learned)
    back = structure.widen(learned, layer, 2, ["t0"], draws)
    after = _grown(net, back)
    assert back[structure.masks("t0", layer)[0]].tolist()[-5:] == [0, 0, 0, 1, 1]
    torch.testing.assert_close(after(x, "t0"), before(x, "t0"), rtol=0, atol=1e-6)
    assert torch.equal(after(x, "t1"), before(x, "t1"))
    opened = back | {structure.masks("t0", layer)[0]: torch.ones(layer.units(back))}
    if layer.columns:
        assert not torch.allclose(_grown(net, opened)(x, "t0"), before(x, "t0"), atol=1e-4), "they would be heard"


@pytest.mark.parametrize(("flags", "opened"), [(("begin",), 0.0), ((), 1.0)])
def test_a_module_at_its_hospital_opens_what_came_in_its_stage(flags, opened):
    net = _net(TRUNKS["mlp"])
    layers = net.growable(())
    shared = {name: value for name, value in net.state_dict().items() if name.startswith("trunk.")}
    memory = {f"own/{name}": value for name, value in net.state_dict().items() if name not in shared}
    for layer in layers:
        shared = structure.widen(shared, layer, 3, ["t0"], torch.Generator().manual_seed(1))
    job = own.bring(Job("train", 1, 0, ("t0",), shared, flags=flags), memory, lambda task: {}, layers)
    for layer, old in zip(layers, (9, 7), strict=True):
        assert job.arrays[structure.masks("t0", layer)[0]].tolist() == [1.0] * old + [opened] * 3
    assert job.arrays["tasks.t0.hidden.weight"].shape == (5, 10)


@pytest.mark.parametrize("heads", ["shared", "domain"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "maps", "vit"])
def test_growth_behind_a_head_that_tasks_share_changes_no_answer(name, heads):
    torch.manual_seed(0)
    net = dynamic_net.build(TRUNKS[name].model_copy(update={"heads": heads, "masks": "none"}), SHAPE, 4).eval()
    net.add_task("t0", 2, 5)
    x, wider, layers = torch.rand(6, *SHAPE), net.state_dict(), net.growable(["t0"])
    for layer in layers:
        wider = structure.widen(wider, layer, 3, ["t0"], torch.Generator().manual_seed(1))
    grown = _grown(net, wider)
    assert all(layer.units(wider) == layer.units(net.state_dict()) + 3 for layer in layers)
    torch.testing.assert_close(grown(x, "t0"), net(x, "t0"), rtol=0, atol=1e-6)
    for layer in layers:  # and each new unit is read by somebody
        moved = wider | {axis.name: torch.randn_like(wider[axis.name]) for axis in layer.columns}
        assert not torch.allclose(_grown(net, moved)(x, "t0"), net(x, "t0"), atol=1e-4)


@pytest.mark.parametrize(("name", "place"), CASES)
def test_what_was_added_can_be_taken_away(name, place):
    net = _net(TRUNKS[name])
    layer, params = _layers(net)[place], net.state_dict()
    wider = structure.widen(params, layer, 3, ["t1"], torch.Generator().manual_seed(1))
    kept = torch.ones(layer.units(wider), dtype=torch.bool)
    kept[-3:] = False
    back = structure.drop(wider, layer, kept, ["t1"])
    assert back.keys() == params.keys()
    for key, value in params.items():
        assert torch.equal(back[key], value), key


@pytest.mark.parametrize("name", TRUNKS)
def test_new_units_start_as_a_fresh_layers_do(name):
    net = _net(TRUNKS[name])
    for layer in _layers(net):
        wider = structure.widen(net.state_dict(), layer, 50, ["t1"], torch.Generator().manual_seed(1))
        axis = layer.rows[0]
        old = net.state_dict()[axis.name]
        new = wider[axis.name][len(old) :]
        bound = (old[0] if len(old) else new[0]).numel() ** -0.5
        assert new.abs().max() <= bound
        assert new.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)


def test_only_parts_of_layers_that_are_used_cost_anything():
    """Units that a task has closed are left out where it only answers."""
    net, x = _net(TRUNKS["vit"]), torch.rand(6, *SHAPE)
    net.get_buffer("gates.t1.trunk.blocks-0-attention-qkv.open")[0] = 0
    net.get_buffer("gates.t1.trunk.blocks-1-up.open")[3:] = 0
    small = extract(net, "t1")
    torch.testing.assert_close(small(x, "t1"), net(x, "t1"), rtol=0, atol=1e-6)
    assert small.get_parameter("trunk.blocks.0.attention.qkv.weight").shape == (12, 8)
    assert small.get_parameter("trunk.blocks.1.down.weight").shape == (8, 3)
    assert sum(small.sizes().values()) < net.sizes()["trunk"]
    assert list(small.tasks) == ["t1"]


def test_what_is_kept_by_parameter_follows():
    params = {"trunk.layers.0.weight": torch.zeros(3, 4), "trunk.layers.0.bias": torch.zeros(3)}
    memory = {
        "ewc/importance/trunk.layers.0.weight": torch.ones(2, 2),
        "ewc/stack/trunk.layers.0.bias": torch.ones(5, 2),  # with a leading axis of stages
        "optimizer/trunk.layers.0.weight/exp_avg": torch.ones(4, 4),  # units were taken away
        "optimizer/trunk.layers.0.weight/step": torch.tensor(7.0),
        "own/trunk.layers.0.weight": torch.ones(1),
        "replay/x": torch.ones(9),
    }
    fitted = structure.fit(memory, params)
    wide = fitted["ewc/importance/trunk.layers.0.weight"]
    assert wide.shape == (3, 4)
    assert wide[:2, :2].eq(1).all()
    assert wide.sum() == 4
    assert fitted["ewc/stack/trunk.layers.0.bias"].shape == (5, 3)
    assert fitted["optimizer/trunk.layers.0.weight/exp_avg"].shape == (3, 4)
    for same in ("optimizer/trunk.layers.0.weight/step", "own/trunk.layers.0.weight", "replay/x"):
        assert fitted[same] is memory[same]
    assert structure.fit(fitted, params) is fitted


def test_what_is_kept_of_units_that_went_and_of_those_behind_starts_anew():
    """Of 7 units number 4 goes, so that 5 and 6 move up: what was kept of 0 to 3 stays theirs, the rest is zero."""
    net = _net(Model(name="mlp", options={"hidden": [7, 3]}, expansion_units=5, masks="slices"))
    first, last = net.growable(())
    kept = torch.tensor([True] * 4 + [False] + [True] * 2)
    params = structure.drop(net.state_dict(), first, kept, ["t0", "t1"])
    of = torch.arange(1.0, 8.0)
    memory = {
        "m_t/trunk.layers.0.weight": of[:, None].expand(7, 64).clone(),
        "si/path/trunk.layers.0.bias": of,
        "ewc/stack/trunk.layers.1.weight": of.expand(2, 3, 7).clone(),  # with a leading axis of stages
        "optimizer/trunk.layers.0.weight/step": torch.tensor(7.0),
        "residual/trunk.layers.1.bias": torch.ones(3),
    }
    cut = structure.cut(memory, structure.ends(params, first, int(structure.first(kept)), ["t0", "t1"]))
    fitted = structure.fit(cut, params)
    left = [1, 2, 3, 4, 0, 0]
    assert fitted["m_t/trunk.layers.0.weight"][:, 0].tolist() == left
    assert fitted["si/path/trunk.layers.0.bias"].tolist() == left
    assert fitted["ewc/stack/trunk.layers.1.weight"][1, 2].tolist() == left
    for same in ("optimizer/trunk.layers.0.weight/step", "residual/trunk.layers.1.bias"):
        assert torch.equal(fitted[same], memory[same])
    places = structure.ends(params, last, 2, ["t1"])  # of the last layer tasks' modules are the readers
    assert {place: int(end) for place, end in places.items()} == {
        "trunk.layers.1.weight/-2": 2,
        "trunk.layers.1.bias/-1": 2,
        "tasks.t1.hidden.weight/-1": 2,
    }


def test_a_channel_is_kept_by_its_pixels():
    net = _net(TRUNKS["maps"])  # 4 channels of 2 × 2 pixels
    assert int(structure.ends(net.state_dict(), net.growable(())[1], 3, ["t1"])["tasks.t1.hidden.weight/-1"]) == 12
