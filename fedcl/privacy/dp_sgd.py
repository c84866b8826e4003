"""DP-SGD: every step draws each record with a chance of its own, clips its gradient, and adds noise to the sum.

g = (1/B) (Σ_i g_i · min(1, C / ‖g_i‖₂) + N(0, (σC)² I)), records i drawn by Poisson sampling at the rate q = B / n
(Abadi et al. 2016, algorithm 1), B the batch size and n the hospital's samples of the task, which count as public. The
unit is the record, neighbours differ by one (add/remove). What follows from the noised gradients alone is free:
weights, anchors, control variates, path integrals. A Fisher diagonal is a release of its own; kept records pay in each
task.

References:
    Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang. Deep Learning with Differential Privacy. CCS 2016. arXiv
        1607.00133.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedcl.accounting.release import Sampling
from fedcl.contracts import Params
from fedcl.noise import Draw, added
from fedcl.privacy._records import Records


@dataclass(frozen=True)
class DPSGD(Records):
    """DP-SGD; options as in `Records`."""

    name: ClassVar[str] = "DP-SGD"
    sampling: ClassVar[Sampling] = "poisson"

    def rate(self, samples: int, batch_size: int) -> float:
        """Q = B / n."""
        return min(1.0, batch_size / samples)

    def size(self, samples: int, batch_size: int) -> float:
        """Q n, what is drawn on average."""
        return self.rate(samples, batch_size) * samples

    def touches(self, samples: int, batch_size: int, epochs: int) -> int:
        """Steps: each may draw any record."""
        return epochs * math.ceil(samples / batch_size)

    def rows(self, samples: int, batch_size: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Poisson samples: each record by itself."""
        rate = self.rate(samples, batch_size)
        for _ in range(self.touches(samples, batch_size, epochs)):
            yield (torch.rand(samples, generator=generator) < rate).nonzero().flatten()

    def noised(self, sums: Params, state: Params, draw: Draw) -> tuple[Params, Params]:
        """N(0, (σC)²), new in each step."""
        return added(sums, self.noise * self.clip, draw), {}
