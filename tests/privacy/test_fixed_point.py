"""Real numbers as whole ones, and weighted means read from sums."""

from __future__ import annotations

import math

import pytest
import torch

from fedcl.contracts import role
from fedcl.errors import FedclError
from fedcl.masking import vectors
from fedcl.masking.fixed_point import COARSEST, FixedPoint
from fedcl.masking.vectors import WeightedMean


def _values(n, length=1000, seed=0):
    return torch.randn(n, length, generator=torch.Generator().manual_seed(seed))


def test_numbers_by_hand():
    numbers = FixedPoint(clip=1.0, parties=4, bits=32)  # 1 / ⌊(2³¹ − 1) / 4⌋ = 2⁻²⁹ and a little
    assert numbers.step == 2**-28
    assert numbers.bound(4) == 4 * 2**-29
    encoded, clipped = numbers.encode(torch.tensor([0.0, 1.0, -0.5, 3.0, -3.0, 1.5 * 2**-28, 2.5 * 2**-28]))
    assert encoded.dtype == torch.int32
    assert encoded.tolist() == [0, 2**28, -(2**27), 2**28, -(2**28), 2, 2]  # halves go to the even level
    assert clipped == 2
    assert numbers.decode(encoded)[1:4].tolist() == [1.0, -0.5, 1.0]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("parties", [1, 2, 3, 5, 40, 100])
@pytest.mark.parametrize("clip", [1e-3, 0.3, 1.0, 7.0, 12345.6])
def test_no_sum_wraps(bits, parties, clip):
    numbers = FixedPoint(clip, parties, bits)
    most = int(numbers.encode(torch.tensor([1e30]))[0])
    assert parties * most < 2 ** (bits - 1)
    assert parties * most <= 2**53
    assert 2 * parties * 2 * most > 2 ** min(bits - 1, 53) / 2  # and the range is used, but for a factor of 4
    total = torch.full((1,), most, dtype=numbers.encode(torch.zeros(1))[0].dtype) * parties
    assert numbers.decode(total).item() == pytest.approx(parties * clip, abs=numbers.bound(parties), rel=1e-15)
    assert numbers.decode(-total).item() == -numbers.decode(total).item()


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("n", [1, 3, 8, 40])
def test_the_error_of_a_sum_is_within_its_bound(bits, n):
    numbers, values = FixedPoint(4.0, 40, bits), _values(n)
    encoded = [numbers.encode(value)[0] for value in values]
    error = (numbers.decode(sum(encoded)) - values.double().clamp(-4, 4).sum(0)).abs().max().item()
    assert 0 <= error <= numbers.bound(n)
    assert numbers.bound(n) <= COARSEST * 4.0
    if bits == 32:
        assert error > numbers.bound(n) / 20  # the bound says something


def test_whole_numbers_are_exact():
    numbers = FixedPoint(clip=1e6, parties=40)
    counts = torch.randint(-(10**6), 10**6 + 1, (40, 500), generator=torch.Generator().manual_seed(1))
    encoded = [numbers.encode(row)[0] for row in counts]
    assert torch.equal(numbers.decode(sum(encoded)), counts.sum(0).double())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad):
    with pytest.raises(FedclError, match="1 of 3 values are not finite"):
        FixedPoint(1.0, 3).encode(torch.tensor([0.0, bad, 1.0]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clip": 1.0, "parties": 200, "bits": 32}, "64 bits, or fewer"),
        ({"clip": 1.0, "parties": 10**9}, "fewer hospitals"),
        ({"clip": 1.0, "parties": 2**60}, "fewer hospitals"),
        ({"clip": 1.0, "parties": 0}, "does not fit"),
        ({"clip": 1.0, "parties": 3, "bits": 48}, "32 or 64"),
        ({"clip": 0.0, "parties": 3}, "positive"),
        ({"clip": math.inf, "parties": 3}, "positive"),
        ({"clip": 1e300, "parties": 3}, "float64"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(options, said):
    with pytest.raises(FedclError, match=said):
        FixedPoint(**options)


def test_a_sum_with_masks_left_in_it_is_noticed():
    numbers = FixedPoint(1.0, 3, 32)
    with pytest.raises(FedclError, match="masks are left"):
        numbers.decode(torch.tensor([2**31 - 1], dtype=torch.int32))
    with pytest.raises(FedclError, match="32 bits"):
        numbers.decode(torch.zeros(1, dtype=torch.int64))


def _arrays(n, seed=0):
    draws = torch.Generator().manual_seed(seed)
    shapes = {"trunk.b": (3, 4), "trunk.a": (), "trunk.c": (5,)}
    return [{name: torch.randn(shape, generator=draws) for name, shape in shapes.items()} for _ in range(n)]


@pytest.mark.parametrize("bits", [32, 64])
def test_a_weighted_mean(bits):
    weights, arrays = [10.0, 500.0, 90.0], _arrays(3)
    written = WeightedMean(clip=4.0, most=1000.0, parties=3, bits=bits)
    encoded = [written.encode(values, weight) for values, weight in zip(arrays, weights, strict=True)]
    assert [clipped for _, clipped in encoded] == [0, 0, 0]
    assert all(len(vector) == vectors.length(arrays[0]) == 19 for vector, _ in encoded)
    mean, total = written.decode(sum(vector for vector, _ in encoded), arrays[0])
    assert total == 600.0
    assert list(mean) == sorted(arrays[0])
    for name, value in mean.items():
        plain = sum(w * values[name].double() for w, values in zip(weights, arrays, strict=True)) / 600
        assert value.shape == arrays[0][name].shape
        torch.testing.assert_close(value.double(), plain, atol=written.bound(3, 600.0) + 2e-7, rtol=0)


def test_a_weighted_mean_clips_entries_and_not_their_weights():
    written = WeightedMean(clip=0.5, most=100.0, parties=2)
    vector, clipped = written.encode({"x": torch.tensor([0.25, 3.0, -3.0])}, 100.0)
    assert clipped == 2
    mean, weight = written.decode(vector, {"x": torch.zeros(3)})
    assert mean["x"].tolist() == [0.25, 0.5, -0.5]
    assert weight == 100.0


def test_weights_that_cannot_be_are_refused():
    written, x = WeightedMean(1.0, 10.0, 3), {"x": torch.zeros(2)}
    for weight in (-1.0, 10.5, math.nan):
        with pytest.raises(FedclError, match="not in"):
            written.encode(x, weight)
    mean, weight = written.decode(written.encode({"x": torch.ones(2)}, 0.0)[0], x)
    assert (mean["x"].tolist(), weight) == ([0.0, 0.0], 0.0)  # nobody has any
    with pytest.raises(FedclError, match="no mean"):
        written.decode(torch.tensor([0, 0, -1]), x)
    with pytest.raises(FedclError, match="3 were expected"):
        written.decode(torch.zeros(4, dtype=torch.int64), x)
    with pytest.raises(FedclError, match="largest weight"):
        WeightedMean(1.0, 0.0, 3)


def test_arrays_by_part():
    arrays = {"trunk.w": torch.zeros(1), "tasks.t1.out": torch.zeros(2), "gates.t1.s": torch.zeros(3)}
    found = vectors.by_part(arrays, role)
    assert {part: list(names) for part, names in found.items()} == {
        "": ["trunk.w"],
        "t1": ["gates.t1.s", "tasks.t1.out"],
    }
