"""Data sets: what is read, and what is refused with a way out."""

from __future__ import annotations

import gzip
import struct
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcl import datasets, plugins
from fedcl.contracts import TEST, TRAIN, UNASSIGNED, VAL, FedclError, Samples
from fedcl.datasets import _torchvision
from fedcl.sections import Data


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, names: tuple[str, str] = ("train", "t10k"), first: int = 0) -> np.ndarray:
    """40 + 20 images of 4×3 in 10 classes; returns all images."""
    folder.mkdir(parents=True)
    x = np.random.default_rng(0).integers(0, 256, (60, 4, 3), np.uint8)
    y = (np.arange(60) % 10 + first).astype(np.uint8)
    for name, rows in zip(names, (slice(0, 40), slice(40, 60)), strict=True):
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(x[rows])))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(y[rows]))
    return x


def load(name: str, root: Path | str = "", **options: Any) -> Samples:
    return datasets.load(Data(name=name, root=str(root), options=options))


def test_digits_are_scikit_learns() -> None:
    samples = load("digits")
    assert samples.x.shape == (1797, 1, 8, 8)
    assert samples.x.dtype == np.float32
    assert (samples.x.min(), samples.x.max()) == (0.0, 1.0)
    assert np.bincount(samples.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_idx_files_are_read_packed_or_not(tmp_path: Path, name: str, folder: str) -> None:
    x = write_idx(tmp_path / folder / "raw")
    samples = load(name, tmp_path)
    np.testing.assert_array_equal(samples.x, x[:, None])
    assert samples.split is not None
    assert samples.split.tolist() == [TRAIN] * 40 + [TEST] * 20
    assert len(samples.classes) == 10
    assert datasets.find(name, str(tmp_path)).found


def test_emnist_is_turned_upright_and_its_letters_start_at_a(tmp_path: Path) -> None:
    x = write_idx(tmp_path / "EMNIST" / "raw", ("emnist-digits-train", "emnist-digits-test"))
    np.testing.assert_array_equal(load("emnist", tmp_path, split="digits").x[:, 0], x.swapaxes(1, 2))
    write_idx(tmp_path / "b" / "EMNIST" / "raw", ("emnist-letters-train", "emnist-letters-test"), first=1)
    build = plugins.load("datasets", "emnist")
    letters = build(tmp_path / "b", split="letters")
    assert (letters.y.min(), letters.classes[0], len(letters.classes)) == (0, "a", 26)


def test_emnist_has_the_class_names_that_torchvision_gives(tmp_path: Path) -> None:
    from torchvision.datasets import EMNIST

    from fedcl.datasets.emnist import _classes

    for split in ("balanced", "byclass", "bymerge", "digits"):
        assert list(_classes(split)) == EMNIST.classes_split_dict[split]  # type: ignore[arg-type]


def test_colour_pictures_get_their_channels_first() -> None:
    x = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    samples = _torchvision.pictures([(x, [0, 1]), (x[:1], [1])], ("a", "b"))
    assert samples.x.shape == (3, 3, 4, 4)
    assert samples.x[1, 2, 3, 0] == x[1, 3, 0, 2]
    assert samples.x.flags.c_contiguous


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda raw: raw[: len(raw) // 2], "damaged"),
        (lambda raw: b"no gzip at all", "damaged"),
        (lambda raw: gzip.compress(b"\1\2\3\4"), "starts with 01 02 03"),
        (lambda raw: gzip.compress(gzip.decompress(raw)[:-5]), "damaged"),
        (lambda raw: gzip.compress(b"\0\0\x08"), "damaged"),
        (
            lambda raw: gzip.compress(idx(np.zeros((39, 4, 3), np.uint8))),
            "39 images, but there are 40 labels",
        ),
    ],
)
def test_a_corrupt_idx_file_is_named(tmp_path: Path, damage: Any, says: str) -> None:
    write_idx(tmp_path / "MNIST" / "raw")
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(FedclError, match=says) as error:
        load("mnist", tmp_path)
    assert str(file) in str(error.value)
    assert "fedcl data fetch mnist" in str(error.value)


@pytest.mark.parametrize(
    "name", ["mnist", "kmnist", "emnist", "cifar10", "cifar100", "svhn", "heart", "medmnist:bloodmnist"]
)
def test_a_data_set_that_is_not_there_names_folder_and_command(tmp_path: Path, name: str) -> None:
    with pytest.raises(FedclError, match=f"fedcl data fetch {name}") as error:
        load(name, tmp_path)
    assert str(tmp_path) in str(error.value)
    status = datasets.find(name, str(tmp_path))
    assert (status.found, status.remedy) == (False, f"fedcl data fetch {name}")
    assert list(tmp_path.iterdir()) == []  # loading downloads and creates nothing


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_torchvisions_damaged_files_are_an_error_of_ours(tmp_path: Path, name: str) -> None:
    import importlib

    for path in importlib.import_module(f"fedcl.datasets.{name}").sought(tmp_path):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"nothing")
    with pytest.raises(FedclError, match=f"damaged.*fedcl data fetch {name}"):
        load(name, tmp_path)


def test_the_root_comes_from_the_config_then_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCL_DATA", "/a")
    assert (datasets.home("/b"), datasets.home()) == (Path("/b"), Path("/a"))
    monkeypatch.delenv("FEDCL_DATA")
    assert datasets.home() == Path.home() / ".cache" / "fedcl"


HEART = """63,1,1,145,233,1,2,150,0,2.3,3,0,6,0
67,1,4,0,0,0,2,108,1,1.5,2,3,3,2
41,0,2,130,?,0,2,172,0,1.4,1,0,3,1
"""


def write_heart(root: Path) -> Path:
    (root / "heart").mkdir()
    for site in ("cleveland", "hungarian", "switzerland", "va"):
        (root / "heart" / f"processed.{site}.data").write_text(HEART)
    return root


def test_heart_takes_question_marks_and_impossible_zeros_as_missing(tmp_path: Path) -> None:
    samples = load("heart", write_heart(tmp_path))
    assert samples.x.shape == (12, 13)
    assert samples.y.tolist() == [0, 1, 1] * 4
    assert samples.site is not None
    assert samples.site.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert np.argwhere(np.isnan(samples.x[:3])).tolist() == [[1, 3], [1, 4], [2, 4]]
    assert (samples.missing, samples.tabular) == (True, True)


@pytest.mark.parametrize(
    "line", ["1,2,3", "a,1,1,145,233,1,2,150,0,2.3,3,0,6,0", "63,1,1,145,233,1,2,150,0,2.3,3,0,6,?"]
)
def test_a_damaged_line_of_heart_is_named(tmp_path: Path, line: str) -> None:
    write_heart(tmp_path)
    (tmp_path / "heart" / "processed.va.data").write_text(HEART + line)
    with pytest.raises(FedclError, match=r"processed\.va\.data is damaged: line 4"):
        load("heart", tmp_path)


def write_medmnist(root: Path, **changes: np.ndarray | None) -> Path:
    (root / "medmnist").mkdir()
    arrays: dict[str, Any] = {}
    for part, count in (("train", 6), ("val", 2), ("test", 4)):
        arrays[f"{part}_images"] = np.full((count, 28, 28), count, np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count)[:, None] % 2).astype(np.uint8)
    arrays = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    np.savez(root / "medmnist" / "breastmnist.npz", **arrays)
    return root


def test_medmnist_keeps_the_published_split(tmp_path: Path) -> None:
    samples = load("medmnist:breastmnist", write_medmnist(tmp_path))
    assert samples.x.shape == (12, 1, 28, 28)
    assert samples.classes == ("malignant", "normal or benign")
    assert samples.split is not None
    assert samples.split.tolist() == [TRAIN] * 6 + [VAL] * 2 + [TEST] * 4


def test_medmnist_refuses_unknown_variants_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(FedclError, match="did you mean medmnist:breastmnist"):
        load("medmnist:brestmnist", tmp_path)
    with pytest.raises(FedclError, match=r"breastmnist\.npz is damaged.*val_labels"):
        load("medmnist:breastmnist", write_medmnist(tmp_path, val_labels=None))


def test_medmnist_names_the_extra_where_the_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "medmnist", None)
    with pytest.raises(FedclError, match=r"pip install 'fedcl\[medmnist\]'"):
        datasets.fetch("medmnist:breastmnist", str(tmp_path))


def test_a_sequence_counts_classes_on_and_remembers_the_origin(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST" / "raw")
    write_idx(tmp_path / "KMNIST" / "raw")
    samples = load("mnist+synthetic", tmp_path, samples=30, classes=3, shape=[1, 4, 3])
    assert samples.x.dtype == np.float32
    assert samples.x[:60].max() == 1.0
    assert (samples.y[60:].min(), samples.y.max(), len(samples.classes)) == (10, 12, 13)
    assert samples.origin is not None
    assert samples.split is not None
    assert samples.origin.tolist() == [0] * 60 + [1] * 30
    assert set(samples.split[60:]) == {UNASSIGNED}
    both = load("mnist+kmnist", tmp_path)
    assert (both.x.dtype, both.origins, both.classes[10]) == (np.uint8, ("mnist", "kmnist"), "o")
    assert load("digits+digits").classes[10] == "digits 0"
    with pytest.raises(FedclError, match=r"mnist \[1, 4, 3\], digits \[1, 8, 8\]"):
        load("mnist+digits", tmp_path)


@pytest.mark.parametrize("name", ["digits", "synthetic", "npz", "folder"])
def test_nothing_is_fetched_where_nothing_is_needed(tmp_path: Path, name: str) -> None:
    assert "nothing is to be fetched" in datasets.fetch(name, str(tmp_path))
    assert datasets.find(name, str(tmp_path)).found


def test_fetch_asks_torchvision_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(root: Path, download: bool) -> None:
        calls.append((root, download))
        write_idx(root / "MNIST" / "raw")

    monkeypatch.setattr("torchvision.datasets.MNIST", fake)
    assert "fetched" in datasets.fetch("mnist", str(tmp_path / "new"))
    assert "already there" in datasets.fetch("mnist", str(tmp_path / "new"))
    assert calls == [(tmp_path / "new", True)]


def test_a_failed_download_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", fails)
    with pytest.raises(FedclError, match=r"no network.*Try again"):
        datasets.fetch("heart", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: BytesIO(b"a login page"))
    with pytest.raises(FedclError, match=r"not the published file \(md5\)"):
        datasets.fetch("heart", str(tmp_path))
    assert list((tmp_path / "heart").iterdir()) == []


def test_every_data_set_says_what_it_is() -> None:
    assert all(len(line) > 30 for line in plugins.describe("datasets").values())
    assert set(plugins.names("datasets")) >= {
        "digits",
        "mnist",
        "heart",
        "medmnist",
        "folder",
        "npz",
        "synthetic",
    }


@pytest.mark.data
def test_the_real_files(real_data: Path) -> None:
    for name, sizes in {
        "mnist": (60000, 0, 10000),
        "fashion_mnist": (60000, 0, 10000),
        "medmnist:pneumoniamnist": (4708, 524, 624),
        "medmnist:breastmnist": (546, 78, 156),
    }.items():
        if not datasets.find(name, str(real_data)).found:
            continue
        samples = load(name, real_data)
        assert samples.split is not None
        assert tuple(np.bincount(samples.split, minlength=3)) == sizes, name
    heart = load("heart", real_data)
    assert heart.site is not None
    assert np.bincount(heart.site).tolist() == [303, 294, 123, 200]
    assert np.bincount(heart.site, weights=heart.y).tolist() == [139, 106, 115, 149]
    assert np.isnan(heart.x[heart.site == 2, 4]).all()  # no cholesterol in Switzerland
