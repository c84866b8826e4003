"""Fashion-MNIST, 70,000 pictures of clothes of 28×28 in 10 classes.

MIT licence.

References:
    Xiao, Rasul, Vollgraf. Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms. arXiv
        2017. arXiv 1708.07747.
"""

from __future__ import annotations

from pathlib import Path

from fedcl.contracts import Samples
from fedcl.datasets import _torchvision

CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def build(root: Path) -> Samples:
    """X [70000, 1, 28, 28] uint8 with the published test split of 10,000, from root/FashionMNIST/raw."""
    return _torchvision.idx("fashion_mnist", sought(root), CLASSES)


def sought(root: Path) -> list[Path]:
    """The files that it reads; the .gz ones do."""
    return _torchvision.idx_files(root / "FashionMNIST" / "raw")


def fetch(root: Path) -> None:
    """Download them."""
    _torchvision.download("FashionMNIST", root)
