"""SCAFFOLD: each client's steps are corrected by how its gradients differ from everybody's.

Karimireddy et al. 2020 (arXiv 1910.06378), algorithm 1: g ← g − c_i + c, and after K steps of rate η (option II)
c_i⁺ = c_i − c + (θ_r − θ_i) / (K η), c ← c + |S|/N Σ w_i (c_i⁺ − c_i) over the clients S of a round, with the weights
that their models are averaged with; the paper's are all 1/|S|. Were c another mean than that of the models, the
corrections would not cancel in it, and a hospital of three samples would steer as much as one of three thousand.
Option II is derived for plain SGD. With momentum m, the k-th step from rest along one gradient g moves by
η (1 − m^k) / (1 − m) g, so a round that starts from rest is divided by η Σ_{k ≤ K} (1 − m^k) / (1 − m) here. Where the
optimiser's state is kept between rounds, by what that comes to in the long run, K η / (1 − m); the first rounds then
read as less than they were. Adam is refused. On what tasks share, whose control variates begin anew with each task.
Works with the task known or not; keeps two copies of the trunk; sends one more, and gets one.

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
        reset: when the optimiser comes to rest, for the same reason; must be `train.reset`, unless momentum is 0.
    """

    strength: float = 1.0
    momentum: float = 0.9
    reset: Literal["round", "task", "never"] = "round"
    sends: ClassVar[Literal["task", "round"]] = "round"
    records: ClassVar[Literal["none"]] = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1 or not 0 <= self.momentum < 1:
            raise ValueError(f"strength = {self.strength} must be in [0, 1], momentum = {self.momentum} in [0, 1)")
        if self.reset not in ("round", "task", "never"):
            raise ValueError(f"reset = {self.reset!r} must be one of round, task, never")

    def unfit(self, config: Config) -> str:
        """Control variates are read off the steps of SGD."""
        if config.train.optimizer != "sgd":
            return "reads gradients off the steps: train.optimizer must be 'sgd'"
        if config.train.momentum != self.momentum:
            return f"needs methods.scaffold.momentum = {config.train.momentum}, as train.momentum is"
        if self.momentum and config.train.reset != self.reset:
            return f"needs methods.scaffold.reset = {config.train.reset!r}, as train.reset is"
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
        rate = ctx.lr * self._reach(ctx.step)
        for name, value in params.items():
            if role(name) in ("", "shared"):
                everybody = memory.get(f"all/{name}", torch.zeros_like(value))
                own = memory.get(f"own/{name}", everybody)
                kept[f"own/{name}"] = own - everybody + (ctx.start[name] - value.detach()) / rate
                kept[f"news/{name}"] = (kept[f"own/{name}"] - own) / ctx.clients
        return kept

    def _reach(self, steps: int) -> float:
        """How far K steps go along a constant gradient, in units of η g."""
        m = self.momentum
        late = m * (1 - m**steps) / (1 - m) if self.reset == "round" else 0.0  # Σ m^k: what starting from rest costs
        return (steps - late) / (1 - m)

    def upload(self, memory: Memory) -> Memory:
        """(c_i⁺ − c_i) / N."""
        return {key: value for key, value in memory.items() if key.startswith("news/")}

    def server(self, params: Params, state: Memory, uploads: Sequence[tuple[float, Memory]]) -> tuple[Memory, Memory]:
        """Add c ← c + |S| Σ w_i (c_i⁺ − c_i) / N."""
        state, everybody = dict(state), sum(weight for weight, _ in uploads)
        for weight, upload in uploads:
            share = len(uploads) * weight / everybody if everybody else 0.0
            for key, value in upload.items():
                name = key.replace("news/", "all/", 1)
                state[name] = state.get(name, torch.zeros_like(value)) + share * value
        return state, state

    def receive(self, broadcast: Memory, memory: Memory) -> Memory:
        """Take over c."""
        return memory | broadcast
