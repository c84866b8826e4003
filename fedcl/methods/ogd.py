"""Orthogonal gradient descent: steps stay orthogonal to the gradients of old answers.

Farajtabar et al. 2020, algorithm 1, ground-truth logit form: S spans ∇_θ z_y(x) of some old samples. The *update* is
projected, θ ← θ₀ + (I − S Sᵀ)(θ − θ₀) with θ₀ the parameters at the task's start, so that momentum, Adam and weight
decay leave S alone too, and so does the move to a merged model. On what tasks share. Works with the task known or
not; keeps no samples but gradients of them (4 bytes × parameters × directions); sends nothing beside parameters.

References:
    Farajtabar, Azizan, Mott, Li. Orthogonal Gradient Descent for Continual Learning. AISTATS 2020. arXiv
        1910.07104.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedcl.contracts import Batch, Context, Memory, Method, Params, Step, role
from fedcl.methods import _subspace


@dataclass(frozen=True)
class OGD(Method):
    """Orthogonal gradient descent.

    Attributes:
        directions: gradients of each task, ≥ 1; typically 200.
        limit: of all tasks, ≥ `directions`; later ones are dropped.
    """

    directions: int = 200
    limit: int = 2000
    edits_last: ClassVar[bool] = True
    resizes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= self.directions <= self.limit:
            raise ValueError(f"directions = {self.directions} must be from 1 to limit = {self.limit}")

    def begin_task(self, ctx: Context, params: Params, memory: Memory) -> Memory:
        """θ₀."""
        return memory | {f"start/{name}": params[name].detach().clone() for name in _shared(params)}

    def edit_grads(self, ctx: Context, params: Params, grads: Params, memory: Memory) -> tuple[Params, Memory]:
        """(I − S Sᵀ) g: what Adam scales its steps by should be the part that it may take."""
        return grads | _across({name: grads[name] for name in _shared(grads)}, memory), memory

    def edit_update(self, ctx: Context, step: Step, memory: Memory) -> tuple[Params, Memory]:
        """θ₀ + (I − S Sᵀ)(θ − θ₀)."""
        if "basis" not in memory:
            return step.after, memory
        start = {name: memory[f"start/{name}"] for name in _shared(step.after)}
        moved = _across({name: step.after[name] - value for name, value in start.items()}, memory)
        return step.after | {name: start[name] + value for name, value in moved.items()}, memory

    def end_task(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Memory:
        """Add the directions of some of the task's samples, at the merged model."""
        names = _shared(params)
        leaves = {name: params[name].detach().requires_grad_() for name in names}
        size = sum(leaf.numel() for leaf in leaves.values())
        basis = memory.get("basis", torch.zeros(0, size, device=data.x.device))
        chosen = torch.randperm(len(data.y), generator=ctx.generator)[: self.directions].tolist()
        for row in chosen[: self.limit - len(basis)]:
            with torch.enable_grad():
                logit = ctx.forward({**params, **leaves}, data.x[row : row + 1])[0, data.y[row]]
                grads = torch.autograd.grad(logit, list(leaves.values()), materialize_grads=True)
            basis = _subspace.extended(basis, torch.cat([grad.flatten() for grad in grads]))
        return {"basis": basis}


def _shared(params: Params) -> list[str]:
    return [name for name in params if role(name) in ("", "shared")]


def _across(moved: Params, memory: Memory) -> Params:
    """Moves without their part along S."""
    if "basis" not in memory or not moved:
        return moved
    flat = torch.cat([value.flatten() for value in moved.values()])
    flat = flat - memory["basis"].T @ (memory["basis"] @ flat)
    pieces = torch.split(flat, [value.numel() for value in moved.values()])
    return {name: piece.view_as(value) for (name, value), piece in zip(moved.items(), pieces, strict=True)}
