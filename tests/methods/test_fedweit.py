"""FedWeIT: what a task sees, what is held, what is sent, and whose knowledge a hospital uses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from contexts import context
from torch.func import functional_call

from fedcl.config import Model
from fedcl.contracts import Batch, Job, Moment, Step
from fedcl.methods import Combination
from fedcl.methods.fedweit import FedWeIT, _packed, _unpacked
from fedcl.models import dynamic_net

GATE = "gates.t0.trunk.layers-0"
NOTHING = Batch(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))


def _net(name="mlp", options=None, tasks=1, shape=(2,)):
    torch.manual_seed(0)
    model = Model(name=name, options=options or {"hidden": [2]}, masks="adaptive", adapters=2)
    net = dynamic_net.build(model, shape, 3)
    for task in range(tasks):
        net.add_task(f"t{task}", 2, 4)
    return net


def _set(net, **values):
    """Parameters and masks of task 0's first layer."""
    with torch.no_grad():
        for name, value in values.items():
            getattr(net.get_submodule(GATE), name).copy_(torch.tensor(value))


def _example(net):
    with torch.no_grad():
        net.trunk.layers[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    third = torch.log(torch.tensor(1 / 3)).item()  # σ = 1/4
    _set(net, logits=[0.0, third], adaptive=[[0.1, -0.001], [0.0, 1.0]], attention=[2.0, -1.0], bias=[5.0, 6.0])
    _set(net, received=[[[1.0, 0.0], [0.0, 0.5]], [[0.0, 3.0], [0.0, 0.0]]], threshold=0.001)


def test_a_task_s_weight_by_hand():
    """B ⊙ m + A + 2 A_1 − A_2 with m = (½, ¼); -0.001 is not above the threshold and counts in training only."""
    net = _net()
    _example(net)
    mask, layer = net.get_submodule(GATE), net.trunk.layers[0]
    expected = torch.tensor([[0.5 + 0.1 + 2, 1 - 0.001 - 3], [0.75, 1 + 1 + 1.0]])
    torch.testing.assert_close(mask(layer.weight), expected)
    assert mask(layer.bias).tolist() == [5.0, 6.0]
    net.eval()
    expected[0, 1] += 0.001
    torch.testing.assert_close(mask(layer.weight), expected)
    x = torch.tensor([[1.0, -1.0]])
    torch.testing.assert_close(net.features(x, "t0"), torch.relu(x @ expected.T + torch.tensor([5.0, 6.0])))


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("mlp", {"hidden": [6, 5]}, (1, 8, 8)),
        ("mlp", {"hidden": [6], "bias": False}, (1, 8, 8)),
        ("cnn", {"channels": [3, 4], "width": 5}, (1, 8, 8)),
        ("resnet18", {"width_multiplier": 0.0625}, (1, 8, 8)),
    ],
)
def test_every_layer_of_a_trunk_is_seen_so(name, options, shape):
    net = _net(name, options, shape=shape)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in net.gates["t0"].trunk.state_dict().items():
            if not key.endswith("threshold"):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    weights = dict(net.trunk.named_parameters())
    for key, mask in net.gates["t0"].trunk.items():
        layer = key.replace("-", ".")
        weight = weights[f"{layer}.weight"]
        gate = torch.sigmoid(mask.logits).reshape(-1, *[1] * (weight.dim() - 1))
        others = mask.attention[0] * mask.received[0] + mask.attention[1] * mask.received[1]
        weights[f"{layer}.weight"] = weight * gate + mask.adaptive + others
        if f"{layer}.bias" in weights:
            weights[f"{layer}.bias"] = mask.bias
    x = torch.randn(3, *shape, generator=generator)
    torch.testing.assert_close(net.features(x, "t0"), functional_call(net.trunk, weights, (x,)))


def _past():
    """Task 1 is trained; task 0's layer was ((1, 2), (3, 4)) ⊙ (½, ¼) + 0, and A and B have moved since."""
    net = _net(tasks=2)
    base = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    gate = torch.tensor([0.5, 0.25])
    memory = {"gate/t0/layers.0": gate, "held/t0/layers.0": base * gate[:, None]}
    params = {
        "trunk.layers.0.weight": base + torch.tensor([[1.0, 0.0], [0.0, -2.0]]),
        f"{GATE}.adaptive": torch.tensor([[0.5, 0.0], [0.1, 0.0]]),
        f"{GATE.replace('t0', 't1')}.logits": torch.tensor([1.0, 0.0]),
        f"{GATE.replace('t0', 't1')}.adaptive": torch.tensor([[0.0, -1.0], [2.0, 0.0]]),
    }
    params = {name: value.requires_grad_() for name, value in params.items()}
    return context(net, task=1, past=(0,)), params, memory


def test_retention_by_hand():
    """ΔB ⊙ m + ΔA = ((½ + ½, 0), (0.1, −½)): squares sum to 1.26; dB = 2λ2 (·) m, dA = 2λ2 (·)."""
    ctx, params, memory = _past()
    method = FedWeIT(strength=10.0, sparsity=0.0, step="explicit")
    value = method.penalty(ctx, params, NOTHING, memory)
    torch.testing.assert_close(value, torch.tensor(12.6))
    value.backward()
    drift = torch.tensor([[1.0, 0.0], [0.1, -0.5]])
    torch.testing.assert_close(params[f"{GATE}.adaptive"].grad, 20 * drift)
    gate = torch.tensor([[0.5], [0.25]])
    torch.testing.assert_close(params["trunk.layers.0.weight"].grad, 20 * drift * gate)
    assert method.penalty(ctx, params, NOTHING, {}).item() == 0.0  # it never had task 0


def test_sparsity_by_hand():
    """λ1 (|A| of both tasks 0.6 + 3, and σ(1) + σ(0) of the task's mask)."""
    ctx, params, memory = _past()
    value = FedWeIT(sparsity=0.1).penalty(ctx, params, NOTHING, memory)
    torch.testing.assert_close(value, torch.tensor(0.1 * (0.6 + 3 + 0.7310586 + 0.5)))


def test_the_proximal_step_is_the_minimum():
    ctx, params, memory = _past()
    method, eta = FedWeIT(strength=3.0, closed=0.0), ctx.lr
    after = {name: value.detach() for name, value in params.items()}
    ctx = replace(ctx, start={"trunk.layers.0.weight": torch.zeros(2, 2)})
    edited, _ = method.edit_update(ctx, Step({}, {}, after), memory)
    base, adaptive = (edited[name].clone().requires_grad_() for name in ("trunk.layers.0.weight", f"{GATE}.adaptive"))
    gate, held = memory["gate/t0/layers.0"][:, None], memory["held/t0/layers.0"]
    moved = (base - after["trunk.layers.0.weight"]).square().sum() + (
        adaptive - after[f"{GATE}.adaptive"]
    ).square().sum()
    (moved / 2 + eta * 3.0 * (base * gate + adaptive - held).square().sum()).backward()
    for value in (base, adaptive):
        torch.testing.assert_close(value.grad, torch.zeros(2, 2), atol=1e-6, rtol=0)
    assert not torch.equal(base, after["trunk.layers.0.weight"])


def test_a_closed_unit_s_base_does_not_move():
    """Half of two units: the smaller mask is row 1; it is back where the round began, by a bit."""
    ctx, params, memory = _past()
    start = torch.tensor([[0.3, 0.3], [0.7, 0.7]])
    ctx = replace(ctx, start={"trunk.layers.0.weight": start})
    after = {name: value.detach() for name, value in params.items()}
    edited, _ = FedWeIT(closed=0.5, strength=3.0).edit_update(ctx, Step({}, {}, after), memory)
    assert torch.equal(edited["trunk.layers.0.weight"][1], start[1])
    assert not torch.equal(edited["trunk.layers.0.weight"][0], start[0])
    pull = 2 * 0.1 * 3 / (1 + 2 * 0.1 * 3)  # A alone absorbs: A − p (B m + A − θ)
    expected = torch.tensor([0.1, 0.0]) - pull * (
        start[1] * 0.25 + torch.tensor([0.1, 0.0]) - torch.tensor([0.75, 1.0])
    )
    torch.testing.assert_close(edited[f"{GATE}.adaptive"][1], expected)


def test_the_server_averages_over_those_that_sent():
    """Unit 0 came of 3 of 4 samples: a mean over all of 3 is one of 4; unit 1 of nobody stays; unit 2 of all."""
    method = FedWeIT()
    uploads = [
        (3.0, {"open/layers.0": torch.tensor([True, False, True])}),
        (1.0, {"open/layers.0": torch.tensor([False, False, True])}),
    ]
    shares, news = method.server({}, {}, uploads)
    assert shares["open/layers.0"].tolist() == [0.75, 0.0, 1.0]
    assert news == {}
    before = {"trunk.layers.0.weight": torch.ones(3, 2)}
    params = {"trunk.layers.0.weight": torch.tensor([[4.0, 1.0], [1.0, 1.0], [3.0, 3.0]])}
    moment = Moment(0, 1, 2, ("t0",), ())
    merged = method.merged(moment, before, params, shares)[0]["trunk.layers.0.weight"]
    assert merged.tolist() == [[5.0, 1.0], [1.0, 1.0], [3.0, 3.0]]


def test_what_is_sent_of_a_task_has_exact_zeros():
    """Of A = ((0.1, -0.001), (0, 1)) the last entry, the fourth: one bit an entry says so in a byte."""
    net = _net()
    _example(net)
    ctx, method = context(net), FedWeIT(sparsity=0.1)
    params = dict(net.named_parameters())
    assert method.upload(method.end_task(ctx, params, NOTHING, {})) == {}  # it sat the task out
    memory = method.end_task(ctx, params, NOTHING, method.end_round(ctx, params, {}))
    sent = method.upload(memory)
    assert {name: value.tolist() for name, value in sent.items()} == {
        "mine/0/values": [1.0],
        "mine/0/places": [0b00010000],
    }
    torch.testing.assert_close(memory["held/t0/layers.0"], torch.tensor([[0.6, 0.999], [0.75, 2.0]]))
    again = method.upload(method.end_round(ctx, params, memory))
    assert set(again) == {"open/layers.0"}  # once a task
    assert again["open/layers.0"].dtype == torch.bool  # a byte a unit


def _fresh(client, memory):
    net = _net()
    module = {name: value for name, value in net.state_dict().items() if not name.startswith("trunk.")}
    shared = {name: value for name, value in net.state_dict().items() if name.startswith("trunk.")}
    return FedWeIT(start=0.5).new_module(client, module, shared, memory), shared


def test_a_new_module_begins_with_others_knowledge_and_never_its_own():
    knowledge = {}
    for client in range(4):
        knowledge |= _packed({"layers.0": torch.full((2, 2), float(client))}, f"theirs/{client}/")
    for client, others in {0: [1.0, 2.0], 1: [2.0, 3.0], 2: [3.0, 0.0], 3: [0.0, 1.0]}.items():
        module, shared = _fresh(client, knowledge)
        assert module[f"{GATE}.received"][:, 0, 0].tolist() == others
    assert torch.equal(module[f"{GATE}.adaptive"], 0.5 * shared["trunk.layers.0.weight"])
    assert torch.equal(module[f"{GATE}.bias"], shared["trunk.layers.0.bias"])
    torch.testing.assert_close(module[f"{GATE}.threshold"], torch.tensor(0.001))
    alone, _ = _fresh(2, _packed({"layers.0": torch.ones(2, 2)}, "theirs/2/"))
    assert not alone[f"{GATE}.received"].any()


LAYERS = {"layers.0": torch.tensor([[0.5, -2.0], [0.25, 1.0]]), "convs.1": torch.arange(1.0, 97.0).view(3, 4, 2, 4)}


@pytest.mark.parametrize(
    ("kept", "most"),
    [
        (1.0, 4 * 100),  # all of them, without places
        (0.5, 4 * 50 + 13),  # half, and a bit for each of 100
        (0.02, 8 * 2),  # two, and where they are
        (0.0, 0),
    ],
)
def test_sparse_weights_travel_as_few_bytes_and_come_back(kept, most):
    """Two layers of 4 and 96 weights, of which the largest stay."""
    least = torch.cat([value.abs().flatten() for value in LAYERS.values()]).sort(descending=True).values
    floor = least[int(kept * 100)] if kept < 1 else 0.0
    layers = {name: value * (value.abs() > floor) for name, value in LAYERS.items()}
    packed = _packed(layers, "theirs/3/")
    assert sum(value.nbytes for value in packed.values()) == most
    other = _packed({"layers.0": torch.ones(1)}, "theirs/30/")
    found = _unpacked(other | packed, "theirs/3/", LAYERS)
    assert found.keys() == LAYERS.keys()
    assert all(torch.equal(found[name], layers[name]) for name in LAYERS)


def test_the_server_keeps_the_latest_of_each_hospital():
    """Also where what came first was sparse and what came later is not, or the other way round."""
    method = FedWeIT()
    sparse, full = torch.zeros(40).index_fill(0, torch.tensor([7]), 3.0), torch.arange(1.0, 41.0)
    first = [(1.0, _packed({"layers.0": sparse}, "mine/0/")), (1.0, _packed({"layers.0": full}, "mine/1/"))]
    later = [(1.0, _packed({"layers.0": full}, "mine/0/")), (1.0, _packed({"layers.0": sparse}, "mine/1/"))]
    news = method.server({}, {}, first)[1] | method.server({}, {}, later)[1]
    found = [_unpacked(news, f"theirs/{client}/", {"layers.0": full})["layers.0"] for client in (0, 1)]
    assert torch.equal(found[0], full)
    assert torch.equal(found[1], sparse)
    assert method.receive(news, {"held/t0/layers.0": torch.ones(1)}).keys() == {"held/t0/layers.0", *news}


def test_of_an_earlier_task_only_its_own_weights_move():
    method = Combination({"fedweit": FedWeIT()})
    job = Job("train", 1, 2, ("t1",), {}, past=("t0",))
    moving = ["trunk.layers.0.weight", "gates.t1.trunk.layers-0.logits", "tasks.t1.out.bias", f"{GATE}.adaptive"]
    still = [f"{GATE}.logits", f"{GATE}.attention", f"{GATE}.bias", "tasks.t0.out.bias", "gates.t0.logits"]
    assert [method.moves(name, job) for name in moving + still] == [True] * 4 + [False] * 5


def test_who_has_no_samples_counts_for_nothing():
    sent = {"fedweit/open/layers.0": torch.tensor([True, False])}
    assert Combination({"fedweit": FedWeIT()}).absorb("round", {}, {}, [(0.0, sent)]) == ({}, {})
