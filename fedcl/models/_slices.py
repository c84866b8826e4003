"""What a task has met of a trunk that grows: the first units of each layer, and which of them it uses.

A task keeps the net that it was learned with: it is computed from its own slice of the weights, so that units which
came later change no bit of its answers. DEN's timestamps (Yoon et al. 2018) say the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from fedcl.structure import Axis, Layer


class Slice(nn.Module):
    """The units of a layer that were there for the task.

    `open` is 1 where the task uses one, 0 where it does not. `trains` is for rules that fix weights: 0 for a unit whose
    weights stay, 1 for one that is trained where both ends of a weight are, 2 for one that is trained in any case and
    goes if it is not needed, 3 for one that is trained in any case and stays.
    """

    open: Tensor
    trains: Tensor

    def __init__(self, units: int) -> None:
        super().__init__()
        self.register_buffer("open", torch.ones(units))
        self.register_buffer("trains", torch.ones(units))
        self._told: tuple[int, int, bytes] = (0, -1, b"")  # address and version of `open`, and what it held then

    def key(self) -> bytes:
        """The same for the same units in use, met together; read again only when they changed."""
        now = (self.open.data_ptr(), self.open._version)
        if self._told[:2] != now:
            self._told = (*now, bytes(self.open.to(torch.uint8).tolist()))
        return self._told[2]


def layers(trunk: nn.Module) -> tuple[Layer, ...]:
    """The layers of a trunk that can grow, in order; none where it does not say."""
    found: Callable[[], tuple[Layer, ...]] | None = getattr(trunk, "growable", None)
    return found() if found else ()


def key(masks: nn.ModuleDict) -> tuple[bytes, ...]:
    """Equal for tasks that see the same of the trunk, so that it need be computed once for them."""
    return tuple(cast(Slice, mask).key() for mask in masks.values())


def build(trunk: nn.Module) -> nn.ModuleDict:
    """A new task's slices: all that is there; none in a trunk that cannot grow."""
    params = dict(trunk.named_parameters())
    return nn.ModuleDict({layer.mask: Slice(layer.units(params)) for layer in layers(trunk)})


def seen(trunk: nn.Module, masks: nn.ModuleDict, used: bool = False) -> dict[str, Tensor]:
    """The parameters of a trunk's layers as a task sees them.

    Args:
        trunk: whose.
        masks: the task's.
        used: leave out what the task does not use, for inference: smaller tensors with the same answers, up to the
            order of sums. Otherwise such units are there, and zero.
    """
    params = dict(trunk.named_parameters())
    view: dict[str, Tensor] = {}
    for layer in layers(trunk):
        open_ = cast(Slice, masks[layer.mask]).open
        index = open_.nonzero()[:, 0] if used else None
        for axis in layer.rows:
            value = _cut(view.get(axis.name, params[axis.name]), axis, open_, index)
            if index is None:
                value = value * open_.repeat_interleave(axis.block).view(-1, *[1] * (value.dim() - 1))
            view[axis.name] = value
        for axis in layer.columns:
            view[axis.name] = _cut(view.get(axis.name, params[axis.name]), axis, open_, index)
    return view


def _cut(value: Tensor, axis: Axis, open_: Tensor, index: Tensor | None) -> Tensor:
    """The entries of a task's units."""
    if index is not None:
        entries = (index[:, None] * axis.block + torch.arange(axis.block, device=index.device)).flatten()
        return value.index_select(axis.dim, entries)
    length = len(open_) * axis.block
    return value if value.shape[axis.dim] == length else value.narrow(axis.dim, 0, length)
