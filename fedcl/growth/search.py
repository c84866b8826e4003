"""Expansion as a choice that is learned: candidate units behind relaxed gates, at a price; then hardened.

At a stage's start the task's module gets `candidates` units more, each behind a gate σ(e) that starts half open, with
outgoing weights of zero. Training adds λ Σ_j σ(e_j) c over the candidates, c the share of the module's parameters
that a unit costs: a gate opens further only where the loss gains more than that (a continuous relaxation of the
choice, as in DARTS, Liu et al. 2019). After a share `until` of the stage's rounds those below `keep` are taken out of
the net for good, and the others go on as any unit. The price is paid where the task's loss is: at every hospital.
Candidates are known by being a module's last units, so no other rule may widen modules.

References:
    Liu, Simonyan, Yang. DARTS: Differentiable Architecture Search. ICLR 2019. arXiv 1806.09055.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedcl import plugins
from fedcl.config import Config, Masks
from fedcl.contracts import Batch, Context, Memory, Method, Moment, Params
from fedcl.structure import LOST, drop, first, widen


@dataclass(frozen=True)
class Search(Method):
    """Growth by a priced choice.

    Attributes:
        candidates: units that a module may gain in a stage, ≥ 1.
        price: λ, ≥ 0, in units of the loss for doubling the module; typically 0.01 to 1.
        until: share of the stage's rounds after which the choice is made, in (0, 1).
        keep: the gate σ(e) that a candidate must have reached, in (0, 1); they start at 0.5.
    """

    candidates: int = 32
    price: float = 0.1
    until: float = 0.5
    keep: float = 0.5
    masks: ClassVar[Masks] = "slices"

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.price < 0 or not 0 < self.until < 1 or not 0 < self.keep < 1:
            raise ValueError(
                f"candidates = {self.candidates} must be ≥ 1, price = {self.price} ≥ 0, "
                f"until = {self.until} and keep = {self.keep} in (0, 1)"
            )

    def unfit(self, config: Config) -> str:
        """The candidates are units of a task's own module, which the server widens."""
        if config.model.heads != "task":
            return "searches for units of a task's module; take model.heads = 'task'"
        merger = config.federation.merger
        if plugins.stays(config.federation.aggregator, merger):
            return f"needs modules at the server, but federation.merger = {merger!r} leaves them at their hospitals"
        if "threshold" in plugins.split(config.model.growth) and (
            config.growth.get("threshold", {}).get("where", "module") != "trunk"
        ):
            return "chooses among a module's last units, which must be its own; take growth.threshold.where = 'trunk'"
        return "" if config.train.rounds > 1 else "chooses in the middle of a stage; take train.rounds of at least 2"

    def penalty(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """λ Σ_j σ(e_j) / units while the choice is open, a 0-d tensor."""
        gates = params.get(f"gates.{ctx.task.id}.logits")
        if gates is None or ctx.round >= self._end(ctx.rounds):
            return batch.x.new_zeros(())
        open_ = torch.sigmoid(gates[-self.candidates :])
        return self.price * open_.sum() / max(len(gates) - self.candidates, 1)

    def merged(self, moment: Moment, before: Params, params: Params, state: Memory) -> tuple[Params, Memory]:
        """Before a stage add the candidates; at the end of the search take away those that were not chosen."""
        for layer in (layer for layer in moment.layers if layer.name.startswith("tasks.")):
            task = layer.name.split(".")[1]
            gates = f"gates.{task}.logits"
            if moment.round == 0:
                params = widen(params, layer, self.candidates, moment.current, moment.generator)
                params[gates][-self.candidates :] = 0.0
            elif moment.round == self._end(moment.rounds):
                chosen = torch.ones(len(params[gates]), dtype=torch.bool)
                chosen[-self.candidates :] = torch.sigmoid(params[gates][-self.candidates :]) > self.keep
                if not bool(chosen.all()):
                    params, state = drop(params, layer, chosen, ()), state | {LOST + layer.name: first(chosen)}
        return params, state

    def _end(self, rounds: int) -> int:
        return min(max(1, math.ceil(self.until * rounds)), rounds - 1)
