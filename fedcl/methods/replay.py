"""Experience replay: train on old samples beside the new ones, from a small buffer in the hospital's own store.

Loss (1 − w) CE(new batch) + w CE(buffer batch), an average of two draws of one size (Chaudhry et al. 2019, arXiv
1902.10486; a sum would double the learning rate). Each stored sample is answered by its own task's head, which trains
along. Works with the task known or not. Keeps raw samples, which are never sent.

References:
    Chaudhry, Rohrbach, Elhoseiny, Ajanthan, Dokania, Torr, Ranzato. On Tiny Episodic Memories in Continual
        Learning. arXiv 2019. arXiv 1902.10486.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedcl.contracts import Batch, Context, Memory, Method, Params
from fedcl.methods import _buffer, _herding


@dataclass(frozen=True)
class Replay(Method):
    """Experience replay.

    Attributes:
        size: samples that a hospital keeps at most; 0 is no limit but `bytes`.
        bytes: that they take at most; 0 is no limit but `size`.
        keep: which: `reservoir`, each sample ever seen with the same chance; `balanced`, as many of each class;
            `herding`, those whose features' mean is nearest to the class's (Rebuffi et al. 2017, algorithm 4), chosen
            at the end of a task on the merged model; `independent`, each with the chance `share` whatever the others
            are, and no limit: what DP-SGD can account for.
        when: samples come in at the end of their `task`, so that all replay is of earlier tasks; or at each `step`, as
            a stream that passes once needs it.
        weight: w, share of the loss that is the buffer's, in [0, 1).
        batch: samples drawn a step; 0 is as many as new ones.
        share: chance of each sample to be kept (`independent`), in (0, 1].
    """

    size: int = 200
    bytes: int = 0
    keep: Literal["reservoir", "balanced", "herding", "independent"] = "reservoir"
    when: Literal["task", "step"] = "task"
    weight: float = 0.5
    batch: int = 0
    share: float = 0.2
    needs_past: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _buffer.check(self.size, self.bytes)
        if self.keep not in ("reservoir", "balanced", "herding", "independent"):
            raise ValueError(f"keep = {self.keep!r} must be one of reservoir, balanced, herding, independent")
        if self.when not in ("task", "step") or (self.when == "step" and self.keep in ("herding", "independent")):
            raise ValueError(f"when = {self.when!r} must be task, or step with reservoir or balanced")
        if not 0 < self.share <= 1:
            raise ValueError(f"share = {self.share} must be in (0, 1]")
        if not 0 <= self.weight < 1 or self.batch < 0:
            raise ValueError(f"weight = {self.weight} must be in [0, 1), batch = {self.batch} ≥ 0")

    def hooks(self) -> frozenset[str]:
        """Samples come in by `observe` or by `end_task`; by neither at w = 0."""
        if self.weight == 0:
            return frozenset()
        return super().hooks() - {"observe" if self.when == "task" else "end_task"}

    @property
    def records(self) -> Literal["open", "kept"]:  # type: ignore[override]
        """Whom a full buffer gives up hangs on the others that came: only `independent` keeps records apart."""
        return "kept" if self.keep == "independent" else "open"

    def kept(self, memory: Memory) -> tuple[Batch, Tensor]:
        """All kept samples, and their tasks."""
        if "y" not in memory:
            nothing = torch.zeros(0, dtype=torch.int64)
            return Batch(torch.zeros(0), nothing), nothing
        return Batch(memory["x"], memory["y"]), memory["task"]

    def loss(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """The average of both, a 0-d tensor."""
        new = nn.functional.cross_entropy(ctx.forward(params, batch.x), batch.y)
        if "y" not in memory:
            return new
        drawn, there = _buffer.draw(ctx, memory, self.batch or len(batch.y))
        weight = self.weight * there.to(new)
        return (1 - weight) * new + weight * _buffer.loss(ctx, params, drawn)

    def observe(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Memory:
        """Offer samples to the buffer."""
        offer = _buffer.reservoir if self.keep == "reservoir" else _buffer.balanced
        return offer(ctx, _buffer.rows(ctx, batch), memory, self.size, self.bytes)

    def end_task(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Memory:
        """Offer all of the task's samples, once."""
        if self.keep == "herding":
            return _herding.herd(ctx, data, memory, self.size, self.bytes)
        if self.keep == "independent":
            return memory if ctx.again else _buffer.independent(ctx, _buffer.rows(ctx, data), memory, self.share)
        return memory if ctx.again else self.observe(ctx, params, data, memory)
