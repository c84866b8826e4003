"""Samples found by search: those whose gradient is the one that was sent.

All start from draws of `generator`, and know the net, the batch's size and the samples' shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedcl.attacks.gradients import Forward, Params, gradient

Bounds = tuple[float, float]
_MATCHED = 1e-6  # of ‖g‖²: no further start is needed
_EXACT = 1e-12  # of ‖g‖²: float32 tells no more
_LOST = 1e6  # of ‖g‖²: the search has diverged


class Found(NamedTuple):
    """The best of a search."""

    x: Tensor  # [B, *shape]
    y: Tensor  # labels [B], given or found
    loss: float  # what was minimised


def match_gradient(
    forward: Forward,
    params: Params,
    target: Mapping[str, Tensor],
    shape: tuple[int, ...],
    classes: int,
    generator: torch.Generator,
    *,
    labels: Tensor | None = None,
    steps: int = 60,
    starts: int = 4,
) -> Found:
    """DLG (Zhu et al. 2019, algorithm 1): minimise ‖∇ℓ(x′, softmax y′) − g‖² over x′ and y′ by L-BFGS.

    With labels it is iDLG (Zhao et al. 2020), and only x′ is searched. The sum is divided by ‖g‖², which moves no
    minimum. A search may diverge or end far from g; then another one is started.

    Args:
        forward: (parameters, x) → logits.
        params: the net that the gradient was taken of.
        target: g, a gradient of the mean cross-entropy; names that are not in it are not looked at.
        shape: of the batch, [B, *shape].
        classes: of the logits.
        generator: draws x′ and y′ from N(0, 1).
        labels: [B], where they are known.
        steps: of L-BFGS, with 20 iterations each; a search ends before where it diverges or stands still.
        starts: searches, at most, until one is within 1e-6 of ‖g‖².
    """
    best: Found | None = None
    for _ in range(starts):
        x = torch.randn(shape, generator=generator)
        soft = torch.randn(shape[0], classes, generator=generator)
        found = _lbfgs(forward, params, target, x, soft, labels, steps)
        best = found if best is None or found.loss < best.loss else best
        if best.loss < _MATCHED:
            break
    assert best is not None
    return best


def _lbfgs(
    forward: Forward,
    params: Params,
    target: Mapping[str, Tensor],
    x: Tensor,
    soft: Tensor,
    labels: Tensor | None,
    steps: int,
) -> Found:
    """One search; without a line search, which stalls at a ReLU's kinks."""
    g = _flat(target)
    x, soft = (value.to(g).requires_grad_() for value in (x, soft))
    optimizer = torch.optim.LBFGS(
        [x, soft] if labels is None else [x], lr=1, max_iter=20, tolerance_grad=0, tolerance_change=0
    )
    best, since = Found(x.detach().clone(), soft.detach().argmax(1), torch.inf), 0

    def closure() -> float:
        optimizer.zero_grad()
        y = soft.softmax(1) if labels is None else labels
        loss = (_of(forward, params, target, x, y) - g).square().sum() / g.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        loss, since = closure(), since + 1
        if loss < best.loss:
            best = Found(x.detach().clone(), soft.detach().argmax(1) if labels is None else labels, loss)
            since = 0
        if not _EXACT < loss < _LOST or since == 3:
            break
    return best


def invert(
    forward: Forward,
    params: Params,
    target: Mapping[str, Tensor],
    shape: tuple[int, ...],
    labels: Tensor,
    generator: torch.Generator,
    *,
    steps: int = 600,
    lr: float = 0.1,
    bounds: Bounds = (0.0, 1.0),
    variation: float = 0.0,
) -> Found:
    """Inverting gradients (Geiping et al. 2020, equation 4): minimise 1 − cos(∇ℓ(x′, y), g) + α TV(x′) by Adam.

    The cosine forgives any factor, such as a clipping's. The learning rate falls to a tenth after 3/8, 5/8 and 7/8 of
    the steps, and x′ is put back into its bounds after each.

    Args:
        forward: (parameters, x) → logits.
        params: the net that the gradient was taken of.
        target: g, up to a positive factor; names that are not in it are not looked at.
        shape: of the batch, [B, *shape].
        labels: [B], as known or recovered.
        generator: draws x′ uniformly within the bounds.
        steps: of Adam.
        lr: its first learning rate, in units of the bounds' width.
        bounds: least and largest value of a sample.
        variation: α ≥ 0 of the total variation of images [B, C, H, W], typically 0 to 1e-1.
    """
    g = _flat(target)
    low, high = bounds
    x = (low + (high - low) * torch.rand(shape, generator=generator)).to(g).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=lr * (high - low))
    milestones = [steps * part // 8 for part in (3, 5, 7)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    best = Found(x.detach().clone(), labels, torch.inf)
    for _ in range(steps):
        h = _of(forward, params, target, x, labels)
        loss = _cosine_distance(h, g)
        if variation:
            loss = loss + variation * total_variation(x)
        if (value := float(loss.detach())) < best.loss:
            best = Found(x.detach().clone(), labels, value)
        (x.grad,) = torch.autograd.grad(loss, [x])
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(low, high)
    return best


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of images [B, C, H, W], of rows plus of columns."""
    return x.diff(dim=2).abs().mean() + x.diff(dim=3).abs().mean()


def _of(forward: Forward, params: Params, target: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    found = gradient(forward, params, x, y, graph=True)
    return _flat({name: found[name] for name in target})


def _flat(values: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values.values()])


def _cosine_distance(h: Tensor, g: Tensor) -> Tensor:
    """1 − cos(h, g) as ½ ‖ĥ − ĝ‖², which stays exact where the two nearly agree."""
    distance: Tensor = (h / h.norm() - g / g.norm()).square().sum() / 2
    return distance
