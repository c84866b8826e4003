"""SCAFFOLD: each client's steps are corrected by how its gradients differ from everybody's.

Karimireddy et al. 2020 (arXiv 1910.06378), algorithm 1: g ← g − c_i + c, and after K steps of rate η (option II)
c_i⁺ = c_i − c + (θ_r − θ_i) / (K η), c ← c + (1/N) Σ (c_i⁺ − c_i). Option II is derived for plain SGD: with
momentum m the same number of steps moves 1 / (1 − m) as far, by which it is divided here; Adam is refused. On what
tasks share, whose control variates begin anew with each task. Works with the task known or not; keeps two copies of
the trunk; sends one more, and gets one.

References:
    Karimireddy, Kale, Mohri, Reddi, Stich, Suresh. SCAFFOLD: Stochastic Controlled Averaging for Federated
        Learning. ICML 2020. arXiv 1910.06378.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fedcl.config import Config
from fedcl.contracts import Context, Memory, Method, Params, role


@dataclass(frozen=True)
class Scaffold(Method):
    """SCAFFOLD.

    Attributes:
        strength: share of the correction c − c_i that is used, in [0, 1]; 0 is plain averaging.
        momentum: the optimiser's, so that a round's move can be read as gradients; must be `train.momentum`.
    """

    strength: float = 1.0
    momentum: float = 0.9
    sends: ClassVar[Literal["task", "round"]] = "round"
    records: ClassVar[Literal["none"]] = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1 or not 0 <= self.momentum < 1:
            raise ValueError(f"strength = {self.strength} must be in [0, 1], momentum = {self.momentum} in [0, 1)")

    def unfit(self, config: Config) -> str:
        """Control variates are read off the steps of SGD."""
        if config.train.optimizer != "sgd":
            return "reads gradients off the steps: train.optimizer must be 'sgd'"
        if config.train.momentum != self.momentum:
            return f"needs methods.scaffold.momentum = {config.train.momentum}, as train.momentum is"
        return ""

    def hooks(self) -> frozenset[str]:
        """None without a correction."""
        return super().hooks() if self.strength else frozenset()

    def begin_task(self, ctx: Context, params: Params, memory: Memory) -> Memory:
        """Forget c_i: it is taken for c until the client has one of this task."""
        return {key: value for key, value in memory.items() if not key.startswith("own/")}

    def edit_grads(self, ctx: Context, params: Params, grads: Params, memory: Memory) -> tuple[Params, Memory]:
        """The gradient, g + (c − c_i)."""
        edited = dict(grads)
        for name in grads:
            own, all_ = memory.get(f"own/{name}"), memory.get(f"all/{name}")
            if own is not None and all_ is not None:
                edited[name] = grads[name] + self.strength * (all_ - own)
        return edited, memory

    def end_round(self, ctx: Context, params: Params, memory: Memory) -> Memory:
        """The new c_i⁺, and what of it the server has to add to c."""
        kept = dict(memory)
        rate = ctx.step * ctx.lr / (1 - self.momentum)
        for name, value in params.items():
            if role(name) in ("", "shared"):
                everybody = memory.get(f"all/{name}", torch.zeros_like(value))
                own = memory.get(f"own/{name}", everybody)
                kept[f"own/{name}"] = own - everybody + (ctx.start[name] - value.detach()) / rate
                kept[f"news/{name}"] = (kept[f"own/{name}"] - own) / ctx.clients
        return kept

    def upload(self, memory: Memory) -> Memory:
        """(c_i⁺ − c_i) / N."""
        return {key: value for key, value in memory.items() if key.startswith("news/")}

    def server(self, params: Params, state: Memory, uploads: Sequence[tuple[float, Memory]]) -> tuple[Memory, Memory]:
        """Add c ← c + Σ (c_i⁺ − c_i) / N."""
        state = dict(state)
        for _, upload in uploads:
            for key, value in upload.items():
                name = key.replace("news/", "all/", 1)
                state[name] = state[name] + value if name in state else value
        return state, state

    def receive(self, broadcast: Memory, memory: Memory) -> Memory:
        """Take over c."""
        return memory | broadcast
