"""A lower bound of ε from one run of the mechanism with many canaries (Steinke, Nasr and Jagielski 2023).

Each of m canaries is put in by a coin of its own. The auditor sees what came out and guesses of r of them. Under
(ε, 0)-DP the number of right guesses is stochastically below Binomial(r, e^ε / (1 + e^ε)), whatever the canaries have
to do with each other; δ adds to the p-value (theorem 5.2).
"""

from __future__ import annotations

import torch
from torch import Tensor


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The largest probability that an (ε, δ)-DP mechanism lets at least so many guesses be right.

        P(B ≥ v) + 2 m δ max_{1 ≤ i ≤ v} P(v − i ≤ B < v) / i,   B ~ Binomial(r, e^ε / (1 + e^ε))

    Args:
        canaries: m.
        guesses: r ≤ m; of the others the auditor says nothing.
        right: v ≤ r.
        epsilon: ε ≥ 0 of the claim.
        delta: δ of the claim.

    Raises:
        ValueError: counts do not fit.
    """
    from scipy.special import expit
    from scipy.stats import binom

    if not 0 <= right <= guesses <= canaries:
        raise ValueError(f"{right} right of {guesses} guesses on {canaries} canaries: 0 ≤ right ≤ guesses ≤ canaries")
    law = binom(guesses, expit(epsilon))
    beyond, alpha, total = float(law.sf(right - 1)), 0.0, 0.0
    if delta:
        for i, chance in enumerate(law.pmf(range(right - 1, -1, -1)), start=1):
            total += float(chance)
            alpha = max(alpha, total / i)
    return min(1.0, beyond + 2 * canaries * delta * alpha)


def one_run_bound(
    scores: Tensor, member: Tensor, *, positive: int, negative: int, delta: float, confidence: float = 0.95
) -> float:
    """The largest ε that one run disproves with confidence; 0 where it disproves none.

    Args:
        scores: [m], one of each canary, higher where it seems to be in.
        member: bool [m], each drawn with probability ½ by itself.
        positive: so many of the highest scores are guessed "in", a number chosen before the scores are seen.
        negative: so many of the lowest are guessed "out", likewise.
        delta: δ of the claim, under add/remove of a canary.
        confidence: that the bound holds. Of several choices of numbers only one may be reported, or each at
            1 − (1 − confidence) / choices.

    Raises:
        ValueError: shapes, counts or ranges do not fit.
    """
    if scores.dim() != 1 or scores.shape != member.shape or member.dtype != torch.bool or bool(scores.isnan().any()):
        raise ValueError("scores and member are both [canaries], scores without NaN, member bool")
    if min(positive, negative) < 0 or not 0 < positive + negative <= len(scores):
        raise ValueError(f"{positive} + {negative} guesses on {len(scores)} canaries")
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise ValueError(f"delta = {delta} is in [0, 1), confidence = {confidence} in (0, 1)")
    ranked = member[scores.argsort(descending=True, stable=True)]
    right = int(ranked[:positive].sum()) + int((~ranked[len(ranked) - negative :]).sum())

    def disproved(epsilon: float) -> bool:
        return p_value(len(scores), positive + negative, right, epsilon, delta) < 1 - confidence

    if not disproved(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while disproved(high):
        low, high = high, 2 * high
    while high - low > 1e-6 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if disproved(middle) else (low, middle)
    return low
