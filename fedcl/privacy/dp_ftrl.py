"""DP-FTRL: noise that later steps take back in part, where every record takes part and nothing is sampled.

Each epoch visits all records once, always in the same order, so a record's steps lie b = ⌈n / B⌉ apart. Step t adds
2C σ ‖c‖₂ w_t with w_t = z_t − Σ_{j=1}^{p−1} c_j w_{t−j}, z_t ~ N(0, I): the strategy matrix is banded Toeplitz with the
p ≤ b coefficients c of (1 − x)^(−1/2) (Choquette-Choo et al. 2023; Kalinin & Lampert 2024). As p ≤ b a record's steps
touch different rows of noise: each costs one Gaussian release at σ, an epoch after the other, without amplification.
Neighbours differ in one record that stands for another (replace-one), so that all others keep their places: Δ = 2C.

References:
    Kairouz, McMahan, Song, Thakkar, Thakurta, Xu. Practical and Private (Deep) Learning without Sampling or Shuffling.
        ICML 2021. arXiv 2103.00039.
    Choquette-Choo, Ganesh, McKenna, McMahan, Rush, Thakurta, Xu. (Amplified) Banded Matrix Factorization: A unified
        approach to private training. NeurIPS 2023. arXiv 2306.08153.
    Kalinin, Lampert. Banded Square Root Matrix Factorization for Differentially Private Model Training. NeurIPS 2024.
        arXiv 2405.13763.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedcl.accounting.accountant import Relation
from fedcl.accounting.release import Sampling
from fedcl.config import Config
from fedcl.contracts import Method, Params
from fedcl.methods import Combination
from fedcl.noise import Draw, added
from fedcl.privacy._records import Records


@dataclass(frozen=True)
class DPFTRL(Records):
    """DP-FTRL; the other options as in `Records`, σ by a record's one step in an epoch.

    Attributes:
        bands: p ≥ 1; 1 is independent noise. A hospital with fewer steps an epoch takes as many bands as it has.
    """

    bands: int = 8
    name: ClassVar[str] = "DP-FTRL"
    sampling: ClassVar[Sampling] = "none"
    sensitivity: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bands < 1:
            raise ValueError(f"bands = {self.bands} must be ≥ 1")

    def neighbours(self) -> Relation:
        """One record in the place of another."""
        return "replace_one"

    def unfit(self, config: Config, method: Method) -> str:
        """Kept records would come at other times than their own."""
        parts = method.parts if isinstance(method, Combination) else {"": method}
        if any(part.records == "kept" for part in parts.values()):
            return "visits each record once an epoch, and replay comes back to some more often; take dp-sgd"
        return super().unfit(config, method)

    def fitted(self, samples: int, batch_size: int) -> DPFTRL:
        """With as many bands as a hospital has steps in an epoch, at most."""
        return replace(self, bands=min(self.bands, math.ceil(samples / batch_size)))

    def rate(self, samples: int, batch_size: int) -> float:
        """1: nothing is amplified."""
        return 1.0

    def size(self, samples: int, batch_size: int) -> float:
        """B, or all where there are fewer."""
        return float(min(samples, batch_size))

    def touches(self, samples: int, batch_size: int, epochs: int) -> int:
        """Once an epoch."""
        return epochs

    def rows(self, samples: int, batch_size: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
        """All records in an order that is public and always the same."""
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
        for _ in range(epochs):
            yield from torch.split(order, batch_size)

    def noised(self, sums: Params, state: Params, draw: Draw) -> tuple[Params, Params]:
        """Add 2C σ ‖c‖₂ w_t; the state is w of the last p − 1 steps, `<j>/<parameter>` j steps ago."""
        c, new = coefficients(self.bands), added({name: 0 * value for name, value in sums.items()}, 1.0, draw)
        for key, before in state.items():
            ago, _, name = key.partition("/")
            new[name] = new[name] - c[int(ago)] * before
        scale = self.sensitivity * self.clip * self.noise * math.hypot(*c)
        kept = {f"1/{name}": value for name, value in new.items()} if self.bands > 1 else {}
        for key, before in state.items():
            ago, _, name = key.partition("/")
            if int(ago) + 1 < self.bands:
                kept[f"{int(ago) + 1}/{name}"] = before
        return {name: value + scale * new[name] for name, value in sums.items()}, kept


def coefficients(bands: int) -> list[float]:
    """The first coefficients of (1 − x)^(−1/2): 1, 1/2, 3/8 and so on."""
    found = [1.0]
    for j in range(1, bands):
        found.append(found[-1] * (2 * j - 1) / (2 * j))
    return found
