"""Real numbers as whole ones, so that sums modulo R = 2³² or 2⁶⁴ are exact.

q(x) = round(clip(x, −C, C) / step), to the nearest, ties to even. Numbers are signed and zero is zero, so that a sum of
n of them carries no offset: Σ q(x_i) · step, off by at most n · step / 2 from the sum of the clipped values. The step
is a power of two, so scaling does not round: a whole number within the range is exact where step ≤ 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcl.errors import FedclError
from fedcl.masking.masks import DTYPES

_EXACT = 53  # bits of float64: sums up to 2⁵³ come back without rounding
COARSEST = 1e-5  # the largest error of a sum that is accepted, in units of C


@dataclass(frozen=True)
class FixedPoint:
    """How a value is written.

    Attributes:
        clip: C, the largest magnitude that is kept; > 0.
        parties: n, how many are summed at most.
        bits: R = 2^bits, 32 or 64.
    """

    clip: float
    parties: int
    bits: int = 64

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.bits not in DTYPES:
            raise FedclError(f"bits = {self.bits}: masked numbers have {' or '.join(map(str, DTYPES))}")
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise FedclError(f"clip = {self.clip}: it must be a positive number")
        if not 2.0**-900 < self.clip < 2.0**900:
            raise FedclError(f"clip = {self.clip} is out of the range whose steps float64 holds")
        if not 1 <= self.parties <= self._capacity or self.bound(self.parties) > COARSEST * self.clip:
            way = "64 bits, or fewer hospitals" if self.bits == 32 else "fewer hospitals"
            raise FedclError(
                f"the sum of {self.parties} values within ±{self.clip:g} does not fit {self.bits} bits with an error "
                f"below {COARSEST:g} of that range: {way}"
            )

    @property
    def _capacity(self) -> int:
        """The largest magnitude of a sum, in steps."""
        return int(2 ** min(self.bits - 1, _EXACT)) - 1

    @property
    def step(self) -> float:
        """The resolution: the least power of two with n · ⌈C / step⌉ < R / 2, so that no sum wraps."""
        mantissa, exponent = math.frexp(self.clip / (self._capacity // self.parties))
        return math.ldexp(1.0, exponent - 1 if mantissa == 0.5 else exponent)

    def bound(self, parties: int) -> float:
        """Largest error of an entry of the sum of so many, against the sum of their clipped values."""
        return parties * self.step / 2

    def encode(self, values: Tensor) -> tuple[Tensor, int]:
        """Values of any shape, float → (whole numbers of that shape, how many were clipped).

        Raises:
            FedclError: a value is not finite.
        """
        wide = values.detach().cpu().double()
        if not torch.isfinite(wide).all():
            raise FedclError(f"{int((~torch.isfinite(wide)).sum())} of {wide.numel()} values are not finite")
        levels = (wide.clamp(-self.clip, self.clip) / self.step).round()
        return levels.to(DTYPES[self.bits]), int((wide.abs() > self.clip).sum())

    def decode(self, total: Tensor) -> Tensor:
        """A sum of encoded values modulo R → float64 of that shape.

        Raises:
            FedclError: other numbers than this writes, or more than so many parties can have summed to.
        """
        if total.dtype != DTYPES[self.bits]:
            raise FedclError(f"a sum of {total.dtype}: {self.bits} bits were agreed")
        wide = total.double() * self.step
        if (wide.abs() > self.parties * (self.clip + self.step)).any():
            raise FedclError(f"a sum beyond what {self.parties} values within ±{self.clip} give: masks are left in it")
        return wide
