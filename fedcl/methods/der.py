"""Dark experience replay: old samples are replayed with the logits that the net gave them when they came.

Loss CE(new batch) + α mean (z − z_buf)² (Buzzega et al. 2020, eq. 5; mean over samples and outputs), a reservoir of
samples, each with its logits. The logits belong to the augmented view that is stored. Where heads grow, the outputs
that a sample had are compared. Works with the task known or not. Keeps raw samples, which are never sent.

References:
    Buzzega, Boschini, Porrello, Abati, Calderara. Dark Experience for General Continual Learning: a Strong, Simple
        Baseline. NeurIPS 2020. arXiv 2004.07211.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fedcl.contracts import Batch, Context, Memory, Method, Params
from fedcl.methods import _buffer


@dataclass(frozen=True)
class DER(Method):
    """Dark experience replay.

    Attributes:
        alpha: α, ≥ 0; typically 0.1 to 1.
        size: samples that a hospital keeps at most; 0 is no limit but `bytes`.
        bytes: that they take at most; 0 is no limit but `size`.
        batch: samples drawn a step; 0 is as many as new ones.
    """

    alpha: float = 0.5
    size: int = 200
    bytes: int = 0
    batch: int = 0
    needs_past: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _buffer.check(self.size, self.bytes)
        if self.alpha < 0 or self.batch < 0:
            raise ValueError(f"alpha = {self.alpha}, batch = {self.batch}: neither may be negative")

    def hooks(self) -> frozenset[str]:
        """None at α = 0."""
        return super().hooks() if self.alpha else frozenset()

    def loss(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """CE and α times the distance to kept logits, a 0-d tensor."""
        new = nn.functional.cross_entropy(ctx.forward(params, batch.x), batch.y)
        if "y" not in memory:
            return new
        drawn, there = _buffer.draw(ctx, memory, self.batch or len(batch.y))
        logits = ctx.each(params, drawn["x"], drawn["task"])
        return new + self.alpha * there * _buffer.distance(logits, drawn["logits"])

    def observe(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Memory:
        """Offer samples and the net's logits of them to the reservoir."""
        return _buffer.reservoir(ctx, _buffer.answered(ctx, params, batch), memory, self.size, self.bytes)
