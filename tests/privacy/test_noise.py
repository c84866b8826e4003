from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

from fedcl import noise

SHAPES = {"w": (300, 200), "b": (), "empty": (0, 3), "v": (40_000,)}


def from_seed(seed: int = 0) -> noise.Draw:
    return functools.partial(noise.seeded, generator=torch.Generator().manual_seed(seed))


DRAWS = {"seeded": from_seed(), "secure": noise.secure}


def flat(drawn: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten().double() for value in drawn.values()])


@pytest.mark.parametrize("kind", DRAWS)
def test_it_is_gaussian_of_the_scale(kind: str) -> None:
    drawn = DRAWS[kind](SHAPES, 3.0)
    assert {name: tuple(value.shape) for name, value in drawn.items()} == SHAPES
    z = flat(drawn) / 3
    n = len(z)
    # each bound is six standard errors of its estimate under N(0, 1)
    assert abs(float(z.mean())) < 6 / n**0.5
    assert abs(float(z.square().mean()) - 1) < 6 * (2 / n) ** 0.5
    assert abs(float((z**3).mean())) < 6 * (15 / n) ** 0.5
    assert abs(float((z**4).mean()) - 3) < 6 * (96 / n) ** 0.5
    for bound in (-2.0, -1.0, 0.0, 0.5, 1.5, 2.5):
        p = 0.5 * (1 + math.erf(bound / 2**0.5))
        assert abs(float((z < bound).double().mean()) - p) < 6 * (p * (1 - p) / n) ** 0.5


@pytest.mark.parametrize("kind", DRAWS)
def test_values_are_independent(kind: str) -> None:
    drawn = DRAWS[kind](SHAPES, 1.0)
    z, other = flat(drawn), flat(DRAWS[kind](SHAPES, 1.0))
    n = len(z)
    for lag in (1, 2, 3, 200, n // 4, n // 2):
        assert abs(float((z[lag:] * z[:-lag]).mean())) < 6 / (n - lag) ** 0.5
        assert abs(float((z[lag:].square() * z[:-lag].square()).mean()) - 1) < 6 * (8 / (n - lag)) ** 0.5
    assert abs(float((z * other).mean())) < 6 / n**0.5


def test_a_seed_repeats_the_noise_in_whatever_order_the_names_come() -> None:
    first, again, other = from_seed(1)(SHAPES, 1.0), from_seed(1)(dict(reversed(SHAPES.items())), 1.0), from_seed(2)
    assert all(torch.equal(first[name], again[name]) for name in SHAPES)
    assert not torch.equal(first["v"], other(SHAPES, 1.0)["v"])
    before = torch.get_rng_state()
    from_seed(1)(SHAPES, 1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_secure_noise_differs_between_calls_and_ignores_seeds() -> None:
    torch.manual_seed(0)
    first = noise.secure(SHAPES, 1.0)
    torch.manual_seed(0)
    again = noise.secure(SHAPES, 1.0)
    assert first["w"].dtype == torch.float64
    assert not bool((first["w"] == again["w"]).any())
    assert len(first["w"].unique()) == first["w"].numel()


@pytest.mark.parametrize("kind", DRAWS)
def test_no_noise_is_zero(kind: str) -> None:
    assert all(not value.any() for value in DRAWS[kind](SHAPES, 0.0).values())


def test_noise_is_added_and_rounded_once() -> None:
    values = {"a": torch.full((2,), 1.0), "b": torch.full((2,), 1.0, dtype=torch.float64)}
    tiny = 2.0**-30

    def draw(shapes: noise.Shapes, std: float) -> dict[str, Tensor]:
        return {name: torch.full(tuple(shape), std, dtype=torch.float64) for name, shape in shapes.items()}

    noised = noise.added(values, tiny, draw)
    assert noised["a"].dtype == torch.float32
    assert noised["a"].tolist() == [1.0, 1.0]
    assert noised["b"].tolist() == [1 + tiny, 1 + tiny]
    assert values["a"].tolist() == [1.0, 1.0]


def test_a_generator_that_nobody_can_foresee() -> None:
    one, two = noise.unforeseen(), noise.unforeseen()
    draws = torch.rand(20_000, generator=one)
    assert not torch.equal(draws, torch.rand(20_000, generator=two))
    assert float(draws.mean()) == pytest.approx(0.5, abs=6 / (12 * 20_000) ** 0.5)
    words = one.get_state()[24 : 24 + 8 * 624].view(torch.int64)
    assert len(words.unique()) > 600  # the whole state, not a seed's
