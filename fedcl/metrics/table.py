"""Every metric once: its title, its formula, its source, and the line that computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedcl.metrics.matrix import (
    Floats,
    Matrix,
    Scores,
    by_hospital,
    hospital_accuracy,
    just_learned_forgetting,
    lowest,
    mean,
    merging_drop,
    peak_forgetting,
    seen_accuracy,
)


def _weighted(s: Scores) -> float:
    if not len(s.accuracy):
        return float("nan")
    use = np.isfinite(s.accuracy[-1]) & s.whole().seen[:, None]
    weights = s.counts[use]
    return float(s.accuracy[-1][use] @ weights / weights.sum()) if weights.sum() else float("nan")


def _extreme(values: Floats, pick: Callable[[Floats], np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(pick(finite)) if finite.size else float("nan")


def _less(values: Floats, base: Floats | None) -> float:
    """Mean of values − base; NaN where the base is not given."""
    return float("nan") if base is None else mean(values - base)


def _transfer(m: Matrix) -> float:
    return -mean(just_learned_forgetting(m))


class Metric(NamedTuple):
    """One row of the tables below."""

    title: str
    formula: str
    source: str
    compute: Callable[[Matrix], float]


class FederatedMetric(NamedTuple):
    """One that needs the hospitals apart."""

    title: str
    formula: str
    source: str
    compute: Callable[[Scores], float]


GEM = "Lopez-Paz & Ranzato 2017"
WALK = "Chaudhry et al. 2018"
GAP = "De Lange et al. 2023"
FORGET = "Díaz-Rodríguez et al. 2018"

# Of the pooled matrix; sums run over seen tasks, for forgetting over old ones.
POOLED = {
    "average_accuracy": Metric("Average accuracy (ACC)", "mean_t R[S−1, t]", GEM, lambda m: mean(m.final)),
    "forgetting": Metric(
        "Forgetting (peak)",
        "mean_t ( max_{first(t) ≤ l < S−1} R[l, t] − R[S−1, t] )",
        f"{WALK}, without their stages before the task was met",
        lambda m: mean(peak_forgetting(m)),
    ),
    "forgetting_just_learned": Metric(
        "Forgetting (just-learned)",
        "mean_t ( R[last(t), t] − R[S−1, t] )",
        "used by FOT (Bakman et al. 2024)",
        lambda m: mean(just_learned_forgetting(m)),
    ),
    "backward_transfer": Metric("Backward transfer (BWT)", "mean_t ( R[S−1, t] − R[last(t), t] )", GEM, _transfer),
    "forward_transfer": Metric(
        "Forward transfer (FWT)",
        "mean_t ( R[first(t)−1, t] − b_t ), first(t) ≥ 1",
        GEM,
        lambda m: _less(m.before(), m.baseline),
    ),
    "intransigence": Metric(
        "Intransigence",
        "mean_t ( a*_t − R[last(t), t] ); NaN without a jointly trained reference a*",
        WALK,
        lambda m: -_less(m.learned, m.reference),
    ),
    "average_incremental_accuracy": Metric(
        "Average incremental accuracy",
        "mean_s A_s, A_s = mean over the tasks met up to s of R[s, t]",
        "iCaRL, Rebuffi et al. 2017",
        lambda m: mean(seen_accuracy(m)),
    ),
    "learning_accuracy": Metric(
        "Learning accuracy (LA)", "mean_t R[last(t), t]", "Riemer et al. 2019", lambda m: mean(m.learned)
    ),
    "plasticity": Metric(
        "Plasticity",
        "mean_t R[last(t), t]: learning accuracy, named as the counterpart of stability",
        "Riemer et al. 2019",
        lambda m: mean(m.learned),
    ),
    "stability": Metric("Stability", "1 − forgetting (peak)", f"after {WALK}", lambda m: 1 - mean(peak_forgetting(m))),
    "remembering": Metric(
        "Remembering (REM)",
        "1 − |min(BWT, 0)|",
        FORGET,
        lambda m: 1 - abs(float(np.minimum(_transfer(m), 0))),
    ),
    "positive_backward_transfer": Metric(
        "Positive backward transfer (BWT⁺)",
        "max(BWT, 0)",
        FORGET,
        lambda m: float(np.maximum(_transfer(m), 0)),
    ),
    "minimum_accuracy": Metric(
        "Minimum accuracy (min-ACC)",
        "mean_t min_{last(t) < l ≤ S−1} R[l, t], at the ends of stages only",
        GAP,
        lambda m: mean(lowest(m)),
    ),
    "worst_case_accuracy": Metric(
        "Worst-case accuracy (WC-ACC)",
        "( Σ over current tasks of R[S−1, t] + Σ over old tasks of min-ACC ) / k",
        f"{GAP}; for one current task their acc/k + (1 − 1/k)·min-ACC",
        lambda m: mean(np.where(m.old, lowest(m), np.where(m.last == len(m.values) - 1, m.final, np.nan))),
    ),
}

# Of the hospitals' own matrices.
FEDERATED = {
    "macro_accuracy": FederatedMetric(
        "Accuracy, mean of hospitals",
        "mean_c mean_t R_c[S−1, t]: each hospital counts the same",
        "macro average",
        lambda s: mean(hospital_accuracy(s)),
    ),
    "weighted_accuracy": FederatedMetric(
        "Accuracy, sample-weighted",
        "Σ_{t,c} n_{t,c} R_c[S−1, t] / Σ_{t,c} n_{t,c}: each test sample counts the same",
        "micro average",
        _weighted,
    ),
    "worst_hospital_accuracy": FederatedMetric(
        "Worst hospital",
        "min_c mean_t R_c[S−1, t]",
        "after Mohri et al. 2019",
        lambda s: _extreme(hospital_accuracy(s), np.min),
    ),
    "hospital_spread": FederatedMetric(
        "Spread of hospitals",
        "standard deviation over c of mean_t R_c[S−1, t]",
        "after Li et al. 2020 (q-FFL)",
        lambda s: _extreme(hospital_accuracy(s), np.std),
    ),
    "macro_forgetting": FederatedMetric(
        "Forgetting, mean of hospitals",
        "mean_c of peak forgetting in R_c, under the hospital's own schedule",
        f"{WALK}, per hospital",
        lambda s: mean(by_hospital(s, peak_forgetting)),
    ),
    "spatial_forgetting": FederatedMetric(
        "Spatial forgetting",
        "mean_{t,c} ( local_c[last_c(t), t] − R_c[last_c(t), t] ): lost by merging",
        "after Yang et al. 2024 (arXiv 2312.16475), as a difference",
        lambda s: mean(merging_drop(s)),
    ),
    "temporal_forgetting": FederatedMetric(
        "Temporal forgetting",
        "mean_c mean_t ( R_c[last_c(t), t] − R_c[S−1, t] ): lost by learning on",
        "after Yang et al. 2024 (arXiv 2312.16475), as a difference",
        lambda s: mean(by_hospital(s, just_learned_forgetting)),
    ),
}

# Spatial forgetting and intransigence compare with models that are only tested with the task known.
INFERRED = tuple(name for name in (*POOLED, *FEDERATED) if name not in ("spatial_forgetting", "intransigence"))

DEFINITIONS: dict[str, tuple[str, str, str]] = {
    **{name: (m.title, m.formula, m.source) for name, m in POOLED.items()},
    **{name: (f.title, f.formula, f.source) for name, f in FEDERATED.items()},
}


def summary(known: Scores, inferred: Scores | None = None) -> dict[str, float]:
    """All metrics by their stable names: those of DEFINITIONS with the task known, `<name>_inferred` without.

    Args:
        known: accuracies where the model is told which task a sample belongs to.
        inferred: accuracies where it must infer that; None gives NaN.

    Returns:
        Fractions, not per cent: accuracies in [0, 1], differences in [−1, 1]; NaN where undefined.
    """
    whole = known.whole()
    values = {name: metric.compute(whole) for name, metric in POOLED.items()}
    values |= {name: metric.compute(known) for name, metric in FEDERATED.items()}
    if inferred is None:
        return values | {f"{name}_inferred": float("nan") for name in INFERRED}
    other = summary(inferred)
    return values | {f"{name}_inferred": other[name] for name in INFERRED}
