"""CIFAR-100, 60,000 colour photographs of 32×32 in 100 classes.

References:
    Krizhevsky. Learning Multiple Layers of Features from Tiny Images. University of Toronto 2009.
"""

from __future__ import annotations

from pathlib import Path

from fedcl.contracts import Samples
from fedcl.datasets import _files, _torchvision


def build(root: Path) -> Samples:
    """X [60000, 3, 32, 32] uint8 with the published test split of 10,000, from root/cifar-100-python.

    Raises:
        FedclError: the files are missing or damaged.
    """
    from torchvision.datasets import CIFAR100

    _files.need("cifar100", sought(root))
    try:
        halves = [CIFAR100(root, train=train) for train in (True, False)]
    except RuntimeError as error:  # torchvision compares the md5 of each file
        raise _files.damaged("cifar100", root / "cifar-100-python", error) from error
    return _torchvision.pictures([(half.data, half.targets) for half in halves], tuple(halves[0].classes))


def sought(root: Path) -> list[Path]:
    """The files that it reads."""
    return [root / "cifar-100-python" / name for name in ("train", "test", "meta")]


def fetch(root: Path) -> None:
    """Download and unpack them."""
    _torchvision.download("CIFAR100", root)
