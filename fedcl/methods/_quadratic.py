"""A quadratic pull towards old parameters, weighted by how important each was: what EWC, SI, MAS and L2 have in common.

Penalty (λ/2) Σ_k Σ_i Ω^k_i (θ_i − θ^k_i)² over consolidations k, on the parameters that tasks share (trunk, shared
head); a task's own module is closed after its stage and needs none. Works with the task known or not; keeps no data;
sends nothing beside parameters, unless `share = "sum"`, which sends the importances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from fedcl import structure
from fedcl.contracts import Batch, Context, Memory, Method, Params, Step, role


@dataclass(frozen=True)
class Quadratic(Method):
    """The penalty; a subclass says what is important, in `measure`.

    Attributes:
        strength: λ, ≥ 0, with the ½; 0 is plain fine-tuning.
        form: `merged` sums the penalties into one quadratic with the same gradient; `separate` keeps them apart
            (memory grows with stages); `online` decays old importances and keeps one anchor (Schwarz et al. 2018);
            `last` keeps the last task's only.
        gamma: γ of the online form, in (0, 1].
        step: `proximal` applies the penalty after the optimiser's step in closed form,
            θ ← (θ + ηλΩ θ*) / (1 + ηλΩ), stable at every λ; `explicit` adds it to the loss (needs ηλΩ < 2).
        share: whose importances: `own`, or the data-weighted mean over all hospitals (`sum`), which is uploaded.
    """

    strength: float = 1.0
    form: Literal["merged", "separate", "online", "last"] = "online"
    gamma: float = 1.0
    step: Literal["proximal", "explicit"] = "proximal"
    share: Literal["own", "sum"] = "own"

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError(f"strength = {self.strength} must be ≥ 0")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma = {self.gamma} must be in (0, 1]")
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in (allowed := get_args(hint)):
                raise ValueError(f"{name} = {getattr(self, name)!r} must be one of {', '.join(allowed)}")
        if self.share == "sum" and self.form == "separate":
            raise ValueError('share = "sum" keeps one quadratic; take form = "merged", "online" or "last"')

    def conventions(self) -> dict[str, object]:
        """λ means nothing without these."""
        return {"factor": 0.5, "form": self.form, "step": self.step, "share": self.share, "gamma": self.gamma}

    def hooks(self) -> frozenset[str]:
        """Only the one of `penalty` and `edit_update` that `step` asks for; neither at λ = 0."""
        unused = {"penalty", "edit_update", "track"} if self.strength == 0 else set()
        unused.add("penalty" if self.step == "proximal" else "edit_update")
        if self.share == "own":
            unused |= {"upload", "server", "receive"}
        return super().hooks() - unused

    def penalty(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """(λ/2) Σ_k Σ_i Ω^k_i (θ_i − θ^k_i)², a 0-d tensor."""
        total = next(iter(params.values())).new_zeros(())
        for name, importance, anchor in self.quadratics(params, memory):
            total = total + (importance * (params[name] - anchor).square()).sum()
        return 0.5 * self.strength * total

    def edit_update(self, ctx: Context, step: Step, memory: Memory) -> tuple[Params, Memory]:
        """The proximal step θ ← (θ + ηλ ΣΩ θ*) / (1 + ηλ ΣΩ), elementwise."""
        edited = dict(step.after)
        for name, importance, anchor in self.quadratics(step.after, memory):
            pull = importance * (ctx.lr * self.strength)
            if self.form == "separate":
                numerator = step.after[name] + (pull * anchor).sum(0)
                pull = pull.sum(0)
            else:
                numerator = torch.addcmul(step.after[name], pull, anchor)
            edited[name] = numerator.div_(pull.add_(1.0))
        return edited, memory

    def end_task(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Memory:
        """Measure the importances at the merged parameters and fold them into what is kept."""
        names = [name for name in params if role(name) in ("", "shared")]
        new = self.measure(ctx, {name: params[name].detach() for name in names}, data, memory)
        anchors = {name: params[name].detach().clone() for name in names}
        if self.share == "sum":
            return memory | {f"new/{name}": value for name, value in new.items()}
        return self._fold(memory, new, anchors, slots=ctx.slots)

    def measure(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Params:
        """Ω ≥ 0 of each of these parameters, of its shape."""
        raise NotImplementedError(f"{type(self).__name__} has no measure")

    def upload(self, memory: Memory) -> Memory:
        """The importance of the task just ended, where hospitals share it."""
        return {key: value for key, value in memory.items() if key.startswith("new/")}

    def misfit(self, client: int, net: nn.Module, params: Params, upload: Memory) -> str:
        """One importance for each parameter that tasks share."""
        shared = {f"new/{name}": value for name, value in params.items() if role(name) in ("", "shared")}
        return structure.unlike(upload, shared)

    def server(self, params: Params, state: Memory, uploads: Sequence[tuple[float, Memory]]) -> tuple[Memory, Memory]:
        """Σ_c (n_c/n) Ω_c at the merged parameters, folded into all earlier stages'; broadcast to all hospitals."""
        uploads = [(weight, upload) for weight, upload in uploads if upload and weight > 0]
        if not uploads:
            return state, state
        total = sum(weight for weight, _ in uploads)
        names = [key.removeprefix("new/") for key in uploads[0][1]]
        mean = {
            name: sum((upload[f"new/{name}"] * (weight / total) for weight, upload in uploads), torch.zeros(()))
            for name in names
        }
        state = self._fold(state, mean, {name: params[name].detach().clone() for name in names}, slots=1)
        return state, state

    def receive(self, broadcast: Memory, memory: Memory) -> Memory:
        """Take over what all hospitals' importances became."""
        own = ("importance/", "anchor/", "new/")
        return {key: value for key, value in memory.items() if not key.startswith(own)} | broadcast

    def quadratics(self, params: Params, memory: Memory) -> list[tuple[str, Tensor, Tensor]]:
        """(name, Ω, θ*) for each parameter that may move; a leading axis of consolidations in the separate form."""
        # Schwarz et al. weigh the running importance by γ once more when the next task begins.
        scale = self.gamma if self.form == "online" else 1.0
        names = [name for name in params if f"importance/{name}" in memory]
        return [(name, memory[f"importance/{name}"] * scale, memory[f"anchor/{name}"]) for name in names]

    def _fold(self, memory: Memory, new: Params, anchors: Params, slots: int) -> Memory:
        kept = dict(memory)
        for name, importance in new.items():
            key, anchor_key = f"importance/{name}", f"anchor/{name}"
            old, old_anchor = memory.get(key), memory.get(anchor_key)
            if self.form == "separate":
                kept[key], kept[anchor_key] = self._append(memory, name, importance, anchors[name], slots)
            elif old is None or old_anchor is None or self.form == "last":
                kept[key], kept[anchor_key] = importance, anchors[name]
            elif self.form == "online":
                kept[key], kept[anchor_key] = self.gamma * old + importance, anchors[name]
            else:
                total = old + importance
                # The centre of a sum of quadratics; where nothing matters (0/0) any centre does.
                centre = (old * old_anchor + importance * anchors[name]) / total.clamp_min(1e-38)
                kept[key], kept[anchor_key] = total, torch.where(total > 0, centre, anchors[name])
        if self.form == "separate":
            kept["count"] = memory.get("count", torch.zeros((), dtype=torch.int64)) + 1
        return kept

    def _append(
        self, memory: Memory, name: str, importance: Tensor, anchor: Tensor, slots: int
    ) -> tuple[Tensor, Tensor]:
        """One more quadratic in padded stacks [stages, *shape]: an unused slot has Ω = 0 and pulls nowhere."""
        slot = int(memory.get("count", torch.zeros(())))  # on the host: consolidation, not a step
        stacks = []
        for key, value in ((f"importance/{name}", importance), (f"anchor/{name}", anchor)):
            stack = memory.get(key)
            stack = value.new_zeros(slots, *value.shape) if stack is None else stack.clone()
            stack[slot] = value
            stacks.append(stack)
        return stacks[0], stacks[1]
