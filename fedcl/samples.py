"""What the hospitals hold: samples, and the tasks that they are met in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

TRAIN, VAL, TEST, UNASSIGNED = 0, 1, 2, -1
SPLITS = {"train": TRAIN, "val": VAL, "test": TEST}


@dataclass(frozen=True)
class Samples:
    """A data set in memory, before anybody owns a part of it."""

    x: np.ndarray  # [N, *shape], float32 or uint8 (0…255)
    y: np.ndarray  # [N] int64, 0 ≤ y < C
    classes: tuple[str, ...]  # the C class names
    site: np.ndarray | None = None  # [N] int64, the hospital that a sample comes from
    sites: tuple[str, ...] = ()  # their names
    split: np.ndarray | None = None  # [N] int8: TRAIN, VAL, TEST as published, or UNASSIGNED
    missing: bool = False  # NaN in x means "not measured": imputed in each hospital, and flagged
    tabular: bool = False  # features on different scales
    origin: np.ndarray | None = None  # [N] int64, which data set of a sequence
    origins: tuple[str, ...] = ()  # their names


@dataclass(frozen=True)
class Task:
    """A set of classes or a domain, with an identity that all clients share."""

    id: str  # [a-z0-9_]+; it becomes a part of parameter names
    index: int
    classes: tuple[int, ...]  # global class ids, in the order of the module's outputs
    title: str = ""  # what a person reads: "0, 1" or "rotated 36°"
    transform: Callable[[Tensor], Tensor] | None = None  # what the domain does to x [n, *shape]; None is nothing
    site: int | None = None  # only samples of this site belong to it; None is all
