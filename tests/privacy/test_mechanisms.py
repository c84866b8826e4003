"""What each mechanism does to numbers, by hand: clipping, noise, steps, and what stays."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from fedcl import noise
from fedcl.contracts import Update
from fedcl.privacy.client_dp import ClientDP
from fedcl.privacy.dp_ftrl import DPFTRL, coefficients
from fedcl.privacy.not_sending import NotSending

NONE = {"clip": 1.0}


def seeded(seed=0):
    return functools.partial(noise.seeded, generator=torch.Generator().manual_seed(seed))


def silent(shapes, std):
    """Noise that is not there."""
    return {name: torch.zeros(tuple(shape)) for name, shape in shapes.items()}


def asked_for(found):
    """Notes the standard deviations that were asked for, and gives ones of that height."""

    def draw(shapes, std):
        found.append(std)
        return {name: torch.full(tuple(shape), std) for name, shape in shapes.items()}

    return draw


def update(**arrays):
    return Update(0, arrays, 30.0, {"loss": 1.0}, {"upload": torch.tensor([4.0]), "count": torch.tensor([7])})


# ── client-dp ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_update_is_clipped_as_one_vector():
    """‖(3, 0, 12, 4)‖ = 13, the upload and a number without dimensions in it; whole numbers are let be."""
    before = update(w=torch.tensor([3.0, 0.0]), b=torch.tensor(12.0), steps=torch.tensor([100]))
    after = ClientDP(clip=1.3).seal(before, "train", {"clip": 1.3}, silent)
    torch.testing.assert_close(after.arrays["w"], torch.tensor([0.3, 0.0]))
    torch.testing.assert_close(after.arrays["b"], torch.tensor(1.2))
    torch.testing.assert_close(after.extras["upload"], torch.tensor([0.4]))
    assert after.arrays["steps"].tolist() == [100]
    assert after.extras["count"].tolist() == [7]
    assert after.weight == 1.0  # all weigh the same
    assert before.arrays["w"].tolist() == [3.0, 0.0]


@pytest.mark.parametrize("size", [0.0, 0.5])
def test_a_short_update_is_let_be(size):
    before = Update(0, {"w": torch.tensor([size, 0.0])}, 0.0, {})
    after = ClientDP().seal(before, "train", NONE, silent)
    assert after.arrays["w"].tolist() == [size, 0.0]
    assert after.weight == 1.0  # also without samples: it sends zeros into a sum


def test_answers_on_test_samples_are_no_updates():
    before = update(w=torch.tensor([300.0]))
    assert ClientDP(where="hospital", noise=1.0).seal(before, "evaluate", {}, seeded()) is before


@pytest.mark.parametrize(("relation", "times"), [("zero_out", 1), ("replace_one", 2)])
@pytest.mark.parametrize("where", ["server", "hospital"])
def test_the_noise_is_sigma_times_the_sensitivity_once(where, relation, times):
    rule, asked = ClientDP(clip=9.0, noise=1.5, where=where, relation=relation), []
    sealed = rule.seal(update(w=torch.zeros(3)), "train", {"clip": 0.5}, asked_for(asked))  # the round's C counts
    sums = rule.blur(sealed.arrays, {"clip": 0.5}, asked_for(asked))
    assert asked == [1.5 * 0.5 * times]
    torch.testing.assert_close(sums["w"], torch.full((3,), 0.75 * times))


def test_the_noise_has_that_deviation():
    z = ClientDP(noise=2.0).blur({"w": torch.zeros(40_000)}, {"clip": 0.25}, seeded())["w"]
    assert float(z.std()) == pytest.approx(0.5, rel=6 / (2 * 40_000) ** 0.5)


def test_what_the_count_takes_of_the_budget_the_updates_give():
    """1/σ² = 1/σ_Δ² + 1/(2σ_b)², σ_b = 5σ: Andrew et al. 2021, Theorem 1; the count, of sensitivity 1, has 2σ_b."""
    asked = []
    ClientDP(noise=1.0, adaptive=True).blur({"w": torch.zeros(1)}, NONE, asked_for(asked))
    assert 1 / asked[0] ** 2 + 1 / 10.0**2 == pytest.approx(1.0)


def test_the_clip_norm_follows_the_quantile():
    """Three of four within C: C ← C exp(−0.2 (0.75 − 0.5)); then, one of four: it grows again."""
    rule = ClientDP(clip=2.0, noise=1.0, adaptive=True)
    told = [
        rule.seal(Update(0, {"w": torch.tensor([float(x)])}, 1.0, {}), "train", {"clip": 2.0}, silent)
        for x in (1, 2, 3)
    ]
    assert [each.metrics["within"] for each in told] == [1.0, 1.0, 0.0]
    state = rule.learn({}, [{"within": 1.0}] * 3 + [{"within": 0.0}], silent)
    assert rule.terms(state) == {"clip": pytest.approx(2 * math.exp(-0.05))}
    state = rule.learn(state, [{"within": 0.0}] * 3 + [{"within": 1.0}], silent)
    assert rule.terms(state) == {"clip": pytest.approx(2.0)}
    assert rule.learn(state, [{"loss": 1.0}], silent) == state  # nobody told


def test_the_count_is_noised_and_its_share_stays_one():
    asked = []
    state = ClientDP(noise=2.0, adaptive=True).learn({}, [{"within": 1.0}], asked_for(asked))
    assert asked == [20.0]  # what a hospital says moves the count by 1: 2 · count_noise · σ costs 1/(2 · count_noise)²
    assert state["clip"] == pytest.approx(math.exp(-0.2 * 0.5))  # (1 + 20) / 1 is cut to 1


@pytest.mark.parametrize(
    "options",
    [
        {"clip": 0.0},
        {"noise": -1.0},
        {"epsilon": 0.0},
        {"where": "nowhere"},
        {"relation": "cousin"},
        {"quantile": 1.0},
        {"rate": 0.0},
        {"count_noise": 0.5},
        {"adaptive": True, "where": "hospital"},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=r"must be|needs the count"):
        ClientDP(**options)


# ── dp-ftrl ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_coefficients_are_those_of_an_inverse_square_root():
    """(1 − x)^(−1/2) = 1 + x/2 + 3x²/8 + 5x³/16 + …, whose square is 1/(1 − x)."""
    c = coefficients(5)
    assert c == [1, 1 / 2, 3 / 8, 5 / 16, 35 / 128]
    assert [sum(c[i] * c[n - i] for i in range(n + 1)) for n in range(5)] == pytest.approx([1.0] * 5)


def test_noise_is_taken_back_as_the_matrix_says():
    """The noise of steps 0…T−1 is  2Cσ‖c‖₂ C⁻¹ z  with C lower triangular, banded, Toeplitz."""
    rule, steps, state = DPFTRL(clip=0.5, noise=3.0, bands=3), 6, {}
    draw, found = seeded(1), []
    for _ in range(steps):
        noised, state = rule.noised({"w": torch.zeros(4, dtype=torch.float64)}, state, draw)
        found.append(noised["w"])
        assert len(state) <= 2  # p − 1 steps are kept
    z, again = [], seeded(1)
    for _ in range(steps):
        z.append(again({"w": (4,)}, 1.0)["w"].double())
    c = coefficients(3)
    matrix = torch.zeros(steps, steps, dtype=torch.float64)
    for row in range(steps):
        for j in range(min(3, row + 1)):
            matrix[row, row - j] = c[j]
    expected = 2 * 0.5 * 3.0 * math.hypot(*c) * torch.linalg.solve(matrix, torch.stack(z))
    torch.testing.assert_close(torch.stack(found), expected)


def test_sums_of_it_wander_less_than_those_of_independent_noise():
    """What it is for: at the same σ, and so the same ε, the error of a sum over 40 steps is less than half."""

    def error(bands):
        rule, state, total, draw = DPFTRL(noise=1.0, bands=bands), {}, torch.zeros(2000), seeded(2)
        for _ in range(40):
            sums, state = rule.noised({"w": torch.zeros(2000)}, state, draw)
            total += sums["w"]
        return float(total.std())

    assert error(8) < 0.5 * error(1)


def test_a_record_comes_once_an_epoch_and_always_at_its_place():
    rule = DPFTRL(noise=1.0)
    rows = list(rule.rows(10, 4, 3, torch.Generator().manual_seed(7)))
    other = list(rule.rows(10, 4, 3, torch.Generator().manual_seed(8)))
    assert [len(row) for row in rows] == [4, 4, 2] * 3
    assert sorted(torch.cat(rows[:3]).tolist()) == list(range(10))
    assert all(torch.equal(one, two) for one, two in zip(rows, rows[3:] + rows[:3], strict=True))
    assert all(torch.equal(one, two) for one, two in zip(rows, other, strict=True))
    assert (rule.touches(10, 4, 3), rule.rate(10, 4)) == (3, 1.0)


def test_bands_are_never_more_than_the_steps_between_a_record_s_two():
    assert DPFTRL(bands=8).fitted(samples=10, batch_size=4).bands == 3
    assert DPFTRL(bands=2).fitted(samples=10, batch_size=4).bands == 2


LABELED = ("labels/samples.0", "labels/wrong.0", "labels/tested", "labels/gaps")  # counts, all of them

# ── not-sending ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "left", "weight"),
    [
        ({}, {"memory"}, 1.0),
        ({"figures": False}, {"memory", "loss", "val/accuracy"}, 1.0),
        ({"counts": False}, {"memory", "samples", "t0/n"}, 30.0),
        ({"figures": False, "counts": False}, {"memory", "loss", "val/accuracy", "samples", "t0/n", *LABELED}, 30.0),
    ],
)
def test_what_stays_is_not_in_the_answer(options, left, weight):
    told = {"memory": 8.0, "loss": 1.0, "val/accuracy": 0.5, "samples": 30.0, "t0/n": 9.0}
    told |= dict.fromkeys(LABELED, 3.0)
    sealed = NotSending(**options).seal(Update(0, {}, 30.0, told), "train", {}, silent)
    assert (set(sealed.metrics), sealed.weight) == (left, weight)
