"""The gradient that a reconstruction is to reproduce, and what every attack reads it by: a dict by parameter name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Params = Mapping[str, Tensor]
Forward = Callable[[Params, Tensor], Tensor]  # (parameters, x [B, *shape]) → logits [B, C]


def gradient(forward: Forward, params: Params, x: Tensor, y: Tensor, *, graph: bool = False) -> dict[str, Tensor]:
    """∇_θ of the mean cross-entropy of a batch.

    Args:
        forward: `functional_call` of a net, typically; buffers are its own business.
        params: the parameters that the gradient is of.
        x: samples [B, *shape].
        y: labels [B], or rows of probabilities [B, C].
        graph: whether the gradient itself is to be differentiated, by x and y.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        loss = F.cross_entropy(forward(leaves, x), y)
    found = torch.autograd.grad(loss, list(leaves.values()), create_graph=graph)
    return dict(zip(leaves, found, strict=True))
