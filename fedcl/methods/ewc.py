"""Elastic weight consolidation: stay near the old parameters, the more so where the old tasks depend on them.

Penalty (λ/2) Σ_i F_i (θ_i − θ*_i)², Kirkpatrick et al. 2017, eq. 3, on the parameters that tasks share (trunk, shared
head); a task's own module is closed after its stage and needs none. Works with the task known or not; keeps no
data; sends nothing beside parameters, unless `share = "sum"`, which sends the Fisher diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import torch
from torch import Tensor

from fedcl import fisher
from fedcl.contracts import Batch, Context, Memory, Method, Params, role


@dataclass(frozen=True)
class EWC(Method):
    """Elastic weight consolidation.

    Attributes:
        strength: λ of eq. 3, ≥ 0, with the ½; 0 is plain fine-tuning. Depends on `kind`: with the exact Fisher
            1e2 to 1e4 is usual, with the empirical one ten times that.
        kind: the Fisher diagonal, a mean over samples of squared per-sample gradients: `exact` over all labels by
            their probability, `sampled` with one drawn label, `empirical` with the true label.
        form: `merged` sums the tasks' penalties into one quadratic with the same gradient; `separate` keeps them
            apart (memory grows with stages); `online` decays old Fishers and keeps one anchor (Schwarz et al. 2018).
        gamma: γ of the online form, in (0, 1].
        step: `proximal` applies the penalty after the optimiser's step in closed form,
            θ ← (θ + ηλF θ*) / (1 + ηλF), stable at every λ; `explicit` adds it to the loss (needs ηλF < 2).
        share: whose Fisher: `own`, or the data-weighted mean over all hospitals (`sum`), which is uploaded.
        samples: at most this many of a task's training samples measure the Fisher; 0 takes all.
    """

    strength: float = 2e4
    kind: Literal["exact", "sampled", "empirical"] = "exact"
    form: Literal["merged", "separate", "online"] = "merged"
    gamma: float = 1.0
    step: Literal["proximal", "explicit"] = "proximal"
    share: Literal["own", "sum"] = "own"
    samples: int = 500

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError(f"strength = {self.strength} must be ≥ 0")
        if self.samples < 0:
            raise ValueError(f"samples = {self.samples} must be ≥ 0; 0 takes all")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma = {self.gamma} must be in (0, 1]")
        hints = get_type_hints(type(self))
        for name in ("kind", "form", "step", "share"):
            if getattr(self, name) not in (allowed := get_args(hints[name])):
                raise ValueError(f"{name} = {getattr(self, name)!r} must be one of {', '.join(allowed)}")
        if self.share == "sum" and self.form == "separate":
            raise ValueError('share = "sum" keeps one quadratic; take form = "merged" or "online"')

    def conventions(self) -> dict[str, object]:
        """λ means nothing without these."""
        facts: dict[str, object] = {
            "fisher_kind": self.kind,
            "reduction": "mean over samples",
            "factor": 0.5,
            "form": self.form,
        }
        return facts | {"step": self.step, "share": self.share, "gamma": self.gamma, "samples_at_most": self.samples}

    def hooks(self) -> frozenset[str]:
        """Only the one of `penalty` and `edit_update` that `step` asks for; neither at λ = 0."""
        unused = {"penalty", "edit_update"} if self.strength == 0 else set()
        unused.add("penalty" if self.step == "proximal" else "edit_update")
        if self.share == "own":
            unused |= {"upload", "server", "receive"}
        return super().hooks() - unused

    def penalty(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """(λ/2) Σ_k Σ_i F^k_i (θ_i − θ^k_i)², a 0-d tensor."""
        total = next(iter(params.values())).new_zeros(())
        for name, importance, anchor in self._quadratics(params, memory):
            total = total + (importance * (params[name] - anchor).square()).sum()
        return 0.5 * self.strength * total

    def edit_update(self, ctx: Context, before: Params, after: Params, memory: Memory) -> tuple[Params, Memory]:
        """The proximal step θ ← (θ + ηλ ΣF θ*) / (1 + ηλ ΣF), elementwise."""
        edited = dict(after)
        for name, importance, anchor in self._quadratics(after, memory):
            pull = importance * (ctx.lr * self.strength)
            if self.form == "separate":
                numerator = after[name] + (pull * anchor).sum(0)
                pull = pull.sum(0)
            else:
                numerator = torch.addcmul(after[name], pull, anchor)
            edited[name] = numerator.div_(pull.add_(1.0))
        return edited, memory

    def end_task(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Memory:
        """Measure the Fisher at the merged parameters and fold it into what is kept."""
        names = [name for name in params if role(name) in ("", "shared")]
        x, y = data.x, data.y
        if 0 < self.samples < len(x):
            chosen = torch.randperm(len(x), generator=ctx.generator)[: self.samples]
            x, y = x[chosen], y[chosen]
        new = self.measure(ctx, params, names, Batch(x, y))
        anchors = {name: params[name].detach().clone() for name in names}
        if self.share == "sum":
            return memory | {f"new/{name}": value for name, value in new.items()}
        return self._fold(memory, new, anchors, slots=ctx.slots)

    def measure(self, ctx: Context, params: Params, names: Sequence[str], data: Batch) -> Params:
        """The Fisher diagonal of the named parameters, one tensor of a parameter's shape each."""
        return fisher.diagonal(
            ctx.net,
            lambda x: ctx.forward(params, x),
            names,
            data.x,
            data.y,
            kind=self.kind,
            generator=ctx.generator,
        )

    def upload(self, memory: Memory) -> Memory:
        """The Fisher of the task just ended, where hospitals share it."""
        return {key: value for key, value in memory.items() if key.startswith("new/")}

    def server(self, params: Params, state: Memory, uploads: Sequence[tuple[float, Memory]]) -> tuple[Memory, Memory]:
        """Σ_c (n_c/n) F_c at the merged parameters, folded into all earlier stages'; broadcast to all hospitals."""
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
        """Take over what all hospitals' Fishers became."""
        return dict(broadcast)

    def _quadratics(self, params: Params, memory: Memory) -> list[tuple[str, Tensor, Tensor]]:
        """(name, F, θ*) for each parameter that may move; a leading axis of consolidations in the separate form."""
        # Schwarz et al. weigh the running Fisher by γ once more when the next task begins.
        scale = self.gamma if self.form == "online" else 1.0
        names = [name for name in params if f"fisher/{name}" in memory]
        return [(name, memory[f"fisher/{name}"] * scale, memory[f"anchor/{name}"]) for name in names]

    def _fold(self, memory: Memory, new: Params, anchors: Params, slots: int) -> Memory:
        kept = dict(memory)
        for name, importance in new.items():
            fisher_key, anchor_key = f"fisher/{name}", f"anchor/{name}"
            old, old_anchor = memory.get(fisher_key), memory.get(anchor_key)
            if self.form == "separate":
                kept[fisher_key], kept[anchor_key] = self._append(memory, name, importance, anchors[name], slots)
            elif old is None or old_anchor is None:
                kept[fisher_key], kept[anchor_key] = importance, anchors[name]
            elif self.form == "online":
                kept[fisher_key], kept[anchor_key] = self.gamma * old + importance, anchors[name]
            else:
                total = old + importance
                # The centre of a sum of quadratics; where nothing matters (0/0) any centre does.
                centre = (old * old_anchor + importance * anchors[name]) / total.clamp_min(1e-38)
                kept[fisher_key], kept[anchor_key] = total, torch.where(total > 0, centre, anchors[name])
        if self.form == "separate":
            kept["count"] = memory.get("count", torch.zeros((), dtype=torch.int64)) + 1
        return kept

    def _append(
        self, memory: Memory, name: str, importance: Tensor, anchor: Tensor, slots: int
    ) -> tuple[Tensor, Tensor]:
        """One more quadratic in padded stacks [stages, *shape]: an unused slot has F = 0 and pulls nowhere."""
        slot = int(memory.get("count", torch.zeros(())))  # on the host: consolidation, not a step
        stacks = []
        for key, value in ((f"fisher/{name}", importance), (f"anchor/{name}", anchor)):
            stack = memory.get(key)
            stack = value.new_zeros(slots, *value.shape) if stack is None else stack.clone()
            stack[slot] = value
            stacks.append(stack)
        return stacks[0], stacks[1]
