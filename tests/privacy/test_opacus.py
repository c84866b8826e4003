"""The clipped sums beside those of Opacus, which finds them by hooks and by ghost clipping."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcl.clipped import clipped_sum

pytestmark = pytest.mark.filterwarnings("ignore")  # of Opacus and of its hooks
CLIP = 0.7


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 5))


def cnn() -> nn.Module:
    convs = [
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2),
    ]
    return nn.Sequential(*convs, nn.ReLU(), nn.Flatten(), nn.Linear(6, 5))


def by_hooks(net: nn.Module, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    opacus = pytest.importorskip("opacus.grad_sample")
    wrapped = opacus.GradSampleModule(net, loss_reduction="sum")
    F.cross_entropy(wrapped(x), y, reduction="sum").backward()
    grads: dict[str, Any] = {name: value.grad_sample for name, value in net.named_parameters()}
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads.values()]).norm(dim=0)
    factors = (CLIP / norms).clamp(max=1)
    return {name: torch.einsum("n,n...->...", factors, g) for name, g in grads.items()}, norms


def by_ghosts(net: nn.Module, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    opacus = pytest.importorskip("opacus.grad_sample")
    wrapped = opacus.GradSampleModuleFastGradientClipping(
        net, max_grad_norm=CLIP, use_ghost_clipping=True, loss_reduction="sum"
    )
    losses = F.cross_entropy(wrapped(x), y, reduction="none")
    losses.sum().backward(retain_graph=True)
    norms = wrapped.get_norm_sample()
    wrapped.zero_grad()
    wrapped.disable_hooks()
    ((CLIP / norms).clamp(max=1) * losses).sum().backward()
    return {name: value.grad for name, value in net.named_parameters() if value.grad is not None}, norms


@pytest.mark.parametrize("build", [mlp, cnn])
@pytest.mark.parametrize("theirs", [by_hooks, by_ghosts])
def test_equal_to_opacus(build: Any, theirs: Any) -> None:
    torch.manual_seed(0)
    net, x, y = build(), torch.randn(12, 1, 8, 8), torch.arange(12) % 5
    sums, norms = clipped_sum(
        net, dict(net.named_parameters()), lambda x, y: F.cross_entropy(net(x), y, reduction="none"), (x, y), CLIP
    )
    reference, lengths = theirs(copy.deepcopy(net), x, y)
    torch.testing.assert_close(norms, lengths, rtol=2e-6, atol=0)
    assert sums.keys() == reference.keys()
    size = torch.cat([value.flatten() for value in reference.values()]).norm()
    for name, value in reference.items():
        assert float((sums[name] - value).norm() / size) < 1e-6, name
