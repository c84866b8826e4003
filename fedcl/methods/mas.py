"""Memory aware synapses: a parameter is important by how much the outputs depend on it.

Aljundi et al. 2018, eq. 2-3: Ω_i = mean over samples of |∂‖z(x)‖² / ∂θ_i|, the absolute value taken per sample (a
batch's mean gradient, as other codes take it, is smaller); then a quadratic pull. Needs no labels. Works with the
task known or not; keeps no data.

References:
    Aljundi, Babiloni, Elhoseiny, Rohrbach, Tuytelaars. Memory Aware Synapses: Learning what (not) to forget. ECCV
        2018. arXiv 1711.09601.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedcl.contracts import Batch, Context, Memory, Params
from fedcl.methods._quadratic import Quadratic
from fedcl.sample_moments import moments


def _cotangents(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """∂‖z‖²/∂z = 2 z, of the classes that are open."""
    return [torch.where(logits.isfinite(), 2 * logits, 0.0)]


@dataclass(frozen=True)
class MAS(Quadratic):
    """Memory aware synapses; the other options as in `Quadratic`.

    Attributes:
        strength: λ, ≥ 0, with the ½; typically 0.1 to 10.
        samples: at most this many of a task's training samples measure the importance; 0 takes all.
    """

    strength: float = 1.0
    samples: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 0:
            raise ValueError(f"samples = {self.samples} must be ≥ 0; 0 takes all")

    def conventions(self) -> dict[str, object]:
        """λ means nothing without these."""
        return super().conventions() | {"reduction": "mean over samples of |∂‖z‖²|", "samples_at_most": self.samples}

    def measure(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Params:
        """Ω of eq. 2."""
        x, y = data.x, data.y
        if 0 < self.samples < len(x):
            chosen = torch.randperm(len(x), generator=ctx.generator)[: self.samples].to(x.device)
            x, y = x[chosen], y[chosen]
        return moments(ctx.net, lambda rows: ctx.forward({}, rows), list(params), x, y, _cotangents, power=1)
