"""Learning without forgetting: on new data the net should go on answering for old tasks as it did.

Adds λ T² KL(softmax(z_old / T) ‖ softmax(z / T)), mean over samples, over old classes only, one term for each earlier
task that has a softmax of its own, otherwise one over all old classes (Li & Hoiem 2016, eq. 2-3; T² keeps the
gradient's size, Hinton et al. 2015, and is left out by other code). The teacher is the merged model at the end of the
hospital's last task, in evaluation mode, on the same augmented samples. Works with the task known or not; keeps a
copy of the net and no data; sends nothing beside parameters; old heads come along, and a
hospital's own train along while nobody has their task.

References:
    Li, Hoiem. Learning without Forgetting. ECCV 2016. arXiv 1606.09282.
    Hinton, Vinyals, Dean. Distilling the Knowledge in a Neural Network. NIPS Deep Learning Workshop 2015. arXiv
        1503.02531.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedcl.contracts import Batch, Context, Memory, Method, Params
from fedcl.methods._teacher import recall, taught


@dataclass(frozen=True)
class LwF(Method):
    """Learning without forgetting.

    Attributes:
        strength: λ, ≥ 0; typically 0.05 to 1: terms of all earlier tasks add up.
        temperature: T, > 0; typically 2.
        per_task: multiply a softmax over all old classes by the number of earlier tasks (van de Ven & Tolias 2019
            weigh new and old by 1/k and 1 − 1/k, the same but for the learning rate).
    """

    strength: float = 0.25
    temperature: float = 2.0
    per_task: bool = False
    needs_past: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.strength < 0 or self.temperature <= 0:
            raise ValueError(f"strength = {self.strength} must be ≥ 0, temperature = {self.temperature} > 0")

    def hooks(self) -> frozenset[str]:
        """None at λ = 0."""
        return super().hooks() if self.strength else frozenset()

    def conventions(self) -> dict[str, object]:
        """λ means nothing without these."""
        return {
            "temperature": self.temperature,
            "factor": "T²",
            "reduction": "mean over samples",
            "over": "old classes",
        }

    def penalty(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """λ T² KL to the teacher, a 0-d tensor."""
        total = batch.x.new_zeros(())
        if not memory:
            return total
        teacher, known = recall(memory)
        answers = ctx.old(teacher, batch.x, teacher=True, known=known)
        for old, new in zip(answers, ctx.old(params, batch.x, known=known), strict=True):
            total = total + divergence(old, new, self.temperature)
        if self.per_task and len(answers) == 1:
            total = total * sum(task.id in known for task in ctx.past)
        return self.strength * total

    def end_task(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Memory:
        """The merged model is the next teacher, of the tasks that came until now."""
        return taught(ctx, params)


def divergence(old: Tensor, new: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(old / T) ‖ softmax(new / T)), mean over samples, from logits [B, C]; a 0-d tensor."""
    target, found = (torch.log_softmax(z / temperature, 1) for z in (old, new))
    return temperature**2 * torch.nn.functional.kl_div(found, target, reduction="batchmean", log_target=True)
