from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcl import fisher, sample_moments
from fedcl.config import Model
from fedcl.models import dynamic_net

Net = Callable[[nn.Module, Tensor], Tensor]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def measure(net: nn.Module, x: Tensor, y: Tensor, forward: Net | None = None, **options: Any) -> dict[str, Tensor]:
    names = [name for name, _ in net.named_parameters()]
    run = forward or (lambda net, x: net(x))
    return fisher.diagonal(net, lambda x: run(net, x), names, x, y, **({"generator": draws()} | options))


def by_hand(net: nn.Module, x: Tensor, y: Tensor, forward: Net | None = None, kind: str = "exact") -> dict[str, Tensor]:
    """The definition, one sample and one class at a time."""
    run = forward or (lambda net, x: net(x))
    named = dict(net.named_parameters())
    total = {name: torch.zeros_like(value) for name, value in named.items()}
    for n in range(len(x)):
        logp = F.log_softmax(run(net, x[n : n + 1])[0], dim=0)
        for c in range(len(logp)) if kind == "exact" else [int(y[n])]:
            weight = float(logp[c].detach().exp()) if kind == "exact" else 1.0
            if weight == 0:
                continue
            grads = torch.autograd.grad(logp[c], list(named.values()), retain_graph=True, allow_unused=True)
            for name, grad in zip(named, grads, strict=True):
                if grad is not None:
                    total[name] += weight * grad.square() / len(x)
    return total


def check(net: nn.Module, x: Tensor, forward: Net | None = None, classes: int = 3, chunk: int = 2) -> None:
    """The closed form and vmap against the definition, in double precision."""
    net, x = net.double().eval(), x.double()
    y = torch.arange(len(x)) % classes
    for kind in ("exact", "empirical"):
        ours = measure(net, x, y, forward, kind=kind, chunk=chunk)
        reference = by_hand(net, x, y, forward, kind)
        assert ours.keys() == reference.keys()
        for name, value in reference.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-15, msg=lambda m, n=name: f"{n}: {m}")
    assert sum(float(value.sum()) for value in ours.values()) > 0


TRUNKS = [
    ("mlp", {"hidden": [5, 4], "activation": "tanh"}),
    ("cnn", {"channels": [3, 4], "width": 6}),
    ("resnet18", {"width_multiplier": 0.0625, "groups": 2}),
    ("vit", {"dim": 8, "depth": 1, "heads": 2}),
    ("vit", {"dim": 8, "depth": 2, "heads": 2, "pool": "class"}),
]


@pytest.mark.parametrize(("name", "options"), TRUNKS)
@pytest.mark.parametrize("weight_norm", [False, True])
def test_trunk_module_and_gate_equal_the_definition(name: str, options: dict[str, Any], weight_norm: bool) -> None:
    torch.manual_seed(1)
    net = dynamic_net.build(Model(name=name, options=options, weight_norm=weight_norm), (1, 8, 8), 3)
    net.add_task("t0", 3, 4)
    net.gates["t0"].logits.data.normal_()
    net.gates["t0"].mask[1] = 0
    check(net, torch.randn(3, 1, 8, 8), lambda net, x: net(x, "t0"))


def test_other_tasks_heads_have_zero() -> None:
    net = dynamic_net.build(Model(options={"hidden": [4]}), (6,), 3)
    for task in ("t0", "t1"):
        net.add_task(task, 3, 4)
    found = measure(net, torch.randn(5, 6), torch.zeros(5).long(), lambda net, x: net(x, "t0"), kind="exact")
    assert all(bool((value == 0).all()) for name, value in found.items() if ".t1." in name)
    assert all(bool((value > 0).any()) for name, value in found.items() if ".t1." not in name)


def test_logistic_regression_by_hand() -> None:
    net = nn.Linear(2, 2)
    nn.init.zeros_(net.weight)
    net.bias.data = torch.tensor([torch.log(torch.tensor(3.0)), 0.0])  # p = (3/4, 1/4)
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    found = measure(net, x, torch.tensor([0, 1]), kind="exact")
    # p (1 - p) x², a mean over two samples: 3/16 · (1 + 9) / 2 and 3/16 · (4 + 0) / 2
    torch.testing.assert_close(found["weight"], torch.tensor([[15 / 16, 6 / 16]] * 2))
    torch.testing.assert_close(found["bias"], torch.tensor([3 / 16, 3 / 16]))
    found = measure(net, x, torch.tensor([0, 1]), kind="empirical")
    # (1 - p_y)² x²: 1/16 · 1 and 9/16 · 9, halved
    torch.testing.assert_close(found["weight"][0], torch.tensor([(1 + 81) / 32, 4 / 32]))


def test_sampled_comes_nearer_to_exact_with_more_draws() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x = torch.randn(20, 4)
    exact = measure(net, x, torch.zeros(20).long(), kind="exact")

    def error(repeats: int) -> float:
        many = x.repeat(repeats, 1)
        sampled = measure(net, many, torch.zeros(len(many)).long(), kind="sampled")
        return max(float((sampled[name] - exact[name]).norm() / exact[name].norm()) for name in exact)

    assert error(500) < 0.05 < error(1)


def test_a_mean_batch_gradient_squared_would_be_smaller_by_the_batch_size() -> None:
    torch.manual_seed(0)
    net, size = nn.Linear(10, 3), 16
    x = torch.randn(4096, 10)
    y = torch.multinomial(net(x).softmax(1), 1, generator=draws())[:, 0]
    empirical = sum(float(value.sum()) for value in measure(net, x, y, kind="empirical").values())
    batched = 0.0
    for xs, ys in zip(x.split(size), y.split(size), strict=True):
        grads = torch.autograd.grad(F.cross_entropy(net(xs), ys), list(net.parameters()))
        batched += sum(float(grad.square().sum()) for grad in grads) / (len(x) / size)
    assert empirical / batched == pytest.approx(size, rel=0.1)


def test_closed_classes_have_no_weight_and_no_nan() -> None:
    torch.manual_seed(0)
    net = dynamic_net.build(Model(heads="shared", options={"hidden": [4]}), (5,), 4)
    net.allow([1, 3])
    x, y = torch.randn(6, 5), torch.tensor([1, 3] * 3)
    for kind in ("exact", "sampled", "empirical"):
        found = measure(net, x, y, lambda net, x: net(x, "t0"), kind=kind)
        assert all(bool(torch.isfinite(value).all()) for value in found.values())
        assert found["tasks.shared.out.bias"].gt(0).tolist() == [False, True, False, True]
    check(net, x, lambda net, x: net(x, "t0"), classes=1)


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)


def late(net: nn.Module, x: Tensor) -> Tensor:
    x = x.clone()
    h = torch.tanh(net.a(x))
    x.mul_(3)
    return net.c(h + x)


USES: dict[str, Net] = {
    "a layer twice": lambda net, x: net.c(torch.tanh(net.a(torch.tanh(net.a(x))))),
    "two layers with one weight": lambda net, x: net.c(torch.tanh(net.b(torch.tanh(net.a(x))))),
    "a weight without its layer": lambda net, x: net.c(torch.tanh(F.linear(x, net.a.weight, net.a.bias))),
    "an output changed in place": lambda net, x: net.c(net.a(x).relu_()),
}


@pytest.mark.parametrize("use", USES)
def test_unusual_uses_of_layers(use: str) -> None:
    torch.manual_seed(2)
    net = Three()
    if use == "two layers with one weight":
        net.b.weight = net.a.weight
    check(net, torch.randn(5, 4), USES[use])


def test_an_input_changed_in_place_after_the_call_is_never_mistaken() -> None:
    net = Three().requires_grad_(False)  # else autograd would refuse the net anyway
    net.b = nn.Identity()
    with pytest.raises(RuntimeError, match="inplace"):
        measure(net, torch.randn(5, 4), torch.zeros(5).long(), late, kind="exact")


@pytest.mark.parametrize(
    "conv",
    [
        {"stride": 2, "padding": 1},
        {"dilation": 2, "padding": (2, 1)},
        {"groups": 2},
        {"groups": 2, "bias": False, "stride": (1, 2)},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "circular"},
    ],
)
def test_convolutions(conv: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(2, 4, 3, **conv), torch.randn(3, 2, 6, 5)
    check(nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(layer(x)[0].numel(), 3)), x)


def test_large_gradients_are_summed_sample_by_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(48, 3)), torch.randn(5, 1, 6, 6)
    monkeypatch.setattr(sample_moments, "_BLOCK", 1000)  # 4 samples at once, and 27 weights are many
    check(net, x, chunk=5)


def test_tokens_and_frozen_parameters() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2), nn.Flatten(), nn.Linear(6, 3))
    x = torch.randn(4, 3, 4)
    check(net, x)
    free = measure(net, x.double(), torch.zeros(4).long(), kind="exact")
    for value in net.parameters():
        value.requires_grad_(False)
    frozen = measure(net, x.double(), torch.zeros(4).long(), kind="exact")
    assert all(torch.equal(free[name], frozen[name]) for name in free)
    assert all(value.grad is None and not value.requires_grad for value in net.parameters())


def test_single_precision_and_chunks_change_nothing() -> None:
    torch.manual_seed(0)
    net = dynamic_net.build(Model(), (1, 8, 8), 10)
    net.add_task("t0", 2, 32)
    x, y = torch.rand(50, 1, 8, 8), torch.randint(0, 2, (50,))
    whole = measure(net, x, y, lambda net, x: net(x, "t0"), kind="exact")
    parts = measure(net, x, y, lambda net, x: net(x, "t0"), kind="exact", chunk=7)
    reference = by_hand(copy.deepcopy(net).double(), x.double(), y, lambda net, x: net(x, "t0"))
    for name, value in reference.items():
        torch.testing.assert_close(whole[name].double(), value, rtol=1e-4, atol=1e-10)
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-10)


def test_measured_in_evaluation_mode_which_is_put_back() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 3)).train()
    net[0].eval()
    x, y = torch.randn(5, 4), torch.zeros(5).long()
    state = copy.deepcopy(net.state_dict())
    found = measure(net, x, y, kind="exact")
    assert [module.training for module in net] == [False, True, True, True]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    expected = by_hand(copy.deepcopy(net).eval(), x, y)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_draws_come_from_the_generator_alone() -> None:
    torch.manual_seed(0)
    net, x, y = nn.Linear(4, 3), torch.randn(30, 4), torch.zeros(30).long()
    before = torch.get_rng_state()
    first, again, other = (measure(net, x, y, kind="sampled", generator=draws(s))["weight"] for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_mistakes_are_refused() -> None:
    net, x, y = nn.Sequential(nn.Linear(4, 3), nn.PReLU()), torch.randn(3, 4), torch.zeros(3).long()
    with pytest.raises(ValueError, match="exact, sampled, empirical"):
        measure(net, x, y, kind="batched")
    with pytest.raises(ValueError, match="0 samples"):
        measure(net, x[:0], y[:0], kind="exact")
    with pytest.raises(ValueError, match="nothing"):
        fisher.diagonal(net, net, ["nothing"], x, y, kind="exact", generator=draws())
    copies = {name: value.detach().clone() for name, value in net.named_parameters()}
    with pytest.raises(ValueError, match="copies"):
        measure(net, x, y, lambda net, x: torch.func.functional_call(net, copies, (x,)), kind="exact")


def test_only_the_named_parameters() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), torch.randn(3, 4)
    whole = measure(net, x, torch.zeros(3).long(), kind="exact")
    names = ["0.bias", "1.weight"]
    found = fisher.diagonal(net, net, names, x, torch.zeros(3).long(), kind="exact", generator=draws())
    assert sorted(found) == names
    assert all(torch.equal(found[name], whole[name]) for name in names)


def test_a_net_that_is_its_own_forward_keeps_its_parameters() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.PReLU())
    before = dict(net.named_parameters())
    fisher.diagonal(net, net, list(before), torch.randn(3, 4), torch.zeros(3).long(), kind="exact", generator=draws())
    assert all(value is before[name] for name, value in net.named_parameters())


def test_masks_below_a_gate() -> None:
    torch.manual_seed(1)
    net = dynamic_net.build(Model(options={"hidden": [4]}, masks="units"), (6,), 3)
    net.add_task("t0", 3, 4)
    net.gates["t0"].trunk["layers-0"].scale.fill_(1.0)
    check(net, torch.randn(3, 6), lambda net, x: net(x, "t0"))
