"""Many arrays as one vector, in the order of their names, and a few places in it as few bytes.

What rules of compression write of an update, and methods of what they send beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

VALUES, PLACES = "values", "places"


def joined(deltas: Mapping[str, Tensor]) -> Tensor:
    """[P], one array after another."""
    return torch.cat([deltas[name].reshape(-1) for name in sorted(deltas)])


def parted(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse: [P] → arrays in the order, the shapes and the dtypes of `like`."""
    names = sorted(like)
    pieces = dict(zip(names, torch.split(flat, [like[name].numel() for name in names]), strict=True))
    return {name: pieces[name].view(value.shape).to(value.dtype) for name, value in like.items()}


def count(like: Mapping[str, Tensor]) -> int:
    """P."""
    return sum(value.numel() for value in like.values())


def sparse(flat: Tensor, index: Tensor) -> dict[str, Tensor]:
    """Some entries of [P] and where they are: as int32 [n], as one bit an entry, or all of them, which is smallest.

    Args:
        flat: [P]; what is not in `index` counts as zero.
        index: [n] int64, increasing.
    """
    total, n = len(flat), len(index)
    listed, marked = 4 * n, -(-total // 8)
    if min(listed, marked) + 4 * n >= 4 * total:
        return {VALUES: torch.zeros_like(flat).index_copy_(0, index, flat[index])}
    if listed <= marked:
        return {VALUES: flat[index], PLACES: index.to(torch.int32)}
    mask = torch.zeros(total, dtype=torch.bool).index_fill_(0, index.cpu(), True)
    return {VALUES: flat[index], PLACES: torch.from_numpy(np.packbits(mask.numpy()))}


def dense(sent: Mapping[str, Tensor], total: int, device: torch.device) -> Tensor:
    """The reverse of `sparse`: [P], zero elsewhere. Where all entries were sent, places are missing or empty.

    Raises:
        ValueError: places are not what `sparse` writes, or values do not fit them.
    """
    only(sent, VALUES, PLACES)
    values = vector(sent, VALUES, torch.float32)
    if PLACES not in sent or (len(values) == total and not sent[PLACES].numel()):
        return vector(sent, VALUES, torch.float32, total).to(device)
    index = _index(sent[PLACES], total)
    if len(index) != len(values):
        raise ValueError(f"{len(values)} values for {len(index)} places")
    return torch.zeros(total, device=device).index_copy_(0, index.to(device), values.to(device))


def only(sent: Mapping[str, Tensor], *names: str) -> None:
    """Raise ValueError where something else was sent."""
    if extra := sorted(set(sent) - set(names)):
        raise ValueError(f"{extra[0]} was not asked for")


def vector(sent: Mapping[str, Tensor], name: str, dtype: torch.dtype, length: int | None = None) -> Tensor:
    """A vector of this dtype and length that was sent, or ValueError."""
    if name not in sent:
        raise ValueError(f"{name} is missing")
    value = sent[name]
    if value.dtype != dtype or value.dim() != 1:
        raise ValueError(f"{name} is {value.dtype} of shape {tuple(value.shape)}, expected a vector of {dtype}")
    if length is not None and len(value) != length:
        raise ValueError(f"{name} has {len(value)} entries, expected {length}")
    return value


def _index(places: Tensor, total: int) -> Tensor:
    """Places in [P] as int64, increasing; the dtype says which way they were written."""
    if places.dim() != 1 or places.dtype not in (torch.int32, torch.uint8):
        raise ValueError(
            f"places are {places.dtype} of shape {tuple(places.shape)}, expected a vector of int32 or uint8"
        )
    if places.dtype == torch.uint8:
        if len(places) != -(-total // 8):
            raise ValueError(f"places have {len(places)} bytes for {total} entries")
        bits = np.unpackbits(places.cpu().numpy())
        if bits[total:].any():
            raise ValueError(f"places are outside of {total} entries")
        return torch.from_numpy(np.flatnonzero(bits))
    index = places.long()
    if len(index) and not (int(index[0]) >= 0 and int(index[-1]) < total and bool((index.diff() > 0).all())):
        raise ValueError(f"places are not increasing, or outside of {total} entries")
    return index
