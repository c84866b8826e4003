"""Exact intervals of a probability from k successes in n independent trials (Clopper and Pearson 1934)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def lower(k: ArrayLike, n: ArrayLike, alpha: float) -> Floats:
    """The p for which k or more successes have probability α: above the true one in α of all cases; 0 at k = 0."""
    from scipy.stats import beta

    successes, trials = np.asarray(k, float), np.asarray(n, float)
    bound = beta.ppf(alpha, np.maximum(successes, 1), trials - successes + 1)
    return np.where(successes > 0, bound, 0.0)


def upper(k: ArrayLike, n: ArrayLike, alpha: float) -> Floats:
    """The p for which k or fewer successes have probability α: below the true one in α of all cases; 1 at k = n."""
    return 1 - lower(np.asarray(n, float) - np.asarray(k, float), n, alpha)


def two_sided(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """(lower, upper) at (1 − level) / 2 each."""
    alpha = (1 - level) / 2
    return float(lower(k, n, alpha)), float(upper(k, n, alpha))
