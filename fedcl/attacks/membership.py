"""Membership scores of many models at once; each model is attacked with the others as its shadows.

Of N models, model i was trained on those candidates j that have `member[i, j]`. Draw `member` with probability ½ for
each entry by itself: then a score cannot know the membership that it is to guess. A higher score speaks for membership.
The score of the global loss threshold is φ itself (`confidence`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_FLOOR = 1e-6  # added to a standard deviation: shadows may all agree


class _Others(NamedTuple):
    """Of the models that a mask names without model i, for each entry [N, n]; 0 where there are none."""

    models: Tensor
    mean: Tensor
    residual: Tensor  # Σ (φ − mean)² ≥ 0


def lira(phi: Tensor, member: Tensor, *, pooled: bool = False) -> Tensor:
    """The online likelihood-ratio attack (Carlini et al. 2022, algorithm 1) with leave-one-out shadows.

        score_ij = log N(φ_ij; μ_in,j, s_in,j) − log N(φ_ij; μ_out,j, s_out,j)

    μ and s are mean and standard deviation (÷ count) over the models other than i that have j in, or out. A candidate
    that too few others have in, or out, tells nothing: its score is 0. Too few are none, and without `pooled` one.

    Args:
        phi: φ [N, n] of each candidate by each model; N is typically 16 to 256.
        member: bool [N, n].
        pooled: one s_in and one s_out for all candidates, Σ residuals / Σ (count − 1), for few shadows.

    Returns:
        Scores [N, n], float64.

    Raises:
        ValueError: shapes do not fit, or there are fewer than three models.
    """
    phi = _checked(phi, member)
    inside, outside = _others(phi, member), _others(phi, ~member)
    scores = _log_normal(phi, inside, pooled) - _log_normal(phi, outside, pooled)
    least = 1 if pooled else 2
    return scores.where((inside.models >= least) & (outside.models >= least), torch.zeros_like(scores))


def rmia(
    phi: Tensor, member: Tensor, population: Tensor, *, online: bool = False, a: float = 0.3, gamma: float = 1.0
) -> Tensor:
    """The pairwise likelihood-ratio attack (Zarifzadeh et al. 2024) with leave-one-out references.

        score(x; θ) = Pr_z( LR(x, z) ≥ γ ),   LR(x, z) = [p(x|θ) / p(x)] / [p(z|θ) / p(z)]

    with p(x|θ) the probability of x's label. p(x) is its mean over models drawn with and without x: online
    ½ (mean_in + mean_out) over the others; offline mean_in is guessed as a mean_out + 1 − a, so that
    p(x) = ½ ((1 + a) mean_out + 1 − a). No model was trained on the population, so p(z) is always the offline one.
    A candidate without others on a side that is needed has score 0.5.

    Args:
        phi: φ [N, n] of the candidates.
        member: bool [N, n].
        population: φ [N, Z] of samples from the same distribution that no model was trained on; scores are
            multiples of 1/Z.
        online: use the others that have a candidate in.
        a: in [0, 1], larger where models generalise better; to be tuned on the references, never on the target.
        gamma: γ > 0, typically 1 to 2.

    Returns:
        Scores [N, n] in [0, 1], float64.

    Raises:
        ValueError: shapes or ranges do not fit.
    """
    phi, population = _checked(phi, member), population.double()
    if population.dim() != 2 or len(population) != len(phi) or not population.numel():
        raise ValueError(f"population {tuple(population.shape)}: [{len(phi)} models, Z ≥ 1] is asked for")
    if not 0 <= a <= 1 or gamma <= 0:
        raise ValueError(f"a = {a}, gamma = {gamma}: a is in [0, 1] and gamma above 0")
    inside, outside = _others(phi.sigmoid(), member), _others(phi.sigmoid(), ~member)
    known = (outside.models > 0) & ((inside.models > 0) | (not online))
    guessed = a * outside.mean + 1 - a
    # 1 where nothing is known: a logarithm is taken of it
    marginal = torch.where(known, (outside.mean + (inside.mean if online else guessed)) / 2, 1.0)
    means = _others(population.sigmoid(), torch.ones_like(population, dtype=torch.bool)).mean
    ratios = F.logsigmoid(phi) - marginal.log()
    of_population = F.logsigmoid(population) - (((1 + a) * means + 1 - a) / 2).log()
    reach = ratios - torch.tensor(gamma, dtype=torch.float64, device=phi.device).log()
    below = torch.searchsorted(of_population.sort(dim=1).values, reach.contiguous(), right=True)
    return torch.where(known, below / population.shape[1], 0.5)


def calibrated(phi: Tensor, member: Tensor) -> Tensor:
    """φ minus its mean over the other models that have the candidate out (Watson et al. 2022), [N, n] float64.

    What is easy for every net is no sign of membership. A candidate that no other model has out has score 0.

    Raises:
        ValueError: shapes do not fit, or there are fewer than three models.
    """
    phi = _checked(phi, member)
    outside = _others(phi, ~member)
    return torch.where(outside.models > 0, phi - outside.mean, 0.0)


def _checked(phi: Tensor, member: Tensor) -> Tensor:
    if phi.dim() != 2 or phi.shape != member.shape or member.dtype != torch.bool or len(phi) < 3:
        raise ValueError(
            f"φ {tuple(phi.shape)}, member {tuple(member.shape)} of {member.dtype}: "
            "both are [models ≥ 3, candidates], member is bool"
        )
    return phi.double()


def _others(values: Tensor, mask: Tensor) -> _Others:
    """Moments over the models that `mask` names, without the one that is attacked."""
    middle = values.mean(0)  # shifted by it, squares do not cancel
    shifted = torch.where(mask, values - middle, 0.0)
    count = mask.sum(0) - mask.long()
    mean = (shifted.sum(0) - shifted) / count.clamp(min=1)
    squares = shifted.square()
    residual = (squares.sum(0) - squares - count * mean.square()).clamp(min=0)
    return _Others(count, torch.where(count > 0, mean + middle, 0.0), residual)


def _log_normal(phi: Tensor, others: _Others, pooled: bool) -> Tensor:
    """Log N(φ; μ, s + floor) without the constant."""
    if pooled:
        freedom = (others.models - 1).clamp(min=0).sum(1, keepdim=True).clamp(min=1)
        variance = others.residual.sum(1, keepdim=True) / freedom
    else:
        variance = others.residual / others.models.clamp(min=1)
    s = variance.sqrt() + _FLOOR
    return -((phi - others.mean) / s).square() / 2 - s.log()
