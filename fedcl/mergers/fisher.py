"""Each hospital's values count by how much its predictions depend on them.

Sends a Fisher diagonal with each update of a module: as many values again. It is measured on the round's tasks alone:
modules of earlier tasks that train along, for methods that ask for them, are merged by samples.

References:
    Matena, Raffel. Merging Models with Fisher-Weighted Averaging. NeurIPS 2022. arXiv 2111.09832.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedcl import fisher
from fedcl.contracts import Aggregator, Batch, Context, Params


@dataclass(frozen=True)
class Fisher(Aggregator):
    """θ_t ← Σ_c n_c F_c θ_c / Σ_c n_c F_c elementwise (eq. 4), the mode of the hospitals' Gaussian posteriors.

    Attributes:
        damping: added to each F_c as a share of its mean, > 0: where nobody's predictions depend on a value, the
            merge is the mean weighted by samples; typically 1e-6 to 1e-1.
        samples: at most this many of a task's training samples measure F; 0 takes all.
    """

    damping: float = 1e-3
    samples: int = 200
    linear = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.damping <= 0 or self.samples < 0:
            raise ValueError(f"damping = {self.damping} must be > 0, and samples = {self.samples} ≥ 0")

    def measure(self, ctx: Context, params: Params, data: Batch) -> Params:
        """The exact Fisher diagonal of the module, at the hospital's own values."""
        x, y = data.x, data.y
        if not len(y):  # of a task of which nothing came in this round
            return {name: torch.zeros_like(value) for name, value in params.items()}
        if 0 < self.samples < len(x):
            chosen = torch.randperm(len(x), generator=ctx.generator)[: self.samples].to(x.device)
            x, y = x[chosen], y[chosen]
        return fisher.diagonal(
            ctx.net, lambda rows: ctx.forward({}, rows), list(params), x, y, kind="exact", generator=ctx.generator
        )

    def reduce(self, deltas: Sequence[Params], weights: Sequence[float], measured: Sequence[Params]) -> Params:
        """The precision-weighted mean of deltas, which is that of values, as all start from the same."""
        merged = {}
        for name, like in deltas[0].items():
            # In float64: squares and counts that a hospital names may be as large as float32 holds.
            precisions = [m.get(name, torch.ones_like(like)).double().clamp_min(0) for m in measured]
            floor = self.damping * torch.stack(precisions).mean().clamp_min(1e-12)
            shares = torch.stack([w * (p + floor) for w, p in zip(weights, precisions, strict=True)])
            mean = (shares * torch.stack([delta[name] for delta in deltas])).sum(0) / shares.sum(0)
            merged[name] = mean.to(like.dtype)
        return merged
