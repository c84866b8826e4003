from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fedcl import fisher, noise
from fedcl.config import Model
from fedcl.models import dynamic_net

Diagonal = dict[str, Tensor]


def measure(net: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Diagonal:
    generator = torch.Generator().manual_seed(0)
    settings = {
        "kind": "empirical", "clip": 1.0, "noise_multiplier": 0.0, "size": 1.0, "generator": generator,
        "draw": functools.partial(noise.seeded, generator=generator),
    } | options  # fmt: skip
    names = [name for name, _ in net.named_parameters()]
    return fisher.private(net, net, names, x, y, **settings)


def by_hand(net: nn.Module, x: Tensor, y: Tensor, clip: float) -> Diagonal:
    """Σ_n ĝ_n², sample by sample."""
    named = dict(net.named_parameters())
    total = {name: torch.zeros_like(value) for name, value in named.items()}
    for row, label in zip(x, y, strict=True):
        grads = torch.autograd.grad(F.cross_entropy(net(row[None]), label[None]), list(named.values()))
        norm = float(torch.cat([g.flatten() for g in grads]).norm())
        for name, g in zip(named, grads, strict=True):
            total[name] += (g * min(1.0, clip / norm)).square()
    return total


def digits(n: int = 20) -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.data[:n] / 16.0), torch.tensor(data.target[:n])


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 12), nn.PReLU(), nn.Dropout(0.5), nn.Linear(12, 10)).double()


def test_without_noise_it_is_the_sum_of_clipped_squares() -> None:
    net, (x, y) = mlp(), digits()
    reference = by_hand(net.eval(), x, y, 0.8)
    net.train()
    found = measure(net, x, y, clip=0.8, size=40, chunk=7)
    assert all(module.training for module in net.modules())
    for name, value in reference.items():
        torch.testing.assert_close(found[name], value / 40, rtol=1e-9, atol=1e-15)


def test_an_enormous_clip_gives_the_empirical_fisher() -> None:
    net, (x, y) = mlp(), digits()
    plain = fisher.diagonal(
        net, net, [name for name, _ in net.named_parameters()], x, y, kind="empirical", generator=torch.Generator()
    )
    found = measure(
        net, x, y, clip=1e30, size=len(x), draw=lambda shapes, std: noise.seeded(shapes, 0, torch.Generator())
    )
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("clip", [0.01, 0.5, 100.0])
def test_one_sample_moves_the_sum_by_at_most_the_clip_squared(clip: float) -> None:
    net, (x, y) = mlp().eval(), digits(6)
    x = x * torch.tensor([1e-3, 1.0, 1.0, 10.0, 100.0, 1e4], dtype=torch.float64)[:, None]
    whole = measure(net, x, y, clip=clip)
    for left_out in range(6):
        kept = torch.arange(6) != left_out
        less = measure(net, x[kept], y[kept], clip=clip)
        moved = torch.cat([(whole[name] - less[name]).flatten() for name in whole]).norm()
        assert 0 < float(moved) <= clip**2 * (1 + 1e-9)


class OneHot(nn.Module):
    """Logits (w, 0): the gradient of -log p by w has one value."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return F.pad((x @ self.w)[:, None], (0, 1))


def test_the_bound_is_reached_by_a_gradient_of_one_value() -> None:
    found = measure(OneHot(), torch.tensor([[0.0, 8.0, 0.0]]).double(), torch.tensor([0]), clip=0.5)
    # ∂ log p_0 / ∂w = (1 - ½) x = (0, 4, 0), clipped to (0, ½, 0)
    assert found["w"].tolist() == pytest.approx([0, 0.25, 0])
    found = measure(OneHot(), torch.tensor([[3.0, 4.0, 0.0]]).double(), torch.tensor([0]), clip=0.5)
    # a direction between two axes: ½ (0.6, 0.8, 0) squared is shorter than ¼
    assert found["w"].tolist() == pytest.approx([0.09, 0.16, 0])


def test_the_noise_has_the_scale_of_the_clip_squared() -> None:
    net, (x, y) = mlp(), digits()
    asked: list[float] = []

    def draw(shapes: noise.Shapes, std: float) -> Diagonal:
        asked.append(std)
        return {name: torch.full(tuple(shape), -1e9 if "bias" in name else std) for name, shape in shapes.items()}

    plain = measure(net, x, y, clip=0.5, size=10)
    found = measure(net, x, y, clip=0.5, size=10, noise_multiplier=3.0, draw=draw)
    assert asked == [0.75]
    assert not found["0.bias"].any()  # nothing below 0
    torch.testing.assert_close(found["0.weight"], plain["0.weight"] + 0.075)


def test_no_samples_release_noise_alone() -> None:
    net, (x, y) = mlp(), digits()
    for kind in ("sampled", "empirical"):
        found = measure(net, x[:0], y[:0], kind=kind, noise_multiplier=1.0)
        positive = torch.cat([value.flatten() for value in found.values()]) > 0
        assert 0.3 < float(positive.double().mean()) < 0.7  # the other half is cut at 0
        assert all(not value.any() for value in measure(net, x[:0], y[:0], kind=kind).values())


def test_sampled_classes_come_from_the_generator() -> None:
    net, (x, y) = mlp(), digits()
    first, again = measure(net, x, y, kind="sampled"), measure(net, x, 0 * y, kind="sampled")
    other = measure(net, x, y, kind="sampled", generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["3.bias"], other["3.bias"])


def test_a_dynamic_net_of_one_task() -> None:
    torch.manual_seed(0)
    net = dynamic_net.build(Model(options={"hidden": [6]}), (64,), 10).double()
    net.add_task("t0", 10, 4)
    net.add_task("t1", 10, 4)
    x, y = digits()
    names = [name for name, _ in net.named_parameters()]
    draw = functools.partial(noise.seeded, generator=torch.Generator().manual_seed(0))
    found = fisher.private(
        net, lambda x: net(x, "t0"), names, x, y,
        kind="empirical", clip=0.3, noise_multiplier=0.0, size=1, draw=draw, generator=torch.Generator(),
    )  # fmt: skip
    assert sum(float(value.sum()) for value in found.values()) == pytest.approx(20 * 0.3**2, rel=1e-9)  # all clipped
    assert all(bool(value.any()) == (".t1." not in name) for name, value in found.items())


def test_mistakes_are_refused() -> None:
    net, (x, y) = mlp(), digits()
    with pytest.raises(ValueError, match="sampled, empirical"):
        measure(net, x, y, kind="exact")
    with pytest.raises(ValueError, match="size 0"):
        measure(net, x, y, size=0)
    with pytest.raises(ValueError, match="noise multiplier -1"):
        measure(net, x, y, noise_multiplier=-1)
    with pytest.raises(ValueError, match="clip 0"):
        measure(net, x, y, clip=0)
