"""FedProx: a client's round stays near the model that it began with, so that skewed hospitals drift less apart.

Li et al. 2020 (arXiv 1812.06127), eq. 2: minimise F_c(θ) + (μ/2) ‖θ − θ_r‖², θ_r the merged model of the round's
beginning; the term's gradient μ (θ − θ_r) is added to that of the loss. Works with the task known or not; keeps no
data; sends nothing beside parameters.

References:
    Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith. Federated Optimization in Heterogeneous Networks. MLSys 2020. arXiv
        1812.06127.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedcl.contracts import Context, Memory, Method, Params


@dataclass(frozen=True)
class FedProx(Method):
    """FedProx.

    Attributes:
        strength: μ, ≥ 0; 0 is plain averaging; typically 0.001 to 1. A step needs lr · μ < 2.
    """

    strength: float = 0.1
    records: ClassVar[Literal["none"]] = "none"

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError(f"strength = {self.strength} must be ≥ 0")

    def hooks(self) -> frozenset[str]:
        """None at μ = 0."""
        return super().hooks() if self.strength else frozenset()

    def conventions(self) -> dict[str, object]:
        """μ means nothing without these."""
        return {"factor": 0.5, "on": "all that trains"}

    def edit_grads(self, ctx: Context, params: Params, grads: Params, memory: Memory) -> tuple[Params, Memory]:
        """The gradient, g + μ (θ − θ_r)."""
        pulled = {
            name: grad + self.strength * (params[name].detach() - ctx.start[name]) for name, grad in grads.items()
        }
        return pulled, memory
