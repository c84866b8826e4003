"""SCAFFOLD: each client's steps are corrected by how its gradients differ from everybody's.

Karimireddy et al. 2020 (arXiv 1910.06378), algorithm 1: g ← g − c_i + c, and after K steps of rate η (option II)
c_i⁺ = c_i − c + (θ_r − θ_i) / (K η). On what tasks share, whose control variates begin anew with each stage. A hospital
sends Δ_i = c_i⁺ − c_i, all of c_i⁺ after its first round of the stage, and whether that was its first; the server

    c ← (M c + Σ n_i Δ_i) / (M + Σ_first n_i)

over who answered, with the weights n_i that their models are averaged with, and M the sum of the weights with which
hospitals joined. So c is the mean of the latest c_i of all that have joined the stage, weighted as models are, whoever
takes part in a round, and corrections cancel in the mean of all of them; a hospital that is alone has c = c_i, and is
not corrected. The server keeps M, and nothing of a single hospital, so that n_i must not differ from round to round:
streams are refused, as is what would clip Δ_i or put noise on it, of which c would never be rid.

Otherwise than the paper: its c is Σ c_i / N over all N clients, alike and with those that never answered, whose c_i is
0; here weights are those of the models (were they others, corrections would not cancel in their mean, and a hospital
of three samples would steer as much as one of three thousand), and who has not joined does not count. In its first
round of a stage a hospital has no c_i, and is not corrected; the paper's c_i starts at 0, and it is corrected by c.

Option II is derived for plain SGD. With momentum m, the k-th step from rest along one gradient g moves by
η (1 − m^k) / (1 − m) g, so a round that starts from rest is divided by η Σ_{k ≤ K} (1 − m^k) / (1 − m) here. Where the
optimiser's state is kept between rounds, by what that comes to in the long run, K η / (1 − m); the first rounds then
read as less than they were. Adam is refused; so are aggregators that are not linear: none looks at what c is of.
Works with the task known or not; keeps three copies of the trunk; sends one more, and gets one.

References:
    Karimireddy, Kale, Mohri, Reddi, Stich, Suresh. SCAFFOLD: Stochastic Controlled Averaging for Federated
        Learning. ICML 2020. arXiv 1910.06378.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from fedcl import plugins, structure
from fedcl.config import Config
from fedcl.contracts import Context, Memory, Method, Moment, Params, role


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
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1 or not 0 <= self.momentum < 1:
            raise ValueError(f"strength = {self.strength} must be in [0, 1], momentum = {self.momentum} in [0, 1)")
        if self.reset not in ("round", "task", "never"):
            raise ValueError(f"reset = {self.reset!r} must be one of round, task, never")

    def unfit(self, config: Config) -> str:
        """Control variates are read off the steps of SGD, and c is a mean."""
        if config.train.optimizer != "sgd":
            return "reads gradients off the steps: train.optimizer must be 'sgd'"
        if config.train.momentum != self.momentum:
            return f"needs methods.scaffold.momentum = {config.train.momentum}, as train.momentum is"
        if self.momentum and config.train.reset != self.reset:
            return f"needs methods.scaffold.reset = {config.train.reset!r}, as train.reset is"
        if config.train.stream != "offline":
            return "weighs hospitals by samples, which a stream changes with each round: take train.stream = 'offline'"
        rule = config.federation.aggregator
        if not getattr(plugins.load("aggregators", rule), "linear", True):
            return f"has a plain mean of what hospitals send: federation.aggregator must be linear, not {rule!r}"
        return ""

    def hooks(self) -> frozenset[str]:
        """None without a correction."""
        return super().hooks() if self.strength else frozenset()

    def begin_task(self, ctx: Context, params: Params, memory: Memory) -> Memory:
        """In a new stage forget c_i: it is taken for c until the client has one; in mid-stage all goes on."""
        if int(memory.get("stage", torch.tensor(-1))) == ctx.stage:
            return memory
        return {"stage": torch.tensor(ctx.stage)}

    def edit_grads(self, ctx: Context, params: Params, grads: Params, memory: Memory) -> tuple[Params, Memory]:
        """The gradient, g + (c − c_i)."""
        edited = dict(grads)
        for name in grads:
            own, all_ = memory.get(f"own/{name}"), memory.get(f"all/{name}")
            if own is not None and all_ is not None:
                edited[name] = grads[name] + self.strength * (all_ - own)
        return edited, memory

    def end_round(self, ctx: Context, params: Params, memory: Memory) -> Memory:
        """The new c_i⁺ = strength (c_i − c) + (θ_r − θ_i) / (K η), and by how much it changed.

        The steps went along g + strength (c − c_i), so that c_i⁺ is the mean of g whatever the strength.
        """
        kept = memory | {"first": torch.tensor(not any(key.startswith("own/") for key in memory))}
        rate = ctx.lr * self._reach(ctx.step)
        for name, value in params.items():
            if role(name) in ("", "shared"):
                new, own = (ctx.start[name] - value.detach()) / rate, memory.get(f"own/{name}")
                if own is not None:
                    new = new + self.strength * (own - memory[f"all/{name}"])
                kept |= {f"own/{name}": new, f"news/{name}": new if own is None else new - own}
        return kept

    def _reach(self, steps: int) -> float:
        """How far K steps go along a constant gradient, in units of η g."""
        m = self.momentum
        late = m * (1 - m**steps) / (1 - m) if self.reset == "round" else 0.0  # Σ m^k: what starting from rest costs
        return (steps - late) / (1 - m)

    def upload(self, memory: Memory) -> Memory:
        """Δ_i, and whether it is the first of the stage (0-d bool)."""
        return {key: value for key, value in memory.items() if key == "first" or key.startswith("news/")}

    def misfit(self, client: int, net: nn.Module, params: Params, upload: Memory) -> str:
        """All that trained of what tasks share."""
        shared = {f"news/{name}": value for name, value in params.items() if role(name) in ("", "shared")}
        return structure.unlike(upload, {"first": torch.tensor(True)} | shared)

    def server(self, params: Params, state: Memory, uploads: Sequence[tuple[float, Memory]]) -> tuple[Memory, Memory]:
        """C ← (M c + Σ n_i Δ_i) / (M + Σ_first n_i), M ← M + Σ_first n_i; everybody is told c."""
        sent = [(weight, upload) for weight, upload in uploads if upload]
        before = float(state.get("joined", torch.zeros(())))
        joined = before + sum(weight for weight, upload in sent if upload["first"])
        if joined == 0:
            return state, {}
        means = {key.replace("news/", "all/", 1): torch.zeros(()) for _, upload in sent for key in upload if "/" in key}
        means |= {key: value * (before / joined) for key, value in state.items() if key.startswith("all/")}
        for weight, upload in sent:
            for key, value in upload.items():
                if key.startswith("news/"):
                    name = key.replace("news/", "all/", 1)
                    means[name] = means[name] + value * (weight / joined)
        return means | {"joined": torch.tensor(joined, dtype=torch.float64)}, means

    def merged(self, moment: Moment, before: Params, params: Params, state: Memory) -> tuple[Params, Memory]:
        """Before a stage, forget c and who joined."""
        return params, {} if moment.round == 0 else state

    def receive(self, broadcast: Memory, memory: Memory) -> Memory:
        """Take over c."""
        return memory | broadcast
