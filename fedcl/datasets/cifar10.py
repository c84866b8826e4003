"""CIFAR-10, 60,000 colour photographs of 32×32 in 10 classes.

References:
    Krizhevsky. Learning Multiple Layers of Features from Tiny Images. University of Toronto 2009.
"""

from __future__ import annotations

from pathlib import Path

from fedcl.contracts import Samples
from fedcl.datasets import _files, _torchvision


def build(root: Path) -> Samples:
    """X [60000, 3, 32, 32] uint8 with the published test split of 10,000, from root/cifar-10-batches-py.

    Raises:
        FedclError: the files are missing or damaged.
    """
    from torchvision.datasets import CIFAR10

    _files.need("cifar10", sought(root))
    try:
        halves = [CIFAR10(root, train=train) for train in (True, False)]
    except RuntimeError as error:  # torchvision compares the md5 of each file
        raise _files.damaged("cifar10", root / "cifar-10-batches-py", error) from error
    return _torchvision.pictures([(half.data, half.targets) for half in halves], tuple(halves[0].classes))


def sought(root: Path) -> list[Path]:
    """The files that it reads."""
    return [
        root / "cifar-10-batches-py" / name for name in ("data_batch_1", "data_batch_5", "test_batch", "batches.meta")
    ]


def fetch(root: Path) -> None:
    """Download and unpack them."""
    _torchvision.download("CIFAR10", root)
