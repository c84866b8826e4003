"""A lower bound of ε that attacks prove, from trials that are independent: one canary in each run.

Of an (ε, δ)-DP mechanism every test of "was the canary in?" has TPR ≤ e^ε FPR + δ and TNR ≤ e^ε FNR + δ (Kairouz et al.
2015, theorem 2.1), so that (Jagielski et al. 2020, Nasr et al. 2021)

    ε ≥ log((TPR − δ) / FPR)   and   ε ≥ log((TNR − δ) / FNR).

With Clopper–Pearson bounds in place of the rates it holds with confidence. For canaries that share a run see `one_run`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcl.attacks.intervals import lower, upper

Side = Literal["members", "others"]  # the test says "in" of scores ≥ threshold, or "out" of those below
_Floats = NDArray[np.float64]
_Counts = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class Bound:
    """With `confidence`, the mechanism is not (ε', δ)-DP for any ε' < ε, under the relation of the trials."""

    epsilon: float  # 0 where nothing was proved
    delta: float
    confidence: float
    threshold: float
    side: Side
    hits: int  # right among those that the side is about, …
    of: int
    errors: int  # … and wrong among the others
    against: int


def bound(
    scores: Tensor, member: Tensor, generator: torch.Generator, *, delta: float, confidence: float = 0.95
) -> Bound:
    """Bound ε from below; threshold and side are chosen on one half of the trials, the bound comes of the other.

    Args:
        scores: [trials], higher where the canary was in; of independent runs of the mechanism.
        member: bool [trials], whether it was.
        generator: splits members and others into halves.
        delta: δ in [0, 1) of the claim.
        confidence: that the bound holds; half of what is left goes to each of the two rates.

    Returns:
        The bound, with the counts behind it. n trials of each kind in a half prove at most
        log(1 / (1 − (α/2)^{1/n})) + log of the hits' lower bound, about log n − 1.3 at 95 %.

    Raises:
        ValueError: shapes or ranges do not fit, a score is NaN, or there are fewer than two trials of a kind.
    """
    if scores.dim() != 1 or scores.shape != member.shape or member.dtype != torch.bool or bool(scores.isnan().any()):
        raise ValueError("scores and member are both [trials], scores without NaN, member bool")
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise ValueError(f"delta = {delta} is in [0, 1), confidence = {confidence} in (0, 1)")
    inside, outside = (scores[mask].detach().double().cpu() for mask in (member, ~member))
    if min(len(inside), len(outside)) < 2:
        raise ValueError(f"{len(inside)} trials with the canary, {len(outside)} without: two of each are the least")
    alpha = (1 - confidence) / 2
    (choose_in, test_in), (choose_out, test_out) = (_halves(part, generator) for part in (inside, outside))
    candidates = np.unique(np.concatenate([choose_in, choose_out]))
    bounds = {side: _bounds(side, choose_in, choose_out, candidates, delta, alpha)[0] for side in _SIDES}
    side = max(_SIDES, key=lambda name: float(bounds[name].max()))
    threshold = candidates[int(bounds[side].argmax())]
    (proved,), (hits,), (errors,) = _bounds(side, test_in, test_out, np.array([threshold]), delta, alpha)
    of, against = (len(test_in), len(test_out)) if side == "members" else (len(test_out), len(test_in))
    return Bound(
        max(0.0, float(proved)),
        delta,
        confidence,
        float(threshold),
        side,
        int(hits),
        of,
        int(errors),
        against,
    )


_SIDES: tuple[Side, ...] = ("members", "others")


def _halves(values: Tensor, generator: torch.Generator) -> tuple[_Floats, _Floats]:
    order = torch.randperm(len(values), generator=generator)
    half = len(values) // 2
    return values[order[:half]].numpy(), values[order[half:]].numpy()


def _bounds(
    side: Side, inside: _Floats, outside: _Floats, thresholds: _Floats, delta: float, alpha: float
) -> tuple[_Floats, _Counts, _Counts]:
    """(log((hit rate_low − δ) / error rate_high) or -inf, hits, errors), each [thresholds]."""
    below_in, below_out = (np.searchsorted(np.sort(part), thresholds, side="left") for part in (inside, outside))
    if side == "members":
        hits, of, errors, against = len(inside) - below_in, len(inside), len(outside) - below_out, len(outside)
    else:
        hits, of, errors, against = below_out, len(outside), below_in, len(inside)
    gain = np.maximum(lower(hits, of, alpha) - delta, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(gain) - np.log(upper(errors, against, alpha)), hits, errors
