"""Trim, elect sign and merge: values that are small or outvoted do not water down the rest.

TIES-merging, arXiv 2306.01708, Algorithm 1, with the clients' deltas of a round as task vectors; votes count samples.

References:
    Yadav, Tam, Choshen, Raffel, Bansal. TIES-Merging: Resolving Interference When Merging Models. NeurIPS 2023.
        arXiv 2306.01708.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcl.contracts import Aggregator, Params


@dataclass(frozen=True)
class Ties(Aggregator):
    """θ_t ← θ_t + scale · the mean of those trimmed Δ_c that agree with the elected sign, at each coordinate.

    Attributes:
        keep: share of each delta's values, the largest of the whole module, that stay; in (0, 1]; the paper's is 0.2.
        scale: λ of the paper, > 0; typically 0.5 to 1.5.
    """

    keep: float = 0.2
    scale: float = 1.0
    linear = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.keep <= 1 or self.scale <= 0:
            raise ValueError(f"keep = {self.keep} must be in (0, 1], and scale = {self.scale} > 0")

    def reduce(self, deltas: Sequence[Params], weights: Sequence[float], measured: Sequence[Params]) -> Params:
        """Trim, elect, and take the mean of who agrees."""
        names = list(deltas[0])
        rows = torch.stack([self._trimmed(torch.cat([delta[name].flatten() for name in names])) for delta in deltas])
        shares = torch.tensor(weights, dtype=rows.dtype)[:, None]
        elected = (rows * shares).sum(0).sign()
        agree = shares * (rows.sign() == elected) * (rows != 0)
        merged = self.scale * (rows * agree).sum(0) / agree.sum(0).clamp_min(torch.finfo(rows.dtype).tiny)
        pieces = torch.split(merged, [deltas[0][name].numel() for name in names])
        return {name: piece.view_as(deltas[0][name]) for name, piece in zip(names, pieces, strict=True)}

    def _trimmed(self, row: Tensor) -> Tensor:
        """Zero but for the largest values."""
        kept = row.abs().topk(max(round(self.keep * row.numel()), 1)).indices
        return torch.zeros_like(row).index_copy_(0, kept, row[kept])
