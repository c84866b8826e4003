"""Ten one-vs-rest tasks on rotated digits over noise, as Yoon et al. 2018 describe their MNIST-Variation.

`experiments.mnist_variation:digit_3` is one binary task: the digit against the others, each image turned by an angle
of its own and laid over a background of uniform noise (pixel ← max(pixel, noise)). Joined by `+` they are a stream.
Angles, noise and the choice of images follow from the digit alone, whatever the run's seed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import functional as transforms

from fedcl.contracts import TEST, TRAIN, VAL, Samples
from fedcl.datasets import mnist

TRAINING, HELD, TESTED = 1000, 200, 1000  # images of a task: half of them the digit, half others


def _one(digit: int, root: Path) -> Samples:
    """X [2200, 1, 28, 28] uint8, y 1 for the digit and 0 for the others."""
    whole = mnist.build(root)
    assert whole.split is not None
    draw = np.random.default_rng([7, digit])
    x, y, split = [], [], []
    for test, wanted in ((False, ((TRAIN, TRAINING), (VAL, HELD))), (True, ((TEST, TESTED),))):
        here = (whole.split == TEST) == test
        pools = [draw.permutation(np.flatnonzero(here & ((whole.y == digit) == own))) for own in (False, True)]
        start = 0
        for part, count in wanted:
            for label, pool in enumerate(pools):
                chosen = pool[start : start + count // 2]
                x.append(_varied(whole.x[chosen], draw))
                y.append(np.full(len(chosen), label))
                split.append(np.full(len(chosen), part))
            start += count // 2
    return Samples(
        np.concatenate(x),
        np.concatenate(y).astype(np.int64),
        ("others", f"digit {digit}"),
        split=np.concatenate(split).astype(np.int8),
    )


def _varied(images: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Turned by angles in [0°, 360°), and over noise in [0, 255]."""
    turned = [
        transforms.rotate(torch.from_numpy(image.copy()), float(angle), transforms.InterpolationMode.BILINEAR).numpy()
        for image, angle in zip(images, draw.uniform(0, 360, len(images)), strict=True)
    ]
    return np.maximum(np.stack(turned), draw.integers(0, 256, images.shape, dtype=np.uint8))


def _named(digit: int) -> Callable[[Path], Samples]:
    def build(root: Path) -> Samples:
        return _one(digit, root)

    return build


for _digit in range(10):
    globals()[f"digit_{_digit}"] = _named(_digit)
