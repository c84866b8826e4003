"""PackNet: prune what the task can do without, fix the rest, and give what was pruned to the next task.

Mallya & Lazebnik 2018. Each task trains all weights of the trunk that no earlier task owns; then, for the last rounds
of its stage, only the largest of them in each layer, the others being zero and free again. A task sees its own and
earlier tasks' weights, so nothing is forgotten, bit for bit: owned weights are put back after each step, which also
stops momentum and weight decay. Biases and normalisation belong to the first stage. The server prunes the merged
model, so that all hospitals have one mask. Needs the task's identity; keeps no data; sends a byte a weight beside
parameters, once a round.

References:
    Mallya, Lazebnik. PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning. CVPR 2018. arXiv
        1711.05769.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedcl import plugins
from fedcl.config import Config, Masks
from fedcl.contracts import Context, Memory, Method, Moment, Params, Step, role
from fedcl.models.dynamic_net import WeightMask, needs_task, own_rows

_OWNER = "owner"


@dataclass(frozen=True)
class PackNet(Method):
    """PackNet.

    Attributes:
        keep: share of the free weights of each layer that a task keeps, in (0, 1); the paper's 0.25 to 0.5.
        retrain: share of a stage's rounds that train what was kept, in (0, 1); at least one round.
    """

    keep: float = 0.4
    retrain: float = 0.4
    masks: ClassVar[Masks] = "weights"
    records: ClassVar[Literal["none"]] = "none"
    needs_before: ClassVar[bool] = True
    edits_last: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (0 < self.keep < 1 and 0 < self.retrain < 1):
            raise ValueError(f"keep = {self.keep} and retrain = {self.retrain} must be between 0 and 1")

    def unfit(self, config: Config) -> str:
        """It prunes between rounds, and a task's mask is of no use to who does not know the task."""
        if config.train.rounds < 2:
            return "prunes between rounds: train.rounds must be at least 2"
        rule = config.federation.aggregator
        if config.train.reset == "never" and getattr(plugins.load("aggregators", rule), "inertia", False):
            return (
                f"fixes weights, which the momentum of {rule!r} would move later: take train.reset = 'round' or 'task'"
            )
        return needs_task(config.model, "weights")

    def merged(self, moment: Moment, before: Params, params: Params, state: Memory) -> tuple[Params, Memory]:
        """Give a new task what is free, or prune."""
        owners = [name for name in params if _place(name)[2] == _OWNER and _place(name)[0] in moment.current]
        if moment.round == 0:
            return params | {name: self._given(name, moment, params) for name in owners}, state
        if moment.round != max(1, moment.rounds - max(1, round(self.retrain * moment.rounds))):
            return params, state
        edited, kept = dict(params), dict[str, Tensor]()
        for name in owners:
            weight, free = f"trunk.{_place(name)[1]}.weight", params[name] == WeightMask.FREE
            chosen = self._largest(params[weight], free)
            edited[name] = torch.where(free & ~chosen, WeightMask.UNUSED, params[name])
            kept[weight] = kept.get(weight, torch.zeros_like(free)) | chosen
            edited[weight] = torch.where(free, 0.0, edited[weight])
        for weight, chosen in kept.items():  # two tasks of one stage may keep the same
            edited[weight] = torch.where(chosen, params[weight], edited[weight])
        return edited, state

    def _given(self, name: str, moment: Moment, params: Params) -> Tensor:
        """A task's mask as its stage begins: what an earlier task owns is taken."""
        owner, task = params[name], _place(name)[0]
        if task in moment.past:  # it comes back: what it owns is fixed by now
            return torch.where(owner == WeightMask.FREE, WeightMask.TAKEN, owner)
        taken = torch.zeros_like(owner, dtype=torch.bool)
        for past in moment.past:
            taken |= params[name.replace(f".{task}.", f".{past}.", 1)] != WeightMask.UNUSED
        return torch.where(taken, WeightMask.TAKEN, owner)

    def edit_update(self, ctx: Context, step: Step, memory: Memory) -> tuple[Params, Memory]:
        """Put back what is not the task's own."""
        edited = dict(step.after)
        for name, value in step.after.items():
            if role(name) == "":
                layer, _, kind = name.removeprefix("trunk.").rpartition(".")
                owner = ctx.buffers.get(f"gates.{ctx.task.id}.trunk.{layer.replace('.', '-')}.{_OWNER}")
                if kind == "weight" and owner is not None:
                    edited[name] = torch.where(owner == WeightMask.FREE, value, step.before[name])
                elif ctx.stage > 0:
                    edited[name] = step.before[name]
        return edited | own_rows(ctx.task, step), memory

    def _largest(self, weight: Tensor, free: Tensor) -> Tensor:
        """Which weights are among the largest `keep` of the free ones, by magnitude."""
        size = weight.abs().masked_fill(~free, -1.0).flatten()
        count = int(torch.ceil(self.keep * free.sum()))
        chosen = torch.zeros_like(size, dtype=torch.bool)
        chosen[size.topk(count).indices] = True
        return chosen.view_as(free)


def _place(name: str) -> tuple[str, str, str]:
    """(task, layer, kind) of a mask's name `gates.<task>.trunk.<layer>.<kind>`; empty for other names."""
    parts = name.split(".")
    if len(parts) != 5 or parts[0] != "gates" or parts[2] != "trunk":
        return "", "", ""
    return parts[1], parts[3].replace("-", "."), parts[4]
