"""What a hospital has, by name, as the vectors that are summed: one for each part, with its weight in it.

A part is what the same hospitals own: the trunk, a task's module, their metrics. Each part is one vector, its arrays in
the order of their names, and is summed over its owners alone. For a weighted mean it holds w·x and, last, w itself, so
that no hospital's number of samples shows:  mean = Σ w x / Σ w.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcl.errors import FedclError
from fedcl.masking.fixed_point import FixedPoint


def by_part(arrays: Mapping[str, Tensor], part: Callable[[str], str]) -> dict[str, dict[str, Tensor]]:
    """Arrays by part and name; `part` says to which part a name belongs, see `contracts.role`."""
    found: dict[str, dict[str, Tensor]] = {}
    for name in sorted(arrays):
        found.setdefault(part(name), {})[name] = arrays[name]
    return found


def length(arrays: Mapping[str, Tensor]) -> int:
    """P + 1: the entries of a part's vector, for `party.advertise`."""
    return sum(value.numel() for value in arrays.values()) + 1


@dataclass(frozen=True)
class WeightedMean:
    """How the arrays of a part are written, so that their weighted mean can be read from a sum.

    Attributes:
        clip: C, the largest magnitude of an entry of x that is kept; > 0.
        most: W, the largest weight that a hospital may have, known to all; > 0.
        parties: how many are summed at most.
        bits: R = 2^bits, 32 or 64.
    """

    clip: float
    most: float
    parties: int
    bits: int = 64

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (math.isfinite(self.most) and self.most > 0):
            raise FedclError(f"most = {self.most}: the largest weight must be a positive number")
        _ = self.numbers

    @property
    def numbers(self) -> FixedPoint:
        """How entries are written: |w x| ≤ C W and w ≤ W."""
        return FixedPoint(max(self.clip, 1.0) * self.most, self.parties, self.bits)

    def bound(self, parties: int, weight: float) -> float:
        """Largest error of an entry of the mean over so many, whose weights sum to `weight`; without float32's own.

        With e = n · step / 2 the error of either sum:  |(Σwx + e) / (Σw − e) − Σwx / Σw| ≤ e (1 + C) / (Σw − e).
        """
        error = self.numbers.bound(parties)
        return error * (1 + self.clip) / (weight - error) if weight > error else math.inf

    def encode(self, arrays: Mapping[str, Tensor], weight: float) -> tuple[Tensor, int]:
        """A hospital's arrays and weight → ([P + 1] whole numbers, how many entries were clipped).

        Raises:
            FedclError: the weight is not in [0, W], or an entry is not finite.
        """
        if not 0 <= weight <= self.most:
            raise FedclError(f"a weight of {weight} is not in [0, {self.most}]")
        flat = torch.cat([arrays[name].detach().cpu().double().reshape(-1) for name in sorted(arrays)])
        kept = flat.clamp(-self.clip, self.clip) * weight
        vector, _ = self.numbers.encode(torch.cat([kept, kept.new_tensor([weight])]))
        return vector, int((flat.abs() > self.clip).sum())

    def decode(self, total: Tensor, like: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        """A sum → (the mean by name, in the shapes and dtypes of `like`; Σ w); zeros where nobody had any weight.

        Raises:
            FedclError: another number of entries than `like` has, or a weight below 0.
        """
        if len(total) != length(like):
            raise FedclError(f"a sum of {len(total)} entries: {length(like)} were expected")
        sums = self.numbers.decode(total)
        weight = float(sums[-1])
        if weight < 0:
            raise FedclError(f"the weights sum to {weight}: there is no mean")
        names = sorted(like)
        pieces = torch.split(sums[:-1] / (weight or 1.0), [like[name].numel() for name in names])
        return {n: piece.view(like[n].shape).to(like[n]) for n, piece in zip(names, pieces, strict=True)}, weight
