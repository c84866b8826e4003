"""Lower bounds of ε: they do not pass the truth, are not trivial, and catch a mechanism with too little noise."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor

from fedcl.attacks.audit import bound
from fedcl.attacks.one_run import one_run_bound, p_value

DELTA = 1e-5


def exact_epsilon(sigma: float, delta: float = DELTA) -> float:
    """Of one release: δ = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ), μ = 1/σ."""
    mu = 1 / sigma
    loss = lambda e: norm.cdf(mu / 2 - e / mu) - math.exp(e + norm.logcdf(-mu / 2 - e / mu)) - delta  # noqa: E731
    return float(brentq(loss, 0, 500))


def release(sigma: float, trials: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What a distinguisher sees of a canary of norm 1: N(0, 1) without it, N(1/σ, 1) with it."""
    member = torch.rand(trials, generator=generator) < 0.5
    return torch.randn(trials, generator=generator, dtype=torch.float64) + member / sigma, member


def test_the_oracle_is_the_published_one() -> None:
    assert exact_epsilon(4 / math.sqrt(30)) == pytest.approx(6.3257, abs=1e-4)
    assert exact_epsilon(1.0) == pytest.approx(4.3772, abs=1e-4)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 4.0])
def test_the_bound_is_below_the_truth(sigma: float) -> None:
    generator, truth = torch.Generator().manual_seed(0), exact_epsilon(sigma)
    found = [bound(*release(sigma, 4000, generator), generator, delta=DELTA).epsilon for _ in range(60)]
    assert sum(epsilon <= truth for epsilon in found) >= 57
    least = {0.4: 3.0, 1.0: 1.0, 4.0: 0.01}[sigma]
    assert sorted(found)[30] > least


def test_too_little_noise_is_caught() -> None:
    generator, claimed = torch.Generator().manual_seed(0), exact_epsilon(3.0)
    for _ in range(20):
        assert bound(*release(0.3, 2000, generator), generator, delta=DELTA).epsilon > claimed
        assert one_run_bound(*release(0.3, 2000, generator), positive=500, negative=500, delta=DELTA) > claimed


def test_the_bound_by_hand() -> None:
    scores, member = torch.tensor([1.0] * 40 + [0.0] * 40), torch.arange(80) < 40
    found = bound(scores, member, torch.Generator().manual_seed(0), delta=0.0)
    least = 0.025 ** (1 / 20)  # Clopper–Pearson of 20 hits in 20 trials; its complement bounds the errors
    assert found.epsilon == pytest.approx(math.log(least / (1 - least)))
    assert (found.hits, found.of, found.errors, found.against) == (20, 20, 0, 20)
    private = bound(scores, member, torch.Generator().manual_seed(0), delta=0.5)
    assert private.epsilon == pytest.approx(math.log((least - 0.5) / (1 - least)))


def test_the_other_side_is_used_where_it_proves_more() -> None:
    # half of the others score lower than any member: "out" is sure, "in" never is
    generator = torch.Generator().manual_seed(0)
    member = torch.arange(800) < 400
    scores = torch.rand(800, generator=generator) - 2.0 * (torch.arange(800) >= 600)
    found = bound(scores, member, generator, delta=DELTA)
    assert (found.side, found.errors) == ("others", 0)
    assert found.epsilon > 2.5


def test_nothing_is_proved_of_equal_laws() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [bound(*release(1e9, 600, generator), generator, delta=DELTA).epsilon for _ in range(60)]
    assert sum(epsilon > 0 for epsilon in found) <= 3


def test_p_value_by_hand() -> None:
    # ε = log 3 guesses right with probability ¾: P(B ≥ 2) of 2 is 9/16
    assert p_value(4, 2, 2, math.log(3), 0.0) == pytest.approx(9 / 16)
    # P(1 ≤ B < 2) / 1 = 6/16, P(0 ≤ B < 2) / 2 = 7/32: α = 6/16, times 2 m δ
    assert p_value(4, 2, 2, math.log(3), 0.01) == pytest.approx(9 / 16 + 6 / 16 * 8 * 0.01)
    assert p_value(4, 2, 0, 1.0, 0.0) == 1.0


def test_one_run_by_hand() -> None:
    scores, member = torch.arange(40).double(), torch.arange(40) >= 20
    found = one_run_bound(scores, member, positive=5, negative=5, delta=0.0)
    q = 0.05**0.1
    assert found == pytest.approx(math.log(q / (1 - q)), abs=1e-5)
    assert one_run_bound(-scores, member, positive=5, negative=5, delta=0.0) == 0.0
    assert one_run_bound(scores, member, positive=5, negative=5, delta=1e-3) < found


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_one_run_is_below_the_truth(sigma: float) -> None:
    generator, truth = torch.Generator().manual_seed(0), exact_epsilon(sigma)
    found = [
        one_run_bound(*release(sigma, 2000, generator), positive=100, negative=100, delta=DELTA) for _ in range(40)
    ]
    assert sum(epsilon <= truth for epsilon in found) >= 38
    assert sorted(found)[20] > 1.0


def test_what_does_not_fit_is_refused() -> None:
    scores, member = torch.randn(6), torch.arange(6) < 1
    with pytest.raises(ValueError, match="1 trials with the canary"):
        bound(scores, member, torch.Generator(), delta=DELTA)
    with pytest.raises(ValueError, match=r"4 \+ 4 guesses on 6"):
        one_run_bound(scores, member, positive=4, negative=4, delta=DELTA)
    with pytest.raises(ValueError, match="confidence"):
        bound(scores, member, torch.Generator(), delta=DELTA, confidence=95)
