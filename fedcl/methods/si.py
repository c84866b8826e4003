"""Synaptic intelligence: a parameter is important by how much its moves lowered the loss while a task was learned.

Zenke et al. 2017: along the way ω_i −= g_i Δθ_i (eq. 3), at the end of a task Ω_i += max(ω_i, 0) / (Δ_i² + ξ) with Δ_i
the displacement over the task (eq. 5), then a quadratic pull (eq. 4, c = strength / 2). g is the gradient of the loss
alone: that of the own pull is taken out, which other codes leave in. ω follows the local steps of one hospital; the
jumps to the merged model are in Δ but not in ω. Works with the task known or not; keeps no data.

References:
    Zenke, Poole, Ganguli. Continual Learning Through Synaptic Intelligence. ICML 2017. arXiv 1703.04200.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedcl.contracts import Batch, Context, Memory, Params, Step, role
from fedcl.methods._quadratic import Quadratic


@dataclass(frozen=True)
class SI(Quadratic):
    """Synaptic intelligence; the other options as in `Quadratic`.

    Attributes:
        strength: λ = 2 c of eq. 4, ≥ 0; typically 0.1 to 1000.
        damping: ξ of eq. 5, > 0; typically 0.001 to 1.
    """

    strength: float = 1.0
    damping: float = 0.1
    needs_before: ClassVar[bool] = True
    records: ClassVar[Literal["none"]] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.damping <= 0:
            raise ValueError(f"damping = {self.damping} must be > 0")

    def conventions(self) -> dict[str, object]:
        """λ means nothing without these."""
        return super().conventions() | {"damping": self.damping, "gradient": "of the loss alone"}

    def begin_task(self, ctx: Context, params: Params, memory: Memory) -> Memory:
        """Where the task starts from, and a path of length 0."""
        shared = {name: value.detach() for name, value in params.items() if role(name) in ("", "shared")}
        start = {f"start/{name}": value.clone() for name, value in shared.items()}
        return memory | start | {f"path/{name}": value.new_zeros(value.shape) for name, value in shared.items()}

    def track(self, ctx: Context, step: Step, memory: Memory) -> Memory:
        """ω −= g Δθ, with Δθ what all methods together made of the step."""
        loss = dict(step.grads)
        if self.step == "explicit" and self.strength > 0:
            for name, importance, anchor in self.quadratics(step.before, memory):
                pull = self.strength * importance * (step.before[name] - anchor)
                loss[name] = loss[name] - (pull.sum(0) if self.form == "separate" else pull)
        return memory | {
            key: value - loss[name] * (step.after[name] - step.before[name])
            for name in step.after
            if (value := memory.get(key := f"path/{name}")) is not None
        }

    def measure(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Params:
        """max(ω, 0) / (Δ² + ξ); 0 for what did not move in training."""
        found = {}
        for name, value in params.items():
            path, start = memory.get(f"path/{name}"), memory.get(f"start/{name}")
            if path is None or start is None:
                found[name] = value.new_zeros(value.shape)
            else:
                found[name] = path.clamp_min(0) / ((value - start).square() + self.damping)
        return found

    def end_task(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Memory:
        """Fold the task's Ω in, and forget its path."""
        kept = super().end_task(ctx, params, data, memory)
        return {key: value for key, value in kept.items() if not key.startswith(("path/", "start/"))}
