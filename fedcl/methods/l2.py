"""L2: stay near the parameters at the end of the last task, all alike: (λ/2) ‖θ − θ_old‖².

EWC with F = 1: the simplest of the penalties, and the one that tells what importances are worth. Works with the task
known or not; keeps no data; sends nothing beside parameters (with `share` = "sum" its ones).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fedcl.contracts import Batch, Context, Memory, Params
from fedcl.methods._quadratic import Quadratic


@dataclass(frozen=True)
class L2(Quadratic):
    """L2 towards old parameters; the other options as in `Quadratic`, with Ω = 1.

    Attributes:
        strength: λ, ≥ 0, with the ½; typically 0.01 to 10.
        form: `last`, the default, pulls to the last task's parameters only; `merged` to the mean of all tasks', and
            harder with each.
    """

    strength: float = 0.1
    form: Literal["merged", "separate", "online", "last"] = "last"
    records: ClassVar[Literal["none"]] = "none"

    def measure(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Params:
        """Ones."""
        return {name: torch.ones_like(value) for name, value in params.items()}
