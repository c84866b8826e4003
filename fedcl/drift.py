"""How far each hospital's update lies from the others' of the same round. No delta is kept: each leaves a sketch.

The sketch of a delta d [P] is S d [1024] with entries of S in {−1, 0, 1}: one random sign a parameter, in the bucket of
its place modulo 1024 (count sketch, Charikar et al. 2002). Inner products survive it up to about ± 3 % of the norms.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fedcl.contracts import Params, Update
from fedcl.merge import split

WIDTH = 1024
_FEWEST = 3  # of two, none is the odd one out


class Drift:
    """The updates of one round, as sketches.

    Two figures say how far an update lies from the others': its `cosine` to the sum of the others' directions, each of
    length one, so that nobody's weighs more than anybody else's; and its `norm` over the median norm.
    """

    def __init__(self) -> None:
        self._signs, self._signed = torch.empty(0), torch.empty(0)
        self._parts: dict[str, dict[int, tuple[float, Tensor]]] = {}

    def add(self, update: Update) -> None:
        """One client's deltas: of what all share, or where that does not move, of its task's module."""
        parts = split(update.arrays)
        part = "" if "" in parts else min(parts, default="")
        if part in parts:
            flat = _flat(parts[part])
            self._parts.setdefault(part, {})[update.client] = float(flat.norm()), self._sketch(flat)

    def records(self) -> Iterator[dict[str, Any]]:
        """Two figures for each client of which there are enough to compare; what was added is forgotten."""
        for found in self._parts.values():
            if len(found) >= _FEWEST:
                yield from _compare(found)
        self._parts = {}

    def _sketch(self, flat: Tensor) -> Tensor:
        size = -(-len(flat) // WIDTH) * WIDTH
        if len(self._signs) < size:
            generator = torch.Generator().manual_seed(0)
            self._signs = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8).float() * 2 - 1
            self._signed = torch.zeros(size)  # written anew for each update: memory that is there already is quicker
        signed = self._signed[:size]
        torch.mul(flat, self._signs[: len(flat)], out=signed[: len(flat)])
        signed[len(flat) :] = 0
        return signed.view(-1, WIDTH).sum(0)


def _flat(deltas: Params) -> Tensor:
    return torch.cat([deltas[name].detach().flatten() for name in sorted(deltas)]).float().cpu()


def _compare(found: dict[int, tuple[float, Tensor]]) -> Iterator[dict[str, Any]]:
    norms = torch.tensor([norm for norm, _ in found.values()], dtype=torch.float64)
    sketches = torch.stack([sketch for _, sketch in found.values()]).double()
    units = torch.nn.functional.normalize(sketches, dim=1)
    cosines = (units * (units.sum(0) - units)).sum(1) / (len(units) - 1)
    ratios = norms / norms.quantile(0.5).clamp_min(1e-12)
    for client, cosine, ratio in zip(found, cosines.tolist(), ratios.tolist(), strict=True):
        yield {"phase": "drift", "client": client, "name": "cosine", "value": cosine}
        yield {"phase": "drift", "client": client, "name": "norm", "value": ratio}
