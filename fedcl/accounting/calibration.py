"""How much noise a planned schedule needs for a target ε."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fedcl.accounting.accountant import Mechanism, Relation, epsilon

_TOLERANCE = 1e-4  # of σ, relative


def sigma_for(
    target: float,
    delta: float,
    schedule: Sequence[tuple[float, int]],
    relation: Relation = "add_remove",
    *,
    largest: float = 1e4,
) -> float:
    """The smallest σ, to one in ten thousand, with which the whole schedule stays within the target.

    Args:
        target: ε > 0, by PLD; ∞ asks for no noise.
        delta: δ in (0, 1).
        schedule: (q, steps) of all releases that are to share this σ.
        relation: between neighbouring data sets.
        largest: σ that is allowed at most.

    Returns:
        σ in [0, largest]; the ε of the schedule at this σ never exceeds the target. 0 where no noise is needed.

    Raises:
        ValueError: the target is 0 or less, or cannot be kept even with the largest σ.
        FedclError: dp-accounting is not installed.
    """

    def cost(sigma: float) -> float:
        return epsilon([Mechanism(sigma, q, steps) for q, steps in schedule], delta, relation).pld

    return least(target, cost, largest)


def least(target: float, cost: Callable[[float], float], largest: float = 1e4) -> float:
    """The smallest σ, to one in ten thousand, that costs at most the target.

    Args:
        target: ε > 0; ∞ asks for no noise.
        cost: σ → ε, which falls.
        largest: σ that is allowed at most.

    Raises:
        ValueError: the target is 0 or less, or cannot be kept even with the largest σ.
    """
    check_target(target)
    cheapest = cost(largest)
    if target == math.inf or cheapest == 0 == cost(0.0):
        return 0.0
    if cheapest > target:
        raise ValueError(
            f"ε = {target:g} cannot be kept: what is planned costs ε = {cheapest:.4g} even with σ = {largest:g}. Ask "
            "for a larger ε, or plan fewer rounds or steps"
        )
    low = high = min(1.0, largest)
    while cost(high) > target:
        low, high = high, min(2 * high, largest)
    while cost(low) <= target:
        low, high = low / 2, low
    return _crossing(cost, target, low, high)


def check_target(target: float, sigma: float | None = None) -> None:
    """Refuse a target that no noise, or the noise that was chosen, could keep.

    Args:
        target: ε.
        sigma: the noise multiplier, where it is given and not to be calculated.

    Raises:
        ValueError: the target is not above 0, or it is finite and σ is 0.
    """
    if not target > 0:
        raise ValueError(f"target ε = {target}: choose one above 0, or inf for no guarantee")
    if sigma == 0 and target < math.inf:
        raise ValueError(
            f"ε = {target:g} with σ = 0: without noise ε is ∞. Give σ > 0, or no σ, so that it is calculated "
            "from ε, or ask for ε = inf"
        )


def _crossing(cost: Callable[[float], float], target: float, low: float, high: float) -> float:
    """The least σ in (low, high] that keeps the target, from above. In logarithms ε is almost a straight line of σ."""
    from scipy.optimize import brentq

    def gap(exponent: float) -> float:
        return math.log(max(cost(math.exp(exponent)), 1e-300) / target)

    root = brentq(gap, math.log(low), math.log(high), xtol=_TOLERANCE / 4, rtol=1e-12)
    sigma = math.exp(root)
    while sigma < high and cost(sigma) > target:
        sigma *= 1 + _TOLERANCE / 2
    return min(sigma, high)
