"""Means, spreads and paired differences over seeds.

Runs that share a seed share the split, the order and the first weights, so what differs between two of them is the
setting: differences are taken seed by seed. The test is the paired t-test (Student 1908): with the three to ten seeds
of a comparison a rank test could not fall below 0.05 at all. Several comparisons at once are adjusted after Holm 1979.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL = 0.05  # of the tests, and 1 − it of the intervals


class Difference(NamedTuple):
    """A paired difference, NaN where there are too few seeds that both have."""

    mean: float
    low: float  # of the 95 % confidence interval
    high: float
    p: float  # two-sided
    n: int  # seeds


def mean(values: Floats) -> float:
    """Mean of what is finite."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def deviation(values: Floats) -> float:
    """Sample standard deviation (n − 1) of what is finite; NaN for fewer than two."""
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1)) if len(finite) > 1 else math.nan


def paired(values: Floats, others: Floats) -> Difference:
    """Of `values` − `others`, both [seeds].

    t = d̄ / (s_d / √n) with n − 1 degrees of freedom. Where all differences are the same, p is 1 if they are zero and
    0 otherwise.
    """
    from scipy import stats

    apart = values - others
    apart = apart[np.isfinite(apart)]
    n = len(apart)
    if n == 0:
        return Difference(math.nan, math.nan, math.nan, math.nan, 0)
    middle = float(apart.mean())
    if n == 1:
        return Difference(middle, math.nan, math.nan, math.nan, 1)
    error = float(apart.std(ddof=1)) / math.sqrt(n)
    if error <= 1e-12 * max(abs(middle), 1.0):
        return Difference(middle, middle, middle, float(abs(middle) <= 1e-12), n)
    reach = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(middle) / error, n - 1))
    return Difference(middle, middle - reach, middle + reach, p, n)


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979), in the same order; NaN stays and does not count.

    Sorted ascending: p̃_(i) = max_{j ≤ i} min(1, (m − j) p_(j)), j from 0.
    """
    order = sorted((p, index) for index, p in enumerate(ps) if math.isfinite(p))
    adjusted, highest = list(ps), 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = highest
    return adjusted


def best(values: Floats, lower: bool = False) -> int | None:
    """The row of [rows, seeds] that is better than each other one beyond chance, or None.

    Args:
        values: NaN where a run is missing.
        lower: whether less is better.
    """
    means = np.array([mean(row) for row in values])
    there = np.flatnonzero(np.isfinite(means))
    if len(there) < 2:
        return None
    first = int(min(there, key=lambda row: means[row] if lower else -means[row]))
    ps = holm([paired(values[first], values[row]).p for row in there if row != first])
    return first if all(p < LEVEL for p in ps) else None
