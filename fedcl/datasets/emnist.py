"""EMNIST, handwritten letters and digits of 28×28; option split, by default the 47 balanced classes.

References:
    Cohen, Afshar, Tapson, van Schaik. EMNIST: an extension of MNIST to handwritten letters. IJCNN 2017. arXiv
        1702.05373.
"""

from __future__ import annotations

import string
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fedcl.contracts import Samples
from fedcl.datasets import _torchvision

Split = Literal["balanced", "bymerge", "byclass", "letters", "digits", "mnist"]
_LIKE_CAPITALS = set("cijklmopsuvwxyz")  # `balanced` and `bymerge` hold them to be the same class


def build(root: Path, *, split: Split = "balanced") -> Samples:
    """X [N, 1, 28, 28] uint8, upright, with the published test split, from root/EMNIST/raw.

    Args:
        root: the data root.
        split: which of the published sets: `balanced` has 131,600 samples, `byclass` 814,255.
    """
    samples = _torchvision.idx("emnist", sought(root, split=split), _classes(split), upright=False)
    return replace(samples, y=samples.y - 1) if split == "letters" else samples  # their labels start at 1


def sought(root: Path, *, split: Split = "balanced") -> list[Path]:
    """The files that it reads."""
    return _torchvision.idx_files(root / "EMNIST" / "raw", f"emnist-{split}-train", f"emnist-{split}-test")


def fetch(root: Path) -> None:
    """Download all the sets, 0.5 GB."""
    _torchvision.download("EMNIST", root, split="balanced")


def _classes(split: Split) -> tuple[str, ...]:
    if split == "letters":
        return tuple(string.ascii_lowercase)
    if split in ("digits", "mnist"):
        return tuple(string.digits)
    small = string.ascii_lowercase
    if split != "byclass":
        small = "".join(letter for letter in small if letter not in _LIKE_CAPITALS)
    return tuple(string.digits + string.ascii_uppercase + small)
