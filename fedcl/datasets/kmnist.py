"""KMNIST, 70,000 cursive Japanese characters of 28×28 in 10 classes.

CC BY-SA 4.0.

References:
    Clanuwat, Bober-Irizar, Kitamoto, Lamb, Yamamoto, Ha. Deep Learning for Classical Japanese Literature. arXiv
        2018. arXiv 1812.01718.
"""

from __future__ import annotations

from pathlib import Path

from fedcl.contracts import Samples
from fedcl.datasets import _torchvision

CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


def build(root: Path) -> Samples:
    """X [70000, 1, 28, 28] uint8 with the published test split of 10,000, from root/KMNIST/raw."""
    return _torchvision.idx("kmnist", sought(root), CLASSES)


def sought(root: Path) -> list[Path]:
    """The files that it reads; the .gz ones do."""
    return _torchvision.idx_files(root / "KMNIST" / "raw")


def fetch(root: Path) -> None:
    """Download them."""
    _torchvision.download("KMNIST", root)
