"""The Gaussian mechanism exactly: no sampling, no bound, in float64.

k releases with noise multiplier σ are one with μ = √k / σ, and different ones add up as μ² = Σ kᵢ / σᵢ² (Dong et al.
2019, Gaussian differential privacy, corollary 3.3). Of that, Balle and Wang 2018, theorem 8:

    δ(ε) = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ)
"""

from __future__ import annotations

import math

_LARGEST = 1e150  # of μ, whose square is still a float


def gaussian_delta(epsilon: float, mu: float) -> float:
    """δ(ε) of the equation above.

    Args:
        epsilon: ε ≥ 0.
        mu: μ = √steps / σ ≥ 0; 0 releases nothing.

    Returns:
        δ in [0, 1].

    Raises:
        ValueError: an argument is negative or not a number.
    """
    if not epsilon >= 0 or not mu >= 0:
        raise ValueError(f"ε = {epsilon} and μ = {mu} must be 0 or more")
    if mu == 0 or epsilon == math.inf:
        return 0.0
    return 1.0 if mu > _LARGEST else math.exp(_log_delta(epsilon, mu))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest ε with δ(ε) ≤ `delta`, found from above to 12 digits: never less than the true one.

    Args:
        mu: μ = √steps / σ ≥ 0; ∞ is no noise.
        delta: δ in (0, 1).

    Returns:
        ε in [0, ∞].

    Raises:
        ValueError: μ is negative or not a number, or δ is outside (0, 1).
    """
    check_delta(delta)
    if not mu >= 0:
        raise ValueError(f"μ = {mu} must be 0 or more: it is √steps / σ")
    if math.erf(mu / math.sqrt(8)) <= delta:  # δ(0)
        return 0.0
    if mu > _LARGEST:
        return math.inf
    target = math.log(delta)
    # Above: μ²/2-zCDP (Bun and Steinke 2016, proposition 1.3).
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(-2 * target)
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if _log_delta(middle, mu) <= target else (middle, high)
    return high


def check_delta(delta: float) -> None:
    """Refuse a δ outside (0, 1).

    Raises:
        ValueError: it is.
    """
    if not 0 < delta < 1:
        raise ValueError(f"δ = {delta} is outside (0, 1): choose one well below 1 / n, such as 1e-5")


def _log_delta(epsilon: float, mu: float) -> float:
    """Log δ(ε) for μ > 0. With erfcx, e^ε never appears, so nothing overflows and no large numbers cancel."""
    from scipy.special import erfcx, log_ndtr

    near, far = mu / 2 - epsilon / mu, mu / 2 + epsilon / mu
    first = float(log_ndtr(near))
    second = -near * near / 2 + math.log(float(erfcx(far / math.sqrt(2))) / 2)  # ε + log Φ(−far)
    return first + math.log1p(-math.exp(second - first)) if second < first else -math.inf
