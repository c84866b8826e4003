"""Averaged gradient episodic memory: a step may not raise the loss on a sample of the hospital's old data.

Chaudhry et al. 2019 (arXiv 1812.00420), eq. 11: with g_ref the gradient of the loss on a random sample of the memory
of all earlier tasks, a gradient g with g · g_ref < 0 becomes g − (g · g_ref / g_ref · g_ref) g_ref. The same is then
done to the step that the optimiser makes of it, which momentum, Adam's scaling or weight decay may have turned
towards g_ref again; `on = "gradient"` leaves that out, which is the paper and under plain SGD no difference. The
memory takes each earlier task's samples when the task ends (not one mini-batch of it, as other code does). Works with
the task known or not. Keeps raw samples, which are never sent.

References:
    Chaudhry, Ranzato, Rohrbach, Elhoseiny. Efficient Lifelong Learning with A-GEM. ICLR 2019. arXiv 1812.00420.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fedcl.contracts import Batch, Context, Memory, Method, Params, Step
from fedcl.methods import _buffer


@dataclass(frozen=True)
class AGEM(Method):
    """A-GEM.

    Attributes:
        size: samples that a hospital keeps at most; 0 is no limit but `bytes`.
        bytes: that they take at most; 0 is no limit but `size`.
        batch: samples of the memory that g_ref is measured on, ≥ 1; typically 64 to 256.
        on: what is projected: the `gradient` and then the optimiser's `update`, or the `gradient` only.
    """

    size: int = 200
    bytes: int = 0
    batch: int = 128
    on: Literal["update", "gradient"] = "update"
    needs_before: ClassVar[bool] = True
    needs_past: ClassVar[bool] = True
    edits_last: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _buffer.check(self.size, self.bytes)
        if self.batch < 1 or self.on not in ("update", "gradient"):
            raise ValueError(f"batch = {self.batch} must be ≥ 1, on = {self.on!r} one of update, gradient")

    def hooks(self) -> frozenset[str]:
        """The edits that `on` asks for."""
        return super().hooks() - ({"edit_update"} if self.on == "gradient" else set())

    def edit_grads(self, ctx: Context, params: Params, grads: Params, memory: Memory) -> tuple[Params, Memory]:
        """The gradient, without what raises the old loss; g_ref stays for the update."""
        reference = self._reference(ctx, params, memory)
        kept = memory if self.on == "gradient" else memory | {f"ref/{name}": g for name, g in reference.items()}
        return _projected(grads, reference, sign=-1.0), kept

    def edit_update(self, ctx: Context, step: Step, memory: Memory) -> tuple[Params, Memory]:
        """The step, without what raises the old loss."""
        reference = {key.removeprefix("ref/"): g for key, g in memory.items() if key.startswith("ref/")}
        if not reference:
            return step.after, memory
        moved = {name: value - step.before[name] for name, value in step.after.items()}
        allowed = _projected(moved, reference, sign=1.0)
        kept = {key: value for key, value in memory.items() if not key.startswith("ref/")}
        return {name: step.before[name] + value for name, value in allowed.items()}, kept

    def end_task(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Memory:
        """Offer the task's samples to the memory, once."""
        if ctx.again:
            return memory
        return _buffer.reservoir(ctx, _buffer.rows(ctx, data), memory, self.size, self.bytes)

    def _reference(self, ctx: Context, params: Params, memory: Memory) -> Params:
        """g_ref; empty before there is a memory."""
        if "y" not in memory:
            return {}
        drawn, _ = _buffer.draw(ctx, memory, self.batch)
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        with torch.enable_grad():
            loss = _buffer.loss(ctx, leaves, drawn)
            found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, found, strict=True))


def _projected(vector: Params, reference: Params, sign: float) -> Params:
    """The vector without its part along the reference, where sign · vector · reference > 0."""
    if not reference:
        return vector
    dot = sum((value * reference[name]).sum() for name, value in vector.items())
    length = sum(value.square().sum() for value in reference.values())
    share = torch.clamp_min(sign * torch.as_tensor(dot), 0.0) * sign / (length + 1e-12)
    return {name: value - share * reference[name] for name, value in vector.items()}
