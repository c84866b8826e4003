"""MNIST, 70,000 handwritten digits of 28×28 in 10 classes.

CC BY-SA 3.0.

References:
    LeCun, Bottou, Bengio, Haffner. Gradient-Based Learning Applied to Document Recognition. Proceedings of the IEEE
        1998.
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
