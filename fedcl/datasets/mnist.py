"""MNIST, 70,000 handwritten digits of 28×28 in 10 classes.

Source: LeCun, Bottou, Bengio and Haffner 1998; CC BY-SA 3.0.
"""

from __future__ import annotations

from pathlib import Path

from fedcl.contracts import Samples
from fedcl.datasets import _torchvision

CLASSES = tuple("0123456789")


def build(root: Path) -> Samples:
    """X [70000, 1, 28, 28] uint8 with the published test split of 10,000, from root/MNIST/raw."""
    return _torchvision.idx("mnist", sought(root), CLASSES)


def sought(root: Path) -> list[Path]:
    """The files that it reads; the .gz ones do."""
    return _torchvision.idx_files(root / "MNIST" / "raw")


def fetch(root: Path) -> None:
    """Download them."""
    _torchvision.download("MNIST", root)
