"""Hard attention to the task: each task learns which units of the trunk it uses, and protects them.

Serrà et al. 2018. A unit's gate is a = σ(s e) with a learned embedding e of each task (eq. 1); s grows from 1/s_max
to s_max over each epoch (eq. 3), which makes gates binary; the gradient of e is scaled back (eq. 5), and few units
are asked for by λ Σ a (1 − a^{<t}) / Σ (1 − a^{<t}) (eq. 4). Eq. 2 scales a weight's gradient by 1 − min(a_out^{<t},
a_in^{<t}); here it is the *update* that is scaled, so that momentum, Adam and weight decay do not reach protected
weights. The server takes a^{<t} as the largest gate of all earlier tasks' merged embeddings. Needs the task's
identity; keeps no data; sends one number a unit beside parameters. For trunks whose layers each feed only the next.

References:
    Serrà, Surís, Miron, Karatzoglou. Overcoming Catastrophic Forgetting with Hard Attention to the Task. ICML 2018.
        arXiv 1801.01423.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from fedcl.config import Config, Masks
from fedcl.contracts import Batch, Context, Memory, Method, Moment, Params, Step
from fedcl.models.dynamic_net import DynamicNet, needs_task, own_rows

_CLAMP, _BOUND = 50.0, 6.0  # of s e in the gradient's scale, and of e: the authors' values


@dataclass(frozen=True)
class HAT(Method):
    """Hard attention to the task.

    Attributes:
        strength: λ of eq. 4, ≥ 0; the authors' 0.75.
        s_max: the largest scale, > 1; the authors' 400.
    """

    strength: float = 0.75
    s_max: float = 400.0
    masks: ClassVar[Masks] = "units"
    needs_before: ClassVar[bool] = True
    edits_last: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.strength < 0 or self.s_max <= 1:
            raise ValueError(f"strength = {self.strength} must be ≥ 0, s_max = {self.s_max} > 1")

    def unfit(self, config: Config) -> str:
        """A task's gates are of no use to who does not know the task."""
        return needs_task(config.model, "units")

    def merged(self, moment: Moment, before: Params, params: Params, state: Memory) -> tuple[Params, Memory]:
        """Before a stage: which units earlier tasks use."""
        if moment.round > 0:
            return params, state
        edited = dict(params)
        for task in moment.current:
            for name in (n for n in params if n.startswith(f"gates.{task}.trunk.") and n.endswith(".taken")):
                logits = name.replace(".taken", ".logits")
                others = [logits.replace(f".{task}.", f".{past}.", 1) for past in moment.past if past != task]
                gates = [torch.sigmoid(self.s_max * params[other]) for other in others]
                edited[name] = torch.stack([torch.zeros_like(params[name]), *gates]).amax(0)
                edited[name.replace(".taken", ".scale")] = torch.tensor(self.s_max)
        return edited, state

    def loss(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """Cross-entropy at this step's scale, and the price of units that no earlier task uses; a 0-d tensor."""
        scale = self._scale(ctx)
        soft = {name: torch.full_like(value, scale) for name, value in ctx.buffers.items() if name.endswith(".scale")}
        loss = nn.functional.cross_entropy(ctx.forward({**params, **soft}, batch.x), batch.y)
        used, free = batch.x.new_zeros(()), batch.x.new_zeros(())
        for layer in self._layers(ctx):
            open_ = 1 - ctx.buffers[f"{layer}.taken"]
            used = used + (torch.sigmoid(scale * params[f"{layer}.logits"]) * open_).sum()
            free = free + open_.sum()
        return loss + self.strength * used / free.clamp_min(1e-12)

    def edit_grads(self, ctx: Context, params: Params, grads: Params, memory: Memory) -> tuple[Params, Memory]:
        """Eq. 5: q' = (s_max / s) (cosh(s e) + 1) / (cosh(e) + 1) q."""
        edited, scale = dict(grads), self._scale(ctx)
        for layer in self._layers(ctx):
            e = params[f"{layer}.logits"]
            stretch = (torch.cosh((scale * e).clamp(-_CLAMP, _CLAMP)) + 1) / (torch.cosh(e) + 1)
            edited[f"{layer}.logits"] = grads[f"{layer}.logits"] * (self.s_max / scale) * stretch
        return edited, memory

    def edit_update(self, ctx: Context, step: Step, memory: Memory) -> tuple[Params, Memory]:
        """Eq. 2 on the update, and e kept within its bounds."""
        edited = dict(step.after)
        before: Tensor | None = None  # gates of the layer that feeds this one
        for layer, gate in zip(cast(DynamicNet, ctx.net).chain(), self._layers(ctx), strict=True):
            edited[f"{gate}.logits"] = edited[f"{gate}.logits"].clamp(-_BOUND, _BOUND)
            taken = ctx.buffers[f"{gate}.taken"]
            for name in (f"trunk.{layer}.weight", f"trunk.{layer}.bias"):
                if name not in step.after:
                    continue
                held = taken.view(-1, *[1] * (step.after[name].dim() - 1))
                if before is not None and name.endswith("weight"):
                    inputs = step.after[name].shape[1]
                    feeding = before.repeat_interleave(inputs // len(before))  # a channel feeds many inputs
                    held = torch.minimum(held, feeding.view(1, -1, *[1] * (step.after[name].dim() - 2)))
                edited[name] = step.before[name] + (1 - held) * (step.after[name] - step.before[name])
            before = taken
        return edited | own_rows(ctx.task, step), memory

    def _scale(self, ctx: Context) -> float:
        """Eq. 3."""
        return 1 / self.s_max + (self.s_max - 1 / self.s_max) * ctx.progress

    def _layers(self, ctx: Context) -> list[str]:
        """The prefix of each gate of the task, in the trunk's order."""
        layers = cast(DynamicNet, ctx.net).chain()
        return [f"gates.{ctx.task.id}.trunk.{layer.replace('.', '-')}" for layer in layers]
