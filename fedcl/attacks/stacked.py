"""Many nets of one shape trained at once, as one stack: shadow models cost little more than one.

Parameters are stacked to [N, *shape]. The loss is summed over nets, so each net's gradient is its own, and an optimiser
that works entry by entry (SGD, Adam, not clipping by a norm) trains each as if it were alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

Params = Mapping[str, Tensor]
Forward = Callable[[Params, Tensor], Tensor]  # (one net's parameters, x [n, *shape]) → logits [n, C]
Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]  # for example lambda p: torch.optim.Adam(p, lr=3e-3)


def stack(nets: Sequence[Params]) -> dict[str, Tensor]:
    """Parameters of N nets of one shape, by name, each to [N, *shape]; copies."""
    return {name: torch.stack([net[name].detach() for net in nets]) for name in nets[0]}


def logits(forward: Forward, params: Params, x: Tensor) -> Tensor:
    """What each net says of the same samples: [N, n, C]."""
    with torch.no_grad():
        return vmap(forward, (0, None))(dict(params), x)


def batches(member: Tensor, size: int, steps: int, generator: torch.Generator) -> Tensor:
    """Each net's own order over its own samples: rows [steps, N, size], a new permutation for each epoch.

    The samples of an epoch that do not fill a batch are left out.

    Args:
        member: bool [N, n].
        size: of a batch.
        steps: of the training.
        generator: draws the orders.

    Raises:
        ValueError: a net has fewer samples than a batch.
    """
    orders = []
    for mask in member:
        own = mask.nonzero()[:, 0]
        full = len(own) // size
        if not full:
            raise ValueError(f"a net has {len(own)} samples, a batch {size}: lower the size")
        epochs = [own[torch.randperm(len(own), generator=generator)][: full * size] for _ in range(-(-steps // full))]
        orders.append(torch.cat(epochs).view(-1, size)[:steps])
    return torch.stack(orders, dim=1)


def train(
    forward: Forward,
    params: Params,
    x: Tensor,
    y: Tensor,
    member: Tensor,
    optimizer: Optimizer,
    *,
    steps: int,
    rows: Tensor | None = None,
) -> dict[str, Tensor]:
    """Train each net on its own samples, by the mean cross-entropy over those of them that are in the batch.

    Args:
        forward: of one net; what it draws or counts (dropout, batch normalisation) has no place here.
        params: where each net starts, [N, *shape]; left as they are.
        x: samples of all nets [n, *shape].
        y: labels [n].
        member: bool [N, n], which samples are a net's own.
        optimizer: builds one from the stacked parameters, fresh for each call.
        steps: of it.
        rows: [steps, N, B], the batch of each net in each step as indices into x; samples in it that are not its own
            do not count. None is all samples in each step.

    Returns:
        The trained parameters, [N, *shape].
    """
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    step = optimizer(list(leaves.values()))
    spread = (0, None) if rows is None else (0, 0)
    for index in range(steps):
        batch, labels, own = x, y.expand(member.shape), member
        if rows is not None:
            batch, labels, own = x[rows[index]], y[rows[index]], member.gather(1, rows[index])
        out = vmap(forward, spread)(leaves, batch)
        losses = F.cross_entropy(out.flatten(0, 1), labels.flatten(), reduction="none").view_as(own)
        total = ((losses * own).sum(1) / own.sum(1).clamp(min=1)).sum()
        for leaf, gradient in zip(leaves.values(), torch.autograd.grad(total, list(leaves.values())), strict=True):
            leaf.grad = gradient
        step.step()
    return {name: value.detach() for name, value in leaves.items()}
