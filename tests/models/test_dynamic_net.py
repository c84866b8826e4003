from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fedcl.config import Model
from fedcl.contracts import FedclError, role
from fedcl.models import dynamic_net
from fedcl.models.dynamic_net import DynamicNet


def default_net(*tasks: str, weight_norm: bool = False) -> DynamicNet:
    torch.manual_seed(0)
    net = dynamic_net.build(Model(weight_norm=weight_norm), (1, 8, 8), 10)
    for task in tasks:
        net.add_task(task, 2, 32)
    return net


def plain_net(hidden: list[int], shape: tuple[int, ...], bias: bool = True) -> DynamicNet:
    model = Model(heads="shared", head_bias=bias, options={"hidden": hidden, "bias": bias})
    return dynamic_net.build(model, shape, 10)


def test_names_carry_the_role() -> None:
    net = default_net("t0")
    assert {name: tuple(value.shape) for name, value in net.named_parameters()} == {
        "trunk.layers.0.weight": (128, 64),
        "trunk.layers.0.bias": (128,),
        "trunk.layers.1.weight": (64, 128),
        "trunk.layers.1.bias": (64,),
        "tasks.t0.hidden.weight": (32, 64),
        "tasks.t0.hidden.bias": (32,),
        "tasks.t0.out.weight": (2, 32),
        "tasks.t0.out.bias": (2,),
        "gates.t0.logits": (32,),
    }
    assert [name for name, _ in net.named_buffers()] == ["gates.t0.mask"]
    assert {role(name) for name in net.state_dict()} == {"", "t0"}
    assert net.sizes() == {"trunk": 64 * 128 + 128 + 128 * 64 + 64, "t0": 64 * 32 + 32 + 32 * 2 + 2 + 32}


@pytest.mark.parametrize("weight_norm", [False, True])
def test_a_new_task_leaves_old_outputs_bit_equal(weight_norm: bool) -> None:
    net, x = default_net("t0", weight_norm=weight_norm), torch.rand(5, 1, 8, 8)
    before, names = net(x, "t0"), set(net.state_dict())
    net.add_task("t1", 3, 7)
    assert torch.equal(net(x, "t0"), before)
    assert names < set(net.state_dict())
    assert net(x, "t1").shape == (5, 3)


def test_logits_by_hand() -> None:
    net, x = default_net("t0"), torch.rand(4, 1, 8, 8)
    net.gates["t0"].logits.data.normal_()
    net.gates["t0"].mask[3] = 0
    w = dict(net.named_parameters())
    h = x.flatten(1)
    for layer in ("trunk.layers.0", "trunk.layers.1", "tasks.t0.hidden"):
        h = torch.relu(h @ w[f"{layer}.weight"].T + w[f"{layer}.bias"])
    h = h / (1 + torch.exp(-w["gates.t0.logits"]))
    h[:, 3] = 0
    torch.testing.assert_close(net(x, "t0"), h @ w["tasks.t0.out.weight"].T + w["tasks.t0.out.bias"])
    assert torch.equal(net.head(net.features(x), "t0"), net(x, "t0"))


def test_a_gate_starts_open_and_closes_for_good() -> None:
    net, x = default_net("t0"), torch.rand(4, 1, 8, 8)
    gate = net.gates["t0"]
    assert torch.sigmoid(gate.logits).min() > 0.85

    def close(threshold: float) -> None:
        net.load_state_dict(dynamic_net.close_gates(net.state_dict(), threshold))

    close(0.0)
    assert gate.mask.sum() == 32
    gate.logits.data[:5] = -3.0  # σ(-3) = 0.047
    close(0.05)
    assert gate.mask.tolist() == [0.0] * 5 + [1.0] * 27
    gate.logits.data[:5] = 5.0
    close(0.05)
    assert gate.mask.sum() == 27
    net(x, "t0").sum().backward()
    assert gate.logits.grad is not None
    assert (gate.logits.grad[:5] == 0).all()
    assert (gate.logits.grad[5:] != 0).any()
    for layer in ("weight", "bias"):  # nothing flows through a closed unit
        assert (net.get_parameter(f"tasks.t0.hidden.{layer}").grad[:5] == 0).all()


def test_tasks_share_nothing_but_the_trunk() -> None:
    net, x = default_net("t0", "t1"), torch.rand(4, 1, 8, 8)
    net(x, "t0").square().sum().backward()
    moved = {name for name, value in net.named_parameters() if value.grad is not None}
    assert moved == {name for name, _ in net.named_parameters() if role(name) in ("", "t0")}


def test_frozen_parameters_do_not_move() -> None:
    net, x = default_net("t0", "t1"), torch.rand(4, 1, 8, 8)
    net.trunk.requires_grad_(False)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(x, "t1").square().sum().backward()
    optimizer.step()
    moved = {role(name) for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"t1"}


def test_weight_norm_is_a_direction_and_a_length() -> None:
    net = default_net("t0", weight_norm=True)
    length = net.get_parameter("tasks.t0.hidden.parametrizations.weight.original0")
    torch.testing.assert_close(net.tasks["t0"].hidden.weight.norm(dim=1, keepdim=True), length)
    plain = default_net("t0")
    torch.testing.assert_close(net.tasks["t0"].hidden.weight, plain.tasks["t0"].hidden.weight)
    before = net.tasks["t0"].hidden.weight.detach().clone()
    length.data.mul_(2)
    torch.testing.assert_close(net.tasks["t0"].hidden.weight, 2 * before)


@pytest.mark.parametrize("task", ["", "T0", "t.0", "t-0", "keys", "pop", "training", "forward", "0 "])
def test_task_ids_that_cannot_be_names_are_refused(task: str) -> None:
    with pytest.raises(FedclError, match="task id"):
        default_net().add_task(task, 2, 32)


def test_mistakes_say_the_way_out() -> None:
    net = default_net("t0")
    with pytest.raises(FedclError, match="added once"):
        net.add_task("t0", 2, 32)
    with pytest.raises(FedclError, match="expansion_units = 0"):
        net.add_task("t1", 2, 0)
    with pytest.raises(FedclError, match="'t9' has no module; there are: t0"):
        net(torch.rand(1, 1, 8, 8), "t9")
    with pytest.raises(FedclError, match="heads = 'shared'"):
        net.allow([0])
    with pytest.raises(FedclError, match=r"model.options.hiden.*did you mean 'hidden'"):
        dynamic_net.build(Model(options={"hiden": [3]}), (4,), 2)


def test_new_modules_take_over_mode_and_type() -> None:
    net = default_net().eval().double()
    net.add_task("t0", 2, 4)
    assert not any(module.training for module in net.modules())
    assert {value.dtype for value in net.state_dict().values()} == {torch.float64}


def test_shared_head_is_the_plain_net_bit_for_bit() -> None:
    torch.manual_seed(0)
    net = plain_net([100, 100], (1, 8, 8))
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(net(x, "t0"), plain(x.flatten(1)))
    net.add_task("t0", 2, 32)
    assert [name for name, _ in net.named_parameters()][-2:] == [
        "tasks.shared.out.weight",
        "tasks.shared.out.bias",
    ]
    assert net.sizes() == {"trunk": 6500 + 10100, "shared": 1010}
    assert (net.owner("t3"), default_net("t3").owner("t3")) == ("shared", "t3")


@pytest.mark.parametrize(("hidden", "bias", "count"), [([400, 400], True, 478_410), ([100, 100], False, 89_400)])
def test_nets_of_the_literature(hidden: list[int], bias: bool, count: int) -> None:
    net = plain_net(hidden, (1, 28, 28), bias)
    assert sum(net.sizes().values()) == count
    assert any(name.endswith("bias") for name, _ in net.named_parameters()) == bias


def test_closed_classes_get_no_probability_and_no_gradient() -> None:
    net, x = plain_net([8], (6,)), torch.rand(5, 6)
    everything = net(x, "t0")
    net.allow([2, 7])
    logits = net(x, "t0")
    assert torch.equal(logits[:, [2, 7]], everything[:, [2, 7]])
    assert (logits[:, [0, 1, 3, 4, 5, 6, 8, 9]] == -math.inf).all()
    nn.functional.cross_entropy(logits, torch.tensor([2, 7, 2, 7, 2])).backward()
    grad = net.get_parameter("tasks.shared.out.weight").grad
    assert grad.isfinite().all()
    assert grad.abs().sum(1).gt(0).nonzero().flatten().tolist() == [2, 7]
    assert "tasks.shared.closed" not in net.state_dict()
    net.allow(None)
    assert torch.equal(net(x, "t0"), everything)
    for classes in ([], [10], [-1]):
        with pytest.raises(ValueError, match="from 0 to 9"):
            net.allow(classes)
