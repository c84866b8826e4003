"""Function-space retention: the net's answers may not drift where old tasks look.

λ Σ_k E_{x ~ D_k} ‖f_t(x) − f_{t−1}(x)‖², f the logits after task t.
D_k is gone, so a stand-in is named: `current`, the new task's samples (LwF with squared error); `buffer`, stored
samples with the answers that the merged model gave at the last task's end (Benjamin et al. 2019; DER keeps those of
the moment of storing instead); `gaussian`, samples of a normal distribution for each old class, fitted to its
features as they come in (mean, leading directions, rest), with the old model as teacher. Works with the task known or
not. `buffer` keeps raw samples, `gaussian` means and directions of them, all keep answers or a copy of the net; none
is sent.

References:
    Benjamin, Rolnick, Kording. Measuring and regularizing networks in function space. ICLR 2019. arXiv 1805.08289.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedcl.config import Config
from fedcl.contracts import Batch, Context, Memory, Method, Params
from fedcl.methods import _buffer, _gaussians
from fedcl.methods._teacher import recall, taught


@dataclass(frozen=True)
class Retain(Method):
    """Function-space retention.

    Attributes:
        strength: λ, ≥ 0; typically 0.001 to 0.1: the terms of all outputs and earlier tasks add up, and a step with
            momentum diverges where they are too strong.
        on: the stand-in for D_k.
        centred: compare logits less their mean over outputs, which a softmax does not see.
        size: samples of the `buffer`.
        rank: directions of each class of `gaussian`, ≥ 0; the rest of the variance is the same in all directions.
    """

    strength: float = 0.02
    on: Literal["current", "buffer", "gaussian"] = "current"
    centred: bool = True
    size: int = 200
    rank: int = 16
    needs_past: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.strength < 0 or self.size < 1 or self.rank < 0:
            raise ValueError(f"strength = {self.strength}, rank = {self.rank} must be ≥ 0, size = {self.size} ≥ 1")
        if self.on not in ("current", "buffer", "gaussian"):
            raise ValueError(f"on = {self.on!r} must be one of current, buffer, gaussian")

    def hooks(self) -> frozenset[str]:
        """None at λ = 0."""
        return super().hooks() if self.strength else frozenset()

    def conventions(self) -> dict[str, object]:
        """λ means nothing without these."""
        return {"on": self.on, "centred": self.centred, "reduction": "mean over samples, sum over outputs"}

    def unfit(self, config: Config) -> str:
        """A class's normal distribution is fitted to all of it at once."""
        parts = self.on == "gaussian" and config.train.stream == "hybrid"
        return "fits on = 'gaussian' to whole tasks: train.stream must be offline or online" if parts else ""

    def penalty(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """λ times the mean squared drift, a 0-d tensor."""
        total = batch.x.new_zeros(())
        if not memory:
            return total
        if self.on == "current":
            teacher, known = recall(memory)
            pairs = zip(
                ctx.old(teacher, batch.x, teacher=True, known=known), ctx.old(params, batch.x, known=known), strict=True
            )
        else:
            if self.on == "buffer":
                drawn, _ = _buffer.draw(ctx, memory, len(batch.y))
                x, task, old = drawn["x"], drawn["task"], drawn["logits"]
            else:
                x, task = _gaussians.draw(ctx, memory, len(batch.y))
                old = ctx.each(recall(memory)[0], x, task, teacher=True)
            pairs = zip([old], [ctx.each(params, x, task)], strict=True)
        for old, new in pairs:
            total = total + self._drift(old, new)
        return self.strength * total

    def end_task(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Memory:
        """What the next stage is held to, at the merged model."""
        if self.on == "current":
            return taught(ctx, params)
        if self.on == "gaussian":
            old = {key: value for key, value in memory.items() if key.startswith("class/")}
            return taught(ctx, params) | old | _gaussians.fit(ctx, data, self.rank)
        kept = memory
        if not ctx.again:
            kept = _buffer.reservoir(ctx, _buffer.answered(ctx, params, data), memory, self.size, 0)
        filled = int(kept["filled"])
        answers = ctx.each(params, kept["x"][:filled], kept["task"][:filled], teacher=True)
        return kept | {"logits": torch.cat([answers, kept["logits"][filled:]])}

    def _drift(self, old: Tensor, new: Tensor) -> Tensor:
        """Mean over samples of ‖new − old‖², over the outputs that both have."""
        both = old.isfinite() & new.isfinite()
        apart = new.masked_fill(~both, 0.0) - old.masked_fill(~both, 0.0)
        if self.centred:
            apart = (apart - apart.sum(1, keepdim=True) / both.sum(1, keepdim=True).clamp_min(1)) * both
        return apart.square().sum(1).mean()
