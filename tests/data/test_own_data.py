"""Data of one's own: made-up samples, arrays, folders, modules; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedcl import datasets
from fedcl.contracts import TEST, TRAIN, UNASSIGNED, VAL, FedclError, Samples
from fedcl.datasets import _samples
from fedcl.sections import Data


def load(name: str, root: Path | str = "", **options: Any) -> Samples:
    return datasets.load(Data(name=name, root=str(root), options=options))


def test_synthetic_is_of_the_shape_asked_for_and_can_be_learned() -> None:
    samples = load("synthetic", samples=400, classes=4, shape=[3, 5, 5], sites=2)
    assert samples.x.shape == (400, 3, 5, 5)
    assert np.bincount(samples.y).tolist() == [100] * 4
    assert samples.sites == ("site 0", "site 1")
    flat = samples.x.reshape(400, -1)
    means = np.stack([flat[:200][samples.y[:200] == k].mean(0) for k in range(4)])
    guess = ((flat[200:, None] - means) ** 2).sum(-1).argmin(1)
    assert (guess == samples.y[200:]).mean() > 0.9
    np.testing.assert_array_equal(samples.x, load("synthetic", samples=400, classes=4, shape=[3, 5, 5], sites=2).x)


def test_npz_reads_names_sites_and_splits(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 3))
    np.savez(
        tmp_path / "own.npz",
        x=x,
        y=np.array(["sick", "well"] * 3),
        site=np.array(["b", "a", "b", "a", "b", "b"]),
        split=np.array(["train", "train", "val", "val", "test", "test"]),
    )
    samples = load("npz", path=str(tmp_path / "own.npz"))
    assert samples.x.dtype == np.float32
    assert samples.tabular
    assert (samples.classes, samples.y.tolist()) == (("sick", "well"), [0, 1] * 3)
    assert samples.site is not None
    assert samples.split is not None
    assert (samples.sites, samples.site.tolist()) == (("a", "b"), [1, 0, 1, 0, 1, 1])
    assert samples.split.tolist() == [TRAIN, TRAIN, VAL, VAL, TEST, TEST]
    np.savez(tmp_path / "images.npz", x=np.zeros((4, 5, 5), np.uint8), y=[0, 1, 0, 1], classes=["no", "yes"])
    images = load("npz", tmp_path, path="images.npz")
    assert (images.x.shape, images.x.dtype, images.classes) == ((4, 1, 5, 5), np.uint8, ("no", "yes"))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((4, 2))}, "no array 'y'"),
        ({"x": np.zeros(4), "y": [0, 0, 1, 1]}, "one row per sample"),
        ({"x": np.zeros((4, 2)), "y": [0, 1]}, "x has 4 samples, but y has the shape"),
        ({"x": np.zeros((4, 2)), "y": [0, 0, 1, 5], "classes": ["a", "b"]}, "labels run from 0 to 5"),
        ({"x": np.zeros((4, 2)), "y": [0, 0, 0, 1]}, r"too few of: '1' \(1\)"),
        ({"x": np.zeros((4, 2)), "y": [0, 0, 1, 1], "split": ["train", "dev"] * 2}, "split holds 'dev'"),
        (
            {"x": np.full((4, 2), np.nan), "y": [0, 0, 1, 1]},
            "8 values that are NaN or infinite, in 2 of 2 columns",
        ),
        ({"x": np.array([[1, 2], [3, "a"]], object), "y": [0, 1]}, "can be read"),
    ],
)
def test_npz_refuses_what_cannot_be_learned_from(tmp_path: Path, arrays: Any, says: str) -> None:
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(FedclError, match=says):
        load("npz", path=str(tmp_path / "own.npz"))


def test_npz_refuses_missing_and_corrupt_files(tmp_path: Path) -> None:
    with pytest.raises(FedclError, match=r"there is no .*nowhere\.npz"):
        load("npz", path=str(tmp_path / "nowhere.npz"))
    (tmp_path / "own.npz").write_bytes(b"PK but no zip")
    with pytest.raises(FedclError, match=r"own\.npz is no \.npz file"):
        load("npz", path=str(tmp_path / "own.npz"))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(FedclError, match=r"one\.npy is no \.npz file"):
        load("npz", path=str(tmp_path / "one.npy"))


def test_npz_keeps_nan_where_it_means_not_measured(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.array([[1, np.nan]] * 4), y=[0, 0, 1, 1])
    assert load("npz", path=str(tmp_path / "own.npz"), missing=True).missing


def write_images(root: Path, *, size: tuple[int, int] = (6, 4)) -> Path:
    for name in ("north/train/sick", "north/train/well", "north/test/sick", "south/sick", "south/well"):
        (root / name).mkdir(parents=True)
        for number in range(2):
            Image.new("L", size, 50 * number + 10).save(root / name / f"{number}.png")
    return root


def test_folder_finds_sites_classes_and_splits(tmp_path: Path) -> None:
    samples = load("folder", path=str(write_images(tmp_path)))
    assert samples.x.shape == (10, 1, 4, 6)
    assert (samples.sites, samples.classes) == (("north", "south"), ("sick", "well"))
    assert samples.split is not None
    assert samples.split.tolist() == [TEST] * 2 + [TRAIN] * 4 + [UNASSIGNED] * 4
    assert samples.y.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 1, 1]
    assert samples.x[:2, 0, 0, 0].tolist() == [10, 60]
    assert load("folder", path=str(tmp_path), size=8, color=True).x.shape == (10, 3, 8, 8)


def test_folder_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(FedclError, match="no folder"):
        load("folder", path=str(tmp_path / "x"))
    with pytest.raises(FedclError, match="no images"):
        load("folder", path=str(tmp_path))
    write_images(tmp_path)
    odd = tmp_path / "south" / "well" / "odd.png"
    Image.new("L", (3, 3)).save(odd)
    with pytest.raises(FedclError, match=r"odd\.png is \(3, 3\).*data\.options\.size"):
        load("folder", path=str(tmp_path))
    odd.write_bytes(b"no image")
    with pytest.raises(FedclError, match=r"odd\.png cannot be read"):
        load("folder", path=str(tmp_path))
    odd.rename(tmp_path / "south" / "odd.png")
    with pytest.raises(FedclError, match="images belong into"):
        load("folder", path=str(tmp_path))


def test_sites_of_a_sequence_are_counted_on() -> None:
    samples = load("synthetic+synthetic", samples=20, classes=2, shape=[3], sites=2)
    assert samples.site is not None
    assert set(samples.site[20:]) == {2, 3}
    assert len(samples.sites) == 4


def test_unknown_names_options_and_variants_have_a_way_out() -> None:
    with pytest.raises(FedclError, match="did you mean 'digits'"):
        load("digit")
    with pytest.raises(FedclError, match=r"data\.options\.sample: .*did you mean 'samples'"):
        load("synthetic", sample=3)
    with pytest.raises(FedclError, match="'digits' has no options"):
        load("digits", samples=3)
    with pytest.raises(FedclError, match=r"data\.options\.samples='many'"):
        load("synthetic", samples="many")
    with pytest.raises(FedclError, match=r"data\.options\.noise=-1"):
        load("synthetic", noise=-1)
    with pytest.raises(FedclError, match="'digits' has no variants"):
        load("digits:small")


def test_somebodys_own_module_is_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_clinic.py").write_text(
        "import numpy as np\nfrom fedcl.contracts import Samples\n"
        "def build(root, *, n=4):\n"
        "    return Samples(np.zeros((n, 2), np.float32), np.arange(n) % 2, ('a', 'b'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(load("own_clinic:build", n=6).y) == 6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": np.zeros((4, 2))}, "x is float64"),
        ({"y": np.zeros(4, np.int32)}, "y is int32"),
        ({"x": np.zeros((0, 2), np.float32), "y": np.zeros(0, np.int64)}, "no samples"),
        ({"missing": True, "x": np.zeros((4, 1, 2, 2), np.float32)}, "missing values are for tables"),
        ({"missing": True, "x": np.full((4, 2), np.inf, np.float32)}, "8 values that are NaN or infinite"),
        ({"site": np.zeros(3, np.int64)}, "site has the shape"),
    ],
)
def test_samples_are_checked(change: Any, says: str) -> None:
    good = {"x": np.zeros((4, 2), np.float32), "y": np.array([0, 0, 1, 1]), "classes": ("a", "b")}
    assert _samples.check("own", Samples(**good)) is not None
    with pytest.raises(FedclError, match=says):
        _samples.check("own", Samples(**{**good, **change}))
