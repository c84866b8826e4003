"""What tests of clipped sums share: the definition, sample by sample, and nets to try it on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Losses = Callable[..., Tensor]
Sums = dict[str, Tensor]


def names_of(net: nn.Module) -> list[str]:
    return [name for name, _ in net.named_parameters()]


def by_hand(net: nn.Module, losses: Losses, rows: tuple[Tensor, ...], clip: float) -> tuple[Sums, Tensor]:
    """The definition, by autograd sample by sample from one forward pass, so that dropout's draws are the same."""
    named = dict(net.named_parameters())
    total, norms = {name: torch.zeros_like(value) for name, value in named.items()}, []
    for loss in losses(*rows):
        grads = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        found = {name: g for name, g in zip(named, grads, strict=True) if g is not None}
        norm = torch.stack([g.square().sum() for g in found.values()]).sum().sqrt()
        norms.append(norm)
        for name, g in found.items():
            total[name] += g * min(1.0, clip / max(float(norm), 1e-300))
    return total, torch.stack(norms)


def assert_near(ours: tuple[Sums, Tensor], reference: tuple[Sums, Tensor], rtol: float) -> None:
    torch.testing.assert_close(ours[1].double(), reference[1].double(), rtol=rtol, atol=0)
    assert ours[0].keys() == reference[0].keys()
    size = torch.stack([value.double().norm() for value in reference[0].values()]).norm()
    for name, value in reference[0].items():
        assert float((ours[0][name].double() - value.double()).norm() / size) <= rtol, name


def of(net: nn.Module, *task: str) -> Losses:
    return lambda x, y: F.cross_entropy(net(x, *task), y, reduction="none")


TRUNKS: list[tuple[str, dict[str, Any]]] = [
    ("mlp", {"hidden": [5, 4], "activation": "tanh"}),
    ("cnn", {"channels": [3, 4], "width": 6}),
    ("resnet18", {"width_multiplier": 0.0625, "groups": 2}),
    ("vit", {"dim": 8, "depth": 1, "heads": 2}),
    ("vit", {"dim": 8, "depth": 2, "heads": 2, "pool": "class"}),
]


def images(n: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 1, 8, 8), torch.arange(n) % classes
