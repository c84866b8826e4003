"""Elastic weight consolidation: stay near the old parameters, the more so where the old tasks depend on them.

Penalty (λ/2) Σ_i F_i (θ_i − θ*_i)², Kirkpatrick et al. 2017, eq. 3, with F the diagonal of the Fisher information; on
what tasks share. Works with the task known or not; keeps no data; sends nothing beside parameters, unless
`share = "sum"`, which sends the Fisher diagonal.

References:
    Kirkpatrick, Pascanu, Rabinowitz, Veness, others. Overcoming catastrophic forgetting in neural networks. PNAS
        2017. arXiv 1612.00796.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fedcl import fisher
from fedcl.contracts import Batch, Context, Memory, Params
from fedcl.methods._quadratic import Quadratic


@dataclass(frozen=True)
class EWC(Quadratic):
    """Elastic weight consolidation; `form`, `gamma`, `step` and `share` as in `Quadratic`, with Ω = F.

    Attributes:
        strength: λ of eq. 3, ≥ 0, with the ½; 0 is plain fine-tuning. Depends on `kind`: with the exact Fisher
            1e2 to 1e4 is usual, with the empirical one ten times that.
        kind: the Fisher diagonal, a mean over samples of squared per-sample gradients: `exact` over all labels by
            their probability, `sampled` with one drawn label, `empirical` with the true label.
        samples: at most this many of a task's training samples measure the Fisher; 0 takes all.
    """

    strength: float = 2e4
    form: Literal["merged", "separate", "online", "last"] = "merged"
    kind: Literal["exact", "sampled", "empirical"] = "exact"
    samples: int = 500
    records: ClassVar[Literal["fisher"]] = "fisher"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 0:
            raise ValueError(f"samples = {self.samples} must be ≥ 0; 0 takes all")

    def conventions(self) -> dict[str, object]:
        """λ means nothing without these."""
        facts = {"fisher_kind": self.kind, "reduction": "mean over samples", "samples_at_most": self.samples}
        return super().conventions() | facts

    def measure(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Params:
        """The Fisher diagonal."""
        x, y = data.x, data.y
        if ctx.private:  # of all: a sample of them would have to be counted too
            return ctx.private(list(params), x, y)
        if 0 < self.samples < len(x):
            chosen = torch.randperm(len(x), generator=ctx.generator)[: self.samples].to(x.device)
            x, y = x[chosen], y[chosen]

        def forward(rows: torch.Tensor) -> torch.Tensor:
            return ctx.forward({}, rows)  # the net's own parameters

        return fisher.diagonal(ctx.net, forward, list(params), x, y, kind=self.kind, generator=ctx.generator)
