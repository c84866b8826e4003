"""LwF as the code behind the published table has it: distilled over all outputs, new classes with probability zero.

A plug-in of this folder, to show where a difference comes from: fedcl's own `lwf` compares old classes only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedcl.contracts import Batch, Context, Memory, Params
from fedcl.methods._teacher import recall
from fedcl.methods.lwf import LwF


@dataclass(frozen=True)
class LwFOverAll(LwF):
    """The student's softmax runs over old and new classes."""

    def penalty(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """λ (k − 1) T² Σ p_old (log p_old − log p_all), mean over samples, a 0-d tensor."""
        if not memory:
            return batch.x.new_zeros(())
        teacher, known = recall(memory)
        (taught,) = ctx.old(teacher, batch.x, teacher=True, known=known)
        old = torch.log_softmax(taught / self.temperature, 1)
        new = torch.log_softmax(ctx.forward(params, batch.x) / self.temperature, 1)
        classes = sorted({c for task in ctx.past for c in task.classes})
        apart = (old.exp() * (old - new[:, classes])).sum(1).mean()
        return self.strength * len(ctx.past) * self.temperature**2 * apart
