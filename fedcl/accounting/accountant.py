"""ε of many Gaussian releases together: by privacy loss distributions (PLD), and by Rényi divergences (RDP) beside it.

The noise multiplier is σ = std / Δ, with Δ the sensitivity under the neighbouring relation in force. With contributions
clipped to C, a sum has Δ = C when a unit is added or removed, or its contribution is zeroed while it stays counted, and
Δ = 2C when one is replaced by another. So a release without sampling costs the same under all relations at the same σ,
though it takes twice the noise under the last.

PLD is the ε of record: Doroshenko et al. 2022, Connect the dots. RDP is an upper bound by another way: Mironov et al.
2019, Rényi differential privacy of the sampled Gaussian mechanism. Where nothing is sampled, the ε of record is exact.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from fedcl.accounting.gaussian import check_delta, gaussian_epsilon
from fedcl.errors import FedclError

Relation = Literal["add_remove", "zero_out", "replace_one"]

_POINTS = 5e4  # of the grid of privacy losses: ε is too large by 1e-4 of it at 10 000 steps, by 2 % at a million
_TAIL = 1e-15  # of probability, that the grid may leave out and counts as ε = ∞
_SMALLEST_DELTA = 1e-12  # below it, what Fourier transforms in float64 round off shows in ε
_FINEST = 2.0**-20  # step of the grid
_ROUNDING = 1e-14  # in a Rényi divergence, which dp-accounting can even find to be negative
_WIDEST = 1e6  # range of privacy losses, beyond which nobody asks how far beyond
_SMALLEST_SIGMA = 1e-3  # one release alone is ε ≈ 500 000; below it, sampling is not counted
_LARGEST_SIGMA = 1e9  # a thousand million releases are nothing; above it, sampling is not counted


@dataclass(frozen=True, order=True)
class Mechanism:
    """Equal Gaussian releases.

    `sigma`: σ = std / Δ ≥ 0, usually 0.5 to 20; 0 is no noise.
    `q`: the rate of Poisson sampling, in (0, 1]; 1 takes all.
    `steps`: how many releases, 0 or more.
    """

    sigma: float
    q: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise ValueError(
                f"noise multiplier σ = {self.sigma}: it is std / sensitivity, 0 (no noise) or more, finite"
            )
        if not 0 < self.q <= 1:
            raise ValueError(
                f"sampling rate q = {self.q} is outside (0, 1]: it is a batch's share of the data, 1 is all"
            )
        if self.steps < 0:
            raise ValueError(f"steps = {self.steps}: a number of releases is 0 or more")


@dataclass(frozen=True)
class Spent:
    """ε by two accountants, each an upper bound in [0, ∞].

    `pld`: the ε of record.
    `rdp`: the cross-check; None where dp-accounting knows none, which is Poisson sampling under replace-one.
    """

    pld: float
    rdp: float | None


def epsilon(releases: Iterable[Mechanism], delta: float, relation: Relation = "add_remove") -> Spent:
    """ε of all releases together. The cost grows with the number of different (σ, q), not with that of rounds.

    Args:
        releases: in any order.
        delta: δ in (0, 1).
        relation: between neighbouring data sets; it is part of what σ means, see the top of this file.

    Returns:
        ε, with 0 for no releases and ∞ for one without noise. `pld` is exact where nothing is sampled. Where a
        PLD cannot be had in float64 (δ < 1e-12, or ε beyond about 1e6) it is the best of the other upper bounds.

    Raises:
        ValueError: δ is outside (0, 1), or there is no such relation.
        FedclError: dp-accounting is not installed.
    """
    check_delta(delta)
    if relation not in get_args(Relation):
        raise ValueError(f"neighbouring relation {relation!r}: choose {' or '.join(get_args(Relation))}")
    return _composed(merged(releases), delta, relation)


def merged(releases: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Equal (σ, q) as one, and all without sampling as one; sorted, so that the order of events cannot matter.

    Gaussians add up exactly, as Σ steps / σ²; what is left of them has the σ of a single step.
    """
    counts: defaultdict[tuple[float, float], int] = defaultdict(int)
    for one in releases:
        if one.steps:
            counts[one.sigma, one.q if _SMALLEST_SIGMA <= one.sigma <= _LARGEST_SIGMA else 1.0] += one.steps
    if any(sigma == 0 for sigma, _ in counts):
        return (Mechanism(0.0),)
    sampled = sorted(Mechanism(sigma, q, steps) for (sigma, q), steps in counts.items() if q < 1)
    plain = [(sigma, steps) for (sigma, q), steps in counts.items() if q == 1]
    if len(plain) == 1 or not plain:
        return (*(Mechanism(sigma, 1.0, steps) for sigma, steps in plain), *sampled)
    mu = _norm(Mechanism(sigma, 1.0, steps) for sigma, steps in plain)
    return Mechanism(1 / mu if mu else math.nextafter(math.inf, 0)), *sampled


@lru_cache(maxsize=4096)
def _composed(kinds: tuple[Mechanism, ...], delta: float, relation: Relation) -> Spent:
    if any(kind.sigma == 0 for kind in kinds):
        return Spent(math.inf, math.inf)
    sampled = any(kind.q < 1 for kind in kinds)
    divergences = rdp_epsilon(kinds, delta)  # under replace-one, of the sampled ones, only a measure of the range
    known = divergences if relation != "replace_one" or not sampled else None
    exact = gaussian_epsilon(_norm(kinds), delta)  # sampling only helps: an upper bound with it
    if not sampled:
        return Spent(exact, known)
    width = 2 * rdp_epsilon(kinds, _TAIL)
    if delta >= _SMALLEST_DELTA and 0 < width <= _WIDEST:
        found = _pld_epsilon(kinds, delta, relation, _grid(width))
        if found < math.inf:
            return Spent(found, known)
    return Spent(exact if known is None else min(exact, known), known)


def _norm(kinds: Iterable[Mechanism]) -> float:
    """μ = √(Σ steps / σ²) of the Gaussians, as if nothing were sampled."""
    squares = [kind.steps * (1 / kind.sigma) * (1 / kind.sigma) for kind in kinds]
    return math.sqrt(math.fsum(squares)) if max(squares, default=0.0) < 1e300 else math.inf


def _grid(width: float) -> float:
    """The grid's step, a power of 2, so that a coarser grid is part of a finer one.

    More releases then only ever make the grid coarser, and ε larger: composition is monotone to the last digit.
    """
    return max(_FINEST, float(2.0 ** math.ceil(math.log2(width / _POINTS))))


def _pld_epsilon(kinds: tuple[Mechanism, ...], delta: float, relation: Relation, grid: float) -> float:
    first, *others = (_losses(kind, relation, grid) for kind in kinds)
    for other in others:
        first = first.compose(other, tail_mass_truncation=_TAIL)
    return float(first.get_epsilon_for_delta(delta))


@lru_cache(maxsize=32)
def _losses(kind: Mechanism, relation: Relation, grid: float) -> Any:
    """The privacy loss distribution of all steps of one kind, pessimistic; about 1 MB."""
    if kind.q == 1:
        return _loss(kind.sigma / math.sqrt(kind.steps), 1.0, relation, grid)
    return _loss(kind.sigma, kind.q, relation, grid).self_compose(kind.steps, tail_mass_truncation=_TAIL)


@lru_cache(maxsize=64)
def _loss(sigma: float, q: float, relation: Relation, grid: float) -> Any:
    """That of one step. The library's σ is std / C under both relations, for replace-one twice what ours is."""
    accounting = _dp_accounting()
    relations = accounting.NeighboringRelation
    replace = relation == "replace_one"
    return accounting.pld.privacy_loss_distribution.from_gaussian_mechanism(
        sigma * (2 if replace else 1),
        value_discretization_interval=grid,
        sampling_prob=q,
        neighboring_relation=relations.REPLACE_ONE if replace else relations.ADD_OR_REMOVE_ONE,
    )


def rdp_epsilon(kinds: Iterable[Mechanism], delta: float) -> float:
    """The smallest ε over dp-accounting's orders α (Canonne et al. 2020, proposition 12), under add/remove."""
    import numpy as np

    rdp = _dp_accounting().rdp
    orders = rdp.RdpAccountant().orders
    total = np.zeros(len(orders))
    with np.errstate(over="ignore"):  # ∞ is right
        for kind in kinds:
            total += kind.steps * _divergences(kind.sigma, kind.q)
    return float(rdp.compute_epsilon(orders, total, delta)[0])


@lru_cache(maxsize=1024)
def _divergences(sigma: float, q: float) -> Any:
    """Rényi divergences of one release, [orders] float64; as without sampling where the series does not converge."""
    import numpy as np

    accounting = _dp_accounting()
    accountant = accounting.rdp.RdpAccountant()
    whole = accountant.orders * ((1 / sigma) * (1 / sigma) / 2)
    if q == 1:
        return whole
    with _unconverged_orders_unsaid():
        accountant.compose(accounting.PoissonSampledDpEvent(q, accounting.GaussianDpEvent(sigma)))
    return np.minimum(np.maximum(accountant.rdp, 0) + _ROUNDING, whole)  # sampling only helps


@contextmanager
def _unconverged_orders_unsaid() -> Iterator[None]:
    """Without one warning for each order near 1, which is left out: the bound by the others holds."""

    def other(record: logging.LogRecord) -> bool:
        return "_compute_log_a_frac failed to converge" not in str(record.msg)

    logger = logging.getLogger("absl")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _dp_accounting() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ModuleNotFoundError as error:
        raise FedclError(
            "accounting for privacy needs dp-accounting, which is not installed: pip install 'fedcl[privacy]'"
        ) from error
    return dp_accounting
