"""What the model sees of a sample: imputed, flagged, normalised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedcl import features, federation
from fedcl.config import Config
from fedcl.contracts import SPLITS, TEST, TRAIN, FedclError, Samples
from fedcl.sections import Data


def build(samples: Samples | None = None, **sections: Any) -> federation.Federation:
    return federation.build(Config.model_validate(sections), samples)


def table(x: list[list[float]], site: list[int], split: list[int], **fields: Any) -> Samples:
    """A small table with sites and a split of its own; classes take turns."""
    y = np.arange(len(x)) % 2
    names = tuple(f"site {k}" for k in range(max(site) + 1))
    return Samples(np.array(x, np.float32), y, ("a", "b"), np.array(site), names, np.array(split, np.int8), **fields)


SITES = {"partition": {"name": "site", "min_samples": 1}, "stream": {"tasks": 1}, "data": {"val": 0.0}}


def test_grey_levels_become_fractions_and_stay_in_place() -> None:
    x = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1) * 32
    samples = Samples(x, np.arange(8) % 2, ("a", "b"))
    made = build(samples, federation={"clients": 1}, partition={"min_samples": 1}, stream={"tasks": 1})
    values = torch.cat([made.batch(0, 0, split).x for split in SPLITS]).flatten().sort().values
    torch.testing.assert_close(values, torch.arange(8) * 32 / 255)
    assert x.max() == 224


def test_missing_values_become_the_hospitals_own_training_median_and_a_flag() -> None:
    """Site 0 trains on 1, 3, 8 (median 3); site 1 on 10, 20 (median 15), without a second column."""
    nan = float("nan")
    samples = table(
        [
            [1, 5, 0],
            [3, nan, 0],
            [8, 7, 0],
            [nan, 5, 0],
            [100, nan, nan],
            [10, nan, 0],
            [20, nan, 0],
            [nan, nan, 0],
        ],
        [0, 0, 0, 0, 0, 1, 1, 1],
        [TRAIN, TRAIN, TRAIN, TRAIN, TEST, TRAIN, TRAIN, TEST],
        missing=True,
        tabular=True,
    )
    sections = {**SITES, "data": {"val": 0.0, "normalize": "none"}, "federation": {"clients": 2}}
    made = build(samples, **sections)
    assert made.shape == (5,)  # the third column lacks nothing in training: it has no flag
    assert made.batch(0, 0, "train").x.tolist() == [
        [1, 5, 0, 0, 0],
        [3, 5, 0, 0, 1],
        [8, 7, 0, 0, 0],
        [3, 5, 0, 1, 0],
    ]
    assert made.batch(0, 0, "test").x.tolist() == [[100, 5, 0, 0, 1]]
    assert made.batch(1, 0, "train").x.tolist() == [[10, 0, 0, 0, 1], [20, 0, 0, 0, 1]]
    assert made.batch(1, 0, "test").x.tolist() == [[15, 0, 0, 1, 1]]
    scaled = build(samples, **{**sections, "data": {"val": 0.0}})  # auto is `train` for a table
    assert (scaled.batch(1, 0, "train").x[:, 1] == 0).all()
    torch.testing.assert_close(scaled.batch(0, 0, "train").x[:, 3:], made.batch(0, 0, "train").x[:, 3:])


def scaled(how: Any, x: list[list[float]]) -> federation.Federation:
    samples = table(x, [0, 0, 0, 1, 1, 1], [TRAIN, TRAIN, TEST] * 2)
    return build(samples, **{**SITES, "data": {"normalize": how, "val": 0.0}}, federation={"clients": 2})


def test_normalisation_by_all_training_samples_by_each_hospitals_own_or_by_given_numbers() -> None:
    x = [[0, 1], [2, 1], [9, 9], [4, 1], [6, 1], [9, 9]]
    pooled = scaled("train", x)  # mean 3, deviation √5; the second feature is constant
    root = 5**0.5
    torch.testing.assert_close(pooled.batch(0, 0, "train").x, torch.tensor([[-3 / root, 0], [-1 / root, 0]]))
    torch.testing.assert_close(pooled.batch(1, 0, "test").x, torch.tensor([[6 / root, 8]]))
    own = scaled("client", x)  # means 1 and 5, deviation 1
    assert own.batch(0, 0, "train").x.tolist() == own.batch(1, 0, "train").x.tolist() == [[-1, 0], [1, 0]]
    assert own.batch(1, 0, "test").x.tolist() == [[4, 8]]
    assert scaled({"mean": [1, 0], "std": 2.0}, x).batch(0, 0, "train").x.tolist() == [
        [-0.5, 0.5],
        [0.5, 0.5],
    ]
    assert scaled("auto", x).batch(0, 0, "train").x.tolist() == x[:2]
    with pytest.raises(FedclError, match=r"data\.normalize\.mean = .*each of the 2 features"):
        scaled({"mean": [1.0, 2.0, 3.0]}, x)
    with pytest.raises(FedclError, match="above 0"):
        scaled({"std": 0.0}, x)


@pytest.mark.parametrize("how", ["train", "client"])
def test_nothing_is_learned_from_test_samples(how: str) -> None:
    x = [[0.0, 1], [2, 3], [9, 9], [4, 1], [6, 2], [9, 9]]
    other = [[0.0, 1], [2, 3], [-100, 0], [4, 1], [6, 2], [1e6, 5]]
    for hospital in (0, 1):
        a, b = scaled(how, x).batch(hospital, 0, "train").x, scaled(how, other).batch(hospital, 0, "train").x
        assert torch.equal(a, b)


def test_images_are_normalised_by_channel() -> None:
    x = np.random.default_rng(0).normal([[[3]], [[-2]]], [[[1]], [[5]]], (200, 2, 4, 4)).astype(np.float32)
    samples = Samples(x, np.arange(200) % 2, ("a", "b"))
    made = build(
        samples,
        data={"normalize": "train"},
        partition={"name": "iid"},
        stream={"tasks": 1},
        federation={"clients": 2},
    )
    train = torch.cat([made.batch(hospital, 0, "train").x for hospital in (0, 1)])
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(train.std((0, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)


def test_what_the_settings_say_of_an_image_s_range() -> None:
    """0…1 as it is; (0 − 0.5) / 0.25 = −2 and (1 − 0.5) / 0.25 = 2; nothing where it is measured, or of tables."""

    def found(how: Any, *shape: int) -> Any:
        bounds = features.bounds(Data(normalize=how), shape)
        return bounds and [value.flatten().tolist() for value in bounds]

    assert found("auto", 1, 8, 8) == found("none", 1, 8, 8) == [[0.0], [1.0]]
    assert found({"mean": [0.5, 0.0], "std": [0.25, 1.0]}, 2, 4, 4) == [[-2.0, 0.0], [2.0, 1.0]]
    assert found("train", 1, 8, 8) is None
    assert found("client", 1, 8, 8) is None
    assert found("none", 12) is None


@pytest.mark.data
def test_heart_trains_at_four_hospitals(real_data: Any) -> None:
    made = build(
        data={"name": "heart", "root": str(real_data)},
        partition={"name": "site"},
        stream={"kind": "domain", "tasks": 1},
        federation={"clients": 4},
    )
    assert made.names == ("cleveland", "hungarian", "switzerland", "va")
    assert made.shape == (23,)
    for hospital in range(4):
        assert torch.isfinite(made.batch(hospital, 0, "train").x).all()
    assert (made.batch(2, 0, "train").x[:, 4] == 0).all()  # cholesterol, never measured there
