"""Real numbers as eight-bit ones: symmetric, with one scale for each row of an array.

A row is what feeds one output: weight[k, …] of a layer, all of a bias. Its scale is s = max |x| / 127, so that its
largest entry is ±127 s, and zero is zero. A row of zeros has scale 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 127


def rows(value: Tensor) -> Tensor:
    """An array as [rows, n]: one row of all that has fewer than two dimensions."""
    return value.reshape(1, -1) if value.dim() < 2 else value.reshape(value.shape[0], -1)


def scales(table: Tensor) -> Tensor:
    """[rows, n] → [rows]."""
    return table.abs().amax(1) / LEVELS


def nearest(value: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 like `value`, scales [rows]), each entry off by at most half a scale."""
    table = rows(value)
    scale = scales(table)
    return _levels(table, scale).round().clamp(-LEVELS, LEVELS).to(torch.int8).view(value.shape), scale


def stochastic(value: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 like `value`, scales [rows]): the level below or above, so that the mean is `value`; off by ≤ one scale.

    Args:
        value: any shape.
        draw: of the same shape, uniform in [0, 1).
    """
    table = rows(value)
    scale = scales(table)
    chosen = (_levels(table, scale) + rows(draw)).floor()
    return chosen.clamp(-LEVELS, LEVELS).to(torch.int8).view(value.shape), scale


def restored(levels: Tensor, scale: Tensor) -> Tensor:
    """The reverse, float32: int8 of any shape, scales [rows] → that shape."""
    return (rows(levels).float() * scale[:, None]).view(levels.shape)


def _levels(table: Tensor, scale: Tensor) -> Tensor:
    """Entries in units of their row's scale."""
    return table / torch.where(scale > 0, scale, 1.0)[:, None]
