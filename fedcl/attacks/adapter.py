"""Samples from a task module alone: its first layer tells the frozen trunk's features, and they tell the sample.

The features come from `analytic.layer_input`, or without a bias from `analytic.direction`. This is the attack on a
hospital that is alone on its task: what it uploads there is in no sum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedcl.attacks.inversion import Bounds


def invert_features(
    trunk: Callable[[Tensor], Tensor],
    features: Tensor,
    shape: tuple[int, ...],
    generator: torch.Generator,
    *,
    scaled: bool = True,
    steps: int = 600,
    lr: float = 0.1,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    """Minimise ‖trunk(x′) − h‖² / ‖h‖² over x′ by Adam, within bounds.

    Args:
        trunk: the known frozen net, [1, *shape] → [1, features].
        features: h [features] of one sample.
        shape: of a sample.
        generator: draws x′ uniformly within the bounds.
        scaled: whether h has its length; where it is a direction, 1 − cos(trunk(x′), h) is minimised.
        steps: of Adam; the learning rate falls to a tenth after 3/8, 5/8 and 7/8 of them.
        lr: the first, in units of the bounds' width.
        bounds: least and largest value of a sample.

    Returns:
        The best x′, [*shape].
    """
    low, high = bounds
    x = (low + (high - low) * torch.rand((1, *shape), generator=generator)).to(features).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=lr * (high - low))
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps * part // 8 for part in (3, 5, 7)])
    best, least = x.detach().clone(), torch.inf
    goal = features / features.norm()
    for _ in range(steps):
        found = trunk(x)[0]
        # ½ ‖â − b̂‖² is 1 − cos, and stays exact where the two nearly agree
        reached = found / (features.norm() if scaled else found.norm())
        loss = (reached - goal).square().sum() / (1 if scaled else 2)
        if (value := float(loss.detach())) < least:
            best, least = x.detach().clone(), value
        (x.grad,) = torch.autograd.grad(loss, [x])
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(low, high)
    return best[0]
