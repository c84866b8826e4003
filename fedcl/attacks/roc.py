"""How well scores tell members from non-members, over all thresholds and at few false positives.

An attack that is right about few samples, and sure of them, has an AUC near ½ and harms those few: the true-positive
rate at a low false-positive rate shows it (Carlini et al. 2022, section III).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcl.attacks.intervals import two_sided


@dataclass(frozen=True)
class Roc:
    """A point for each distinct threshold, from "nobody" to "everybody": counts of scores ≥ threshold, [T + 1]."""

    thresholds: Tensor  # falling, the first is inf
    true_positives: Tensor
    false_positives: Tensor
    members: int
    others: int

    @property
    def tpr(self) -> Tensor:
        """True-positive rate, rising, 0 to 1."""
        return self.true_positives.double() / self.members

    @property
    def fpr(self) -> Tensor:
        """False-positive rate, rising, 0 to 1."""
        return self.false_positives.double() / self.others


@dataclass(frozen=True)
class Area:
    """AUC: the probability that a member scores above a non-member, ties counted half; ½ is chance."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rate:
    """The largest true-positive rate whose false-positive rate is within what was asked."""

    tpr: float
    low: float
    high: float
    fpr: float  # reached
    false_positives: int  # behind it; few of them are little to go by
    threshold: float
    members: int
    others: int


def roc(scores: Tensor, member: Tensor) -> Roc:
    """The exact curve; scores that tie share a point.

    Args:
        scores: any shape, higher for members; may be infinite.
        member: bool, like it.

    Raises:
        ValueError: shapes differ, a score is NaN, or all or none are members.
    """
    values, flags = _flat(scores, member)
    ordered, order = values.sort(descending=True)
    flags = flags[order]
    last = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])  # of each run of ties
    zero = torch.zeros(1, dtype=torch.long)
    return Roc(
        torch.cat([torch.full((1,), torch.inf, dtype=torch.float64), ordered[last]]),
        torch.cat([zero, flags.cumsum(0)[last]]),
        torch.cat([zero, (~flags).cumsum(0)[last]]),
        int(flags.sum()),
        int((~flags).sum()),
    )


def rate_at(curve: Roc, fpr: float, level: float = 0.95) -> Rate:
    """The true-positive rate at a false-positive rate, with its Clopper–Pearson interval.

    The interval takes threshold as given and scores as independent: where models × candidates share models, read it
    as the narrowest that it can be.

    Args:
        curve: from `roc`.
        fpr: the largest allowed, in [0, 1], typically 0.01 and 0.001.
        level: of the interval.
    """
    allowed = curve.false_positives <= fpr * curve.others * (1 + 1e-12)  # 0.07 · 100 is above 7 in floats
    index = int(allowed.nonzero()[-1])
    hits, alarms = int(curve.true_positives[index]), int(curve.false_positives[index])
    low, high = two_sided(hits, curve.members, level)
    return Rate(
        hits / curve.members,
        low,
        high,
        alarms / curve.others,
        alarms,
        float(curve.thresholds[index]),
        curve.members,
        curve.others,
    )


def area(scores: Tensor, member: Tensor, clusters: Sequence[Tensor] = (), level: float = 0.95) -> Area:
    """AUC with a confidence interval that needs no draws.

    The variance is DeLong et al. 1988's for independent scores, and Obuchowski 1997's where scores come in clusters.
    Scores of models × candidates have two: with them it is V_model + V_candidate − V_independent (Cameron, Gelbach and
    Miller 2011), at least the largest of the three. The interval is symmetric in log AUC / (1 − AUC). Where the scores
    separate perfectly it is exact for min(members, others) disjoint pairs.

    Args:
        scores: any shape, higher for members.
        member: bool, like it.
        clusters: up to two tensors of integers ≥ 0, like `scores`: which scores hang together.
        level: of the interval.

    Raises:
        ValueError: as for `roc`, or a tensor of clusters does not fit.
    """
    values, flags = _flat(scores, member)
    if len(clusters) > 2 or any(cluster.shape != scores.shape for cluster in clusters):
        raise ValueError(f"{len(clusters)} clusters: up to two are asked for, of the shape {tuple(scores.shape)}")
    above, below = values[flags].sort().values, values[~flags].sort().values
    # V10, V01: for each score the share of the other side that it is on the right side of
    wins = _share_below(below, values[flags])
    losses = 1 - _share_below(above, values[~flags])
    auc = float(wins.mean())
    places = [torch.arange(len(values)), *(cluster.flatten().cpu() for cluster in clusters)]
    variances = [_variance(wins - auc, losses - auc, place[flags], place[~flags]) for place in places]
    variance = variances[0] if len(variances) == 1 else variances[1]
    if len(variances) == 3:
        variance = max(variances[1] + variances[2] - variances[0], *variances)
    return Area(auc, *_logit_interval(auc, variance, min(len(wins), len(losses)), level))


def _flat(scores: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
    if scores.shape != member.shape or member.dtype != torch.bool:
        raise ValueError(f"scores {tuple(scores.shape)}, member {tuple(member.shape)} of {member.dtype}: alike, bool")
    if bool(scores.isnan().any()):
        raise ValueError("a score is NaN")
    if not bool(member.any()) or bool(member.all()):
        raise ValueError(f"{int(member.sum())} members among {member.numel()}: both kinds are needed")
    return scores.detach().flatten().double().cpu(), member.flatten().cpu()


def _share_below(ordered: Tensor, values: Tensor) -> Tensor:
    """For each value the share of `ordered` that is below it, ties counted half."""
    under = torch.searchsorted(ordered, values, right=False) + torch.searchsorted(ordered, values, right=True)
    return under.double() / (2 * len(ordered))


def _variance(wins: Tensor, losses: Tensor, of_members: Tensor, of_others: Tensor) -> float:
    """Obuchowski 1997, equations 4 to 6, from centred V10 [m] and V01 [n] and the clusters that they are in.

    (S10 / m + S01 / n + 2 S11 / (m n)); with clusters of one score it is DeLong's.
    """
    m, n = len(wins), len(losses)
    empty = torch.zeros(int(torch.cat([of_members, of_others]).max()) + 1, dtype=torch.float64)
    first, second = empty.index_add(0, of_members, wins), empty.index_add(0, of_others, losses)

    def scaled(places: Tensor) -> float:
        there = int((places.bincount() > 0).sum())
        return there / max(there - 1, 1)

    own = scaled(of_members) * float(first.square().sum()) / m**2
    other = scaled(of_others) * float(second.square().sum()) / n**2
    both = scaled(torch.cat([of_members, of_others])) * float((first * second).sum()) / (m * n)
    return own + other + 2 * both


def _logit_interval(auc: float, variance: float, pairs: int, level: float) -> tuple[float, float]:
    from scipy.special import expit
    from scipy.stats import norm

    if auc in (0.0, 1.0):
        return two_sided(round(auc * pairs), pairs, level)
    logit = math.log(auc / (1 - auc))
    reach = float(norm.ppf((1 + level) / 2)) * math.sqrt(max(variance, 0.0)) / (auc * (1 - auc))
    return float(expit(logit - reach)), float(expit(logit + reach))
