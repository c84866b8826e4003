"""Dark experience replay++: old samples are replayed with the logits they had, and with their labels.

Loss CE(new batch) + α mean (z − z_buf)² + β CE(buffer batch), the two terms on independent draws (Buzzega et al. 2020,
eq. 6). Works with the task known or not. Keeps raw samples, which are never sent.

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
class DERpp(Method):
    """Dark experience replay++.

    Attributes:
        alpha: α, ≥ 0; typically 0.1 to 1.
        beta: β, ≥ 0; typically 0.5 to 1.
        size: samples that a hospital keeps at most; 0 is no limit but `bytes`.
        bytes: that they take at most; 0 is no limit but `size`.
        batch: samples of each draw; 0 is as many as new ones.
    """

    alpha: float = 0.2
    beta: float = 0.5
    size: int = 200
    bytes: int = 0
    batch: int = 0
    needs_past: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _buffer.check(self.size, self.bytes)
        if min(self.alpha, self.beta, self.batch) < 0:
            raise ValueError(f"alpha = {self.alpha}, beta = {self.beta}, batch = {self.batch}: none may be negative")

    def hooks(self) -> frozenset[str]:
        """None at α = β = 0."""
        return super().hooks() if self.alpha or self.beta else frozenset()

    def loss(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """CE, and the two terms on old samples, a 0-d tensor."""
        total = nn.functional.cross_entropy(ctx.forward(params, batch.x), batch.y)
        if "y" not in memory:
            return total
        count = self.batch or len(batch.y)
        if self.alpha > 0:
            drawn, there = _buffer.draw(ctx, memory, count)
            logits = ctx.each(params, drawn["x"], drawn["task"])
            total = total + self.alpha * there * _buffer.distance(logits, drawn["logits"])
        if self.beta > 0:
            drawn, there = _buffer.draw(ctx, memory, count)
            total = total + self.beta * there * _buffer.loss(ctx, params, drawn)
        return total

    def observe(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Memory:
        """Offer samples and the net's logits of them to the reservoir."""
        return _buffer.reservoir(ctx, _buffer.answered(ctx, params, batch), memory, self.size, self.bytes)
