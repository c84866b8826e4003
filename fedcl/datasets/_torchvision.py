"""Shared by the data sets that torchvision publishes. Only `download` uses the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedcl.contracts import TEST, TRAIN, Samples
from fedcl.datasets import _files


def idx_files(folder: Path, train: str = "train", test: str = "t10k") -> list[Path]:
    """The four IDX files of an MNIST-like data set: images and labels to train, then to test."""
    names = [f"{part}-{kind}-ubyte" for part in (train, test) for kind in ("images-idx3", "labels-idx1")]
    return [_files.packed(folder / name) for name in names]


def idx(name: str, files: Sequence[Path], classes: tuple[str, ...], upright: bool = True) -> Samples:
    """Read the four files: x [N, 1, H, W] uint8, with the published test split.

    Args:
        name: the data set's name, for errors.
        files: as of `idx_files`.
        classes: class names.
        upright: False where the images are stored column by column (EMNIST).

    Raises:
        FedclError: a file is missing or damaged, or there are more labels than images.
    """
    _files.need(name, files)
    images, labels, test_images, test_labels = (_files.idx(name, path) for path in files)
    for path, x, y in ((files[0], images, labels), (files[2], test_images, test_labels)):
        if len(x) != len(y):
            raise _files.damaged(name, path, f"it has {len(x)} images, but there are {len(y)} labels")
    x = np.concatenate([images, test_images])[:, None]
    y = np.concatenate([labels, test_labels]).astype(np.int64)
    return Samples(x if upright else x.swapaxes(2, 3), y, classes, split=published(len(labels), len(test_labels)))


def pictures(halves: Sequence[tuple[Any, Any]], classes: tuple[str, ...]) -> Samples:
    """Put (images, labels) to train and to test together; images are [N, H, W, 3] or [N, 3, H, W] uint8."""
    x = np.concatenate([np.asarray(images) for images, _ in halves])
    y = np.concatenate([np.asarray(labels, np.int64) for _, labels in halves])
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.shape[-1] == 3 else x
    return Samples(x, y, classes, split=published(len(halves[0][1]), len(halves[1][1])))


def published(train: int, test: int) -> np.ndarray:
    """The split of samples that lie in two files, training first: [train + test] int8."""
    return np.repeat(np.array([TRAIN, TEST], np.int8), [train, test])


def download(kind: str, root: Path, **options: Any) -> None:
    """Let torchvision fetch a data set, with its checks of length and md5."""
    import torchvision

    getattr(torchvision.datasets, kind)(root, download=True, **options)
