"""ε by numbers that were found elsewhere, and by the laws that any ε keeps."""

from __future__ import annotations

import itertools
import logging
import math
import sys

import dp_accounting
import dp_accounting.pld
import dp_accounting.rdp
import pytest
from scipy.stats import norm

from fedcl.accounting.accountant import Mechanism, epsilon, merged
from fedcl.accounting.calibration import check_target, sigma_for
from fedcl.accounting.gaussian import gaussian_delta, gaussian_epsilon
from fedcl.errors import FedclError

DELTA = 1e-5


def _pld(*releases, delta=DELTA, relation="add_remove"):
    return epsilon(releases, delta, relation).pld


@pytest.mark.parametrize(("sigma", "steps", "expected"), [(10, 100, 4.3772), (4, 30, 6.3257)])
def test_the_exact_formula(sigma, steps, expected):
    mu = math.sqrt(steps) / sigma
    found = gaussian_epsilon(mu, DELTA)
    assert found == pytest.approx(expected, abs=1e-4)
    assert gaussian_delta(found, mu) == pytest.approx(DELTA, rel=1e-9)
    by_hand = norm.cdf(mu / 2 - found / mu) - math.exp(found) * norm.cdf(-mu / 2 - found / mu)
    assert by_hand == pytest.approx(DELTA, rel=1e-8)
    assert _pld(Mechanism(sigma, 1, steps)) == found


@pytest.mark.parametrize(
    ("sigma", "expected"), [(1, (28.4, 91.8, 159.4)), (5, (3.85, 10.0, 15.5)), (20, (0.82, 1.99, 2.94))]
)
def test_five_hospitals_at_client_level(sigma, expected):
    for tasks, value in zip((1, 5, 10), expected, strict=True):
        assert _pld(*[Mechanism(sigma, 1, 20)] * tasks) == pytest.approx(value, rel=5e-3)


@pytest.mark.parametrize(
    ("q", "sigma", "steps", "pld", "rdp"),
    [
        (0.01, 1.0, 1000, 1.828, 2.101),
        (0.004, 1.3, 3750, 0.834, 0.922),
        (64 / 1437, 1.0, 450, 6.268, 6.949),
        (1, 10, 100, 4.377, 4.729),
        (1, 4, 30, 6.326, 6.813),
    ],
)
def test_both_accountants(q, sigma, steps, pld, rdp):
    found = epsilon([Mechanism(sigma, q, steps)], DELTA)
    assert found.pld == pytest.approx(pld, abs=1e-3)
    assert found.rdp == pytest.approx(rdp, abs=1e-3)


def test_the_library_finds_the_same_on_its_own_grid():
    accountant = dp_accounting.pld.PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_ONE)
    # its σ is std / C, with a sensitivity of 2 C: twice ours
    one = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(4.0))
    accountant.compose(dp_accounting.SelfComposedDpEvent(one, 50))
    found = epsilon([Mechanism(2.0, 0.1, 50)], DELTA, "replace_one")
    assert found.pld == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-3)
    assert found.rdp is None


def test_without_sampling_the_relation_is_in_sigma_alone():
    one = [Mechanism(3.0, 1, 20)]
    assert epsilon(one, DELTA, "replace_one") == epsilon(one, DELTA, "add_remove")


def test_equal_kinds_are_one():
    parts = [Mechanism(1.0, 0.05, 15)] * 4
    assert merged(parts) == (Mechanism(1.0, 0.05, 60),)
    assert _pld(*parts) == pytest.approx(_pld(Mechanism(1.0, 0.05, 60)), abs=1e-6)
    gaussians = [Mechanism(3.0, 1, 10), Mechanism(4.0, 1, 20)]
    assert _pld(*gaussians) == pytest.approx(gaussian_epsilon(math.sqrt(10 / 9 + 20 / 16), DELTA), abs=1e-6)


def test_order_does_not_matter():
    kinds = [Mechanism(0.8, 0.05, 30), Mechanism(1.2, 0.1, 20), Mechanism(5.0, 1, 3), Mechanism(7.0, 1, 2)]
    assert len({epsilon(order, DELTA) for order in itertools.permutations(kinds)}) == 1


def test_every_release_costs_and_rdp_is_never_below():
    kinds = [Mechanism(1.0, 0.05, 15), Mechanism(30.0, 0.001, 1), Mechanism(0.7, 0.2, 3), Mechanism(6.0, 1, 2)]
    before = 0.0
    for count in range(1, len(kinds) + 1):
        found = epsilon(kinds[:count], DELTA)
        assert found.rdp is not None
        assert before <= found.pld <= found.rdp
        before = found.pld
    assert _pld(*kinds, delta=1e-7) > before


@pytest.mark.parametrize("relation", ["add_remove", "replace_one"])
@pytest.mark.parametrize("delta", [0.5, 1e-5, 1e-30, 1e-300])
@pytest.mark.parametrize("q", [1e-9, 0.05, 0.999, 1])
@pytest.mark.parametrize("sigma", [5e-324, 1e-3, 0.05, 1e6, 1e300])
def test_extremes_are_numbers(sigma, q, delta, relation):
    found = epsilon([Mechanism(sigma, q, 7)], delta, relation)
    whole = gaussian_epsilon(math.sqrt(7) / sigma, delta)
    assert 0 <= found.pld <= whole * (1 + 1e-3) + 1e-4
    assert found.rdp is None or found.rdp >= 0


def test_nothing_costs_nothing_and_no_noise_costs_all():
    assert epsilon([], DELTA) == epsilon([Mechanism(0.0, 1, 0)], DELTA)
    assert _pld() == 0
    assert _pld(Mechanism(0.0, 0.1, 1), Mechanism(1.0, 0.1, 1)) == math.inf


def test_the_library_is_silenced_for_the_call_only(caplog, monkeypatch):
    logger = logging.getLogger("absl")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    event = dp_accounting.PoissonSampledDpEvent(0.5, dp_accounting.GaussianDpEvent(0.512))
    dp_accounting.rdp.RdpAccountant().compose(event)
    assert "failed to converge" in caplog.text
    caplog.clear()
    before = list(logger.filters), logger.level
    epsilon([Mechanism(0.512, 0.5, 5)], DELTA)
    assert not caplog.records
    assert (list(logger.filters), logger.level) == before


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(FedclError, match=r"pip install 'fedcl\[privacy\]'"):
        epsilon([Mechanism(3.21, 0.1, 2)], DELTA)


@pytest.mark.parametrize(("target", "schedule"), [(3.0, [(0.05, 300)]), (1.0, [(1, 40)]), (8.0, [(0.05, 100), (1, 2)])])
def test_calibrated_noise_keeps_the_target_and_little_less_would_not(target, schedule):
    sigma = sigma_for(target, DELTA, schedule)
    assert _pld(*(Mechanism(sigma, q, steps) for q, steps in schedule)) <= target
    assert _pld(*(Mechanism(sigma * 0.999, q, steps) for q, steps in schedule)) > target


def test_calibration_by_numbers():
    assert sigma_for(3.0, DELTA, [(0.05, 300)]) == pytest.approx(1.464, abs=1e-3)
    assert sigma_for(math.inf, DELTA, [(0.05, 300)]) == 0
    assert sigma_for(1.0, DELTA, [(0.05, 0)]) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mechanism(-1.0), "σ = -1.0"),
        (lambda: Mechanism(math.nan), "σ = nan"),
        (lambda: Mechanism(1.0, 0.0), "q = 0.0"),
        (lambda: Mechanism(1.0, 1.1), "q = 1.1"),
        (lambda: Mechanism(1.0, 1, -1), "steps = -1"),
        (lambda: epsilon([], 0.0), "δ = 0.0"),
        (lambda: epsilon([], 1.0), "δ = 1.0"),
        (lambda: epsilon([], DELTA, "both"), "'both'"),
        (lambda: gaussian_epsilon(-1.0, DELTA), "μ = -1.0"),
        (lambda: sigma_for(0.0, DELTA, [(1, 1)]), "target ε = 0.0"),
        (lambda: sigma_for(0.01, DELTA, [(1, 100)], largest=10), "even with σ = 10"),
        (lambda: check_target(3.0, 0.0), "σ = 0"),
    ],
)
def test_what_cannot_be_says_why(call, message):
    with pytest.raises(ValueError, match=message):
        call()
