"""The diagonal of the Fisher information: how much the net's predictions depend on each parameter θ.

    exact      F = 1/N Σ_n Σ_c p_nc (∂ log p_nc / ∂θ)²        every class, weighted by its probability
    sampled    F = 1/N Σ_n (∂ log p_nc / ∂θ)²                 one class c ~ p_n for each sample
    empirical  F = 1/N Σ_n (∂ log p_nc / ∂θ)²                 the label c = y_n

Kirkpatrick et al. 2017 (EWC) weight their penalty with it; Kunstner et al. 2019 compare the kinds. The square
is taken per sample, never of a batch's mean. As ∂ log p_nc / ∂logits = onehot(c) - p_n, each kind is a sum
over *cotangents* v_k [N, C], with J_n the Jacobian of sample n's logits:

    F = 1/N Σ_n Σ_k (J_nᵀ v_kn)²,   v_kn = √weight · (onehot(c_k) - p_n)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn

from fedcl.sample_moments import Forward, moments

Kind = Literal["exact", "sampled", "empirical"]


def diagonal(
    net: nn.Module,
    forward: Forward,
    names: Collection[str],
    x: Tensor,
    y: Tensor,
    *,
    kind: Kind,
    generator: torch.Generator,
    chunk: int = 256,
) -> dict[str, Tensor]:
    """Measure the diagonal Fisher information of some parameters, in evaluation mode.

    Parameters that the logits do not depend on, such as other tasks' heads, get 0.

    Args:
        net: holds the parameters; its mode is put back afterwards.
        forward: samples [n, *shape] → logits [n, C] by the net's own parameters, not by copies of them; the
            logit of a closed class is -inf.
        names: the parameters to measure, as in `net.named_parameters()`.
        x: samples [N, *shape], typically N = 100 to 1000.
        y: labels [N]; only `empirical` reads them.
        kind: exact costs C backward passes, the others one.
        generator: draws the classes of `sampled`.
        chunk: samples in memory at once.

    Returns:
        Parameter's name → F ≥ 0, of the parameter's shape.

    Raises:
        ValueError: an unknown kind or parameter, no samples, or `forward` reads other parameters.
    """
    if kind not in ("exact", "sampled", "empirical"):
        raise ValueError(f"Fisher kind {kind!r}: there are exact, sampled, empirical")

    def cotangents(logits: Tensor, labels: Tensor) -> list[Tensor]:
        return _cotangents(logits, labels, kind, generator)

    return moments(net, forward, names, x, y, cotangents, power=2, chunk=chunk)


def _cotangents(logits: Tensor, y: Tensor, kind: Kind, generator: torch.Generator) -> list[Tensor]:
    """The v_k of the module's docstring, from logits [n, C]; finite also where a logit is -inf."""
    p = torch.softmax(logits, dim=1)
    onehots = torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
    if kind == "exact":
        # A class that is closed for all samples has no weight, and needs no pass.
        live = (p > 0).any(0).nonzero().flatten().tolist()
        return [p[:, c : c + 1].sqrt() * (onehots[c] - p) for c in live]
    if kind == "sampled":
        y = torch.multinomial(p.to(generator.device), 1, generator=generator).flatten().to(p.device)
    return [onehots[y] - p]
