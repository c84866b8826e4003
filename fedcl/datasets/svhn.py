"""SVHN, 99,289 house numbers photographed in the street, 32×32 in colour, in 10 classes.

References:
    Netzer, Wang, Coates, Bissacco, Wu, Ng. Reading Digits in Natural Images with Unsupervised Feature Learning.
        NIPS Workshop on Deep Learning and Unsupervised Feature Learning 2011.
"""

from __future__ import annotations

from pathlib import Path

from fedcl.contracts import Samples
from fedcl.datasets import _files, _torchvision


def build(root: Path) -> Samples:
    """X [99289, 3, 32, 32] uint8 with the published test split of 26,032, from root/svhn.

    Raises:
        FedclError: the files are missing or damaged.
    """
    from torchvision.datasets import SVHN

    _files.need("svhn", sought(root))
    try:
        halves = [SVHN(root / "svhn", split=split) for split in ("train", "test")]
    except RuntimeError as error:  # torchvision compares the md5 of each file
        raise _files.damaged("svhn", root / "svhn", error) from error
    return _torchvision.pictures([(half.data, half.labels) for half in halves], tuple("0123456789"))


def sought(root: Path) -> list[Path]:
    """The files that it reads."""
    return [root / "svhn" / f"{split}_32x32.mat" for split in ("train", "test")]


def fetch(root: Path) -> None:
    """Download them."""
    for split in ("train", "test"):
        _torchvision.download("SVHN", root / "svhn", split=split)
