"""The diagonal of the Fisher information: how much the net's predictions depend on each parameter θ.

    exact      F = 1/N Σ_n Σ_c p_nc (∂ log p_nc / ∂θ)²        every class, weighted by its probability
    sampled    F = 1/N Σ_n (∂ log p_nc / ∂θ)²                 one class c ~ p_n for each sample
    empirical  F = 1/N Σ_n (∂ log p_nc / ∂θ)²                 the label c = y_n

Kirkpatrick et al. 2017 (EWC) weight their penalty with it; Kunstner et al. 2019 compare the kinds. The square
is taken per sample, never of a batch's mean. As ∂ log p_nc / ∂logits = onehot(c) - p_n, each kind is a sum
over *cotangents* v_k [N, C], with J_n the Jacobian of sample n's logits:

    F = 1/N Σ_n Σ_k (J_nᵀ v_kn)²,   v_kn = √weight · (onehot(c_k) - p_n)

A penalty that is weighted with it carries it into all that is sent: under a claim of differential privacy, take
`private`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcl import noise
from fedcl.clipped import clipped_sum
from fedcl.sample_moments import Forward, evaluating, moments

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


def private(
    net: nn.Module,
    forward: Forward,
    names: Collection[str],
    x: Tensor,
    y: Tensor,
    *,
    kind: Literal["sampled", "empirical"],
    clip: float,
    noise_multiplier: float,
    size: float,
    draw: noise.Draw,
    generator: torch.Generator,
    chunk: int = 256,
) -> dict[str, Tensor]:
    """Release the diagonal Fisher information under differential privacy, measured in evaluation mode.

        F = max(0, Σ_n ĝ_n² + N(0, (σ C²)²)) / size,   ĝ_n = g_n · min(1, C / ‖g_n‖₂),   g_n = ∂ log p_nc / ∂θ

    over all named parameters together. As ‖ĝ_n²‖₂ ≤ ‖ĝ_n‖₂² ≤ C², one sample more or less moves the sum by at most
    C² (not C): one release of the Gaussian mechanism with noise multiplier σ, add/remove, of its own in a ledger.

    Args:
        net: holds the parameters; its mode is put back afterwards.
        forward: as of `diagonal`.
        names: the parameters to measure.
        x: samples [N, *shape]; N = 0 releases noise alone.
        y: labels [N]; only `empirical` reads them.
        kind: `exact` takes a gradient per class, whose squares this bound does not cover.
        clip: C > 0.
        noise_multiplier: σ ≥ 0, typically 1 to 20; 0 is no privacy.
        size: what the sum is divided by, > 0: public, or noised itself; never N in secret.
        draw: the noise, of `fedcl.noise`.
        generator: draws the classes of `sampled`.
        chunk: samples in memory at once.

    Returns:
        Parameter's name → F ≥ 0, of the parameter's shape.

    Raises:
        ValueError: an unknown kind or parameter, or a number out of its range.
    """
    if kind not in ("sampled", "empirical"):
        raise ValueError(f"Fisher kind {kind!r}: those with a private form are sampled, empirical")
    if not (size > 0 and noise_multiplier >= 0):
        raise ValueError(f"size {size} is to be above 0, noise multiplier {noise_multiplier} at least 0")
    with evaluating(net):
        if kind == "sampled":
            y = _sampled(forward, x, generator, chunk)
        sums = _clipped_squares(net, forward, names, x, y, clip, chunk)
    noised = noise.added(sums, noise_multiplier * clip**2, draw)
    return {name: value.clamp(min=0) / size for name, value in noised.items()}


def _clipped_squares(
    net: nn.Module, forward: Forward, names: Collection[str], x: Tensor, y: Tensor, clip: float, chunk: int
) -> dict[str, Tensor]:
    """Σ_n ĝ_n²: the lengths in one pass, then the moment whose cotangents they scale."""

    def losses(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(forward(x), y, reduction="none")

    zeros, norms = clipped_sum(net, names, losses, (x, y), clip, chunk)
    usable = norms.isfinite()
    if not bool(usable.any()):
        return {name: torch.zeros_like(value) for name, value in zeros.items()}
    x, y, factors = x[usable], y[usable], (clip / norms[usable]).clamp(max=1)

    def cotangents(logits: Tensor, index: Tensor) -> list[Tensor]:
        p = torch.softmax(logits, dim=1)
        return [(F.one_hot(y[index], p.shape[1]) - p) * factors[index, None]]

    index = torch.arange(len(x), device=x.device)
    means = moments(net, forward, names, x, index, cotangents, power=2, chunk=chunk)
    return {name: value * len(x) for name, value in means.items()}


@torch.no_grad()
def _sampled(forward: Forward, x: Tensor, generator: torch.Generator, chunk: int) -> Tensor:
    """A class c ~ p_n for each sample [N]."""
    drawn = [torch.zeros(0, dtype=torch.int64)]
    for start in range(0, len(x), chunk):
        p = torch.softmax(forward(x[start : start + chunk]), dim=1)
        drawn.append(torch.multinomial(p.to(generator.device), 1, generator=generator).flatten().cpu())
    return torch.cat(drawn).to(x.device)


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
