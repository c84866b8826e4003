"""Means, paired differences and what is best: against scipy and by hand."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from fedcl.comparison import stats

A, B = np.array([0.91, 0.93, 0.90, 0.95, 0.92]), np.array([0.88, 0.91, 0.89, 0.90, 0.91])


def test_a_paired_difference_is_student_s():
    found, oracle = stats.paired(A, B), ttest_rel(A, B)
    interval = oracle.confidence_interval(0.95)
    assert found.p == pytest.approx(oracle.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(0.024)
    assert found.n == 5


def test_only_seeds_that_both_have_are_paired():
    gap = A.copy()
    gap[1] = math.nan
    keep = [0, 2, 3, 4]
    assert stats.paired(gap, B).p == pytest.approx(ttest_rel(A[keep], B[keep]).pvalue)


def test_one_seed_says_nothing_and_equal_differences_say_all():
    one = stats.paired(A[:1], B[:1])
    assert one.mean == pytest.approx(0.03)
    assert math.isnan(one.p)
    assert stats.paired(A, A).p == 1
    assert stats.paired(A, A - 0.5).p == 0
    assert stats.paired(A * math.nan, B).n == 0


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1 is .04 .06 .06 .04, and never falls: .04 .06 .06 .06
    assert stats.holm([0.04, 0.01, math.nan, 0.03, 0.02]) == pytest.approx(
        [0.06, 0.04, math.nan, 0.06, 0.06], nan_ok=True
    )
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]


def test_best_is_marked_only_where_it_holds():
    clear = np.stack([B - 0.2, A, B - 0.1])
    assert stats.best(clear) == 1
    assert stats.best(clear, lower=True) == 0
    noise = np.random.default_rng(0).normal(0.9, 0.05, (4, 5))
    assert stats.best(noise) is None
    assert stats.best(clear[:, :1]) is None
    assert stats.best(clear[:1]) is None


def test_chance_marks_a_best_one_in_at_most_one_of_twenty_comparisons():
    draw = np.random.default_rng(1)
    marked = sum(stats.best(draw.normal(size=(5, 4))) is not None for _ in range(400))
    assert marked / 400 <= 0.05
