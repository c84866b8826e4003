"""Close the least important units for a task, and let the rest learn on; what is closed is left out when extracted.

Importance of a unit with incoming weights w (the `share` with the smallest is closed):
`magnitude`: ‖w‖₂, which the server sees for itself. `gradient`: the mean over a round's steps of ‖∂L/∂w‖₂.
`fisher`: ½ Σ F w², the rise of the loss when the unit goes (LeCun et al. 1990), with the empirical Fisher F of the
batches of a round's steps. Hospitals send one number a unit and round for the last two. Masks are buffers that the
server decides: a task's own (`gates.<task>.mask` of its module, `gates.<task>.trunk.….open` of the trunk), so that no
other task's answers change by a bit. `fedcl.extract` gives the smaller net.

References:
    LeCun, Denker, Solla. Optimal Brain Damage. NeurIPS 1990.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from fedcl import plugins, structure
from fedcl.config import Config, Masks
from fedcl.contracts import Context, Memory, Method, Moment, Params, Step, role
from fedcl.models.dynamic_net import DynamicNet
from fedcl.structure import Layer


@dataclass(frozen=True)
class Prune(Method):
    """Shrink to the units that matter.

    Attributes:
        share: of all a task's units in a layer, how many are closed in the end, in [0, 1): no more in later stages.
        importance: `magnitude`, `gradient` or `fisher`.
        at: share of a stage's rounds after which to do so, in (0, 1]; what is left trains on in the rest.
        where: the current task's `module`, its view of the `trunk`, or `both`.
    """

    share: float = 0.3
    importance: Literal["magnitude", "gradient", "fisher"] = "magnitude"
    at: float = 0.7
    where: Literal["module", "trunk", "both"] = "both"
    sends: ClassVar[Literal["task", "round"]] = "round"
    masks: ClassVar[Masks] = "slices"

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or not 0 < self.at <= 1:
            raise ValueError(f"share = {self.share} must be in [0, 1), at = {self.at} in (0, 1]")
        if self.importance not in ("magnitude", "gradient", "fisher") or self.where not in ("module", "trunk", "both"):
            raise ValueError(f"importance = {self.importance!r} or where = {self.where!r} is not known")

    def hooks(self) -> frozenset[str]:
        """Hospitals have nothing to do for what the server sees in the weights."""
        client = {"track", "end_round", "upload", "server"}
        return super().hooks() - (client if self.importance == "magnitude" or self.share == 0 else set())

    def unfit(self, config: Config) -> str:
        """The masks are a task's own, and the server's to decide."""
        if config.model.heads != "task":
            return "closes units for one task; take model.heads = 'task'"
        merger = config.federation.merger
        if plugins.stays(config.federation.aggregator, merger):
            return f"decides masks at the server, but federation.merger = {merger!r} leaves them at their hospitals"
        if config.model.weight_norm:
            return "ranks units by their weights, which model.weight_norm holds as lengths and directions; take false"
        if self.where == "trunk" and config.model.name == "resnet18":
            return "closes nothing in the trunk of 'resnet18'; take growth.prune.where = 'module'"
        return ""

    def track(self, ctx: Context, step: Step, memory: Memory) -> Memory:
        """Add the step's importances, [units] for each layer."""
        sums = dict(memory)
        for layer in cast(DynamicNet, ctx.net).growable([ctx.task.id]):
            weight = layer.rows[0]
            if weight.name in step.grads:
                grad = _by_unit(step.grads[weight.name], layer)
                if self.importance == "gradient":
                    found = grad.norm(dim=1)
                else:
                    kept = _by_unit(step.after[weight.name], layer)
                    found = 0.5 * (grad * kept).square().sum(1)
                key = f"sum/{ctx.task.id}/{layer.name}"
                sums[key] = sums[key] + found if key in sums else found
        return sums

    def end_round(self, ctx: Context, params: Params, memory: Memory) -> Memory:
        """The mean over the round's steps, to be sent."""
        return {key.replace("sum/", "sent/", 1): value / ctx.step for key, value in memory.items() if "sum/" in key}

    def upload(self, memory: Memory) -> Memory:
        """One number a unit."""
        return {key.removeprefix("sent/"): value for key, value in memory.items() if key.startswith("sent/")}

    def misfit(self, client: int, net: nn.Module, params: Params, upload: Memory) -> str:
        """One number a unit of each layer that trained, for at least one task."""
        like: Memory = {}
        for task in {key.partition("/")[0] for key in upload} & set(map(role, params)) or {""}:
            found = [layer for layer in cast(DynamicNet, net).growable([task]) if layer.rows[0].name in params]
            like |= {f"{task}/{layer.name}": torch.empty(layer.units(params)) for layer in found}
        return structure.unlike(upload, like)

    def server(self, params: Params, state: Memory, uploads: Sequence[tuple[float, Memory]]) -> tuple[Memory, Memory]:
        """The hospitals' mean, weighted by samples."""
        mean: Memory = {}
        for key in sorted({key for _, upload in uploads for key in upload}):
            held = [(weight, upload[key]) for weight, upload in uploads if key in upload and weight > 0]
            if held:
                total = sum((weight * value for weight, value in held), torch.zeros(()))
                mean[key] = total / sum(weight for weight, _ in held)
        return state | mean, {}

    def merged(self, moment: Moment, before: Params, params: Params, state: Memory) -> tuple[Params, Memory]:
        """Close what matters least, once a stage."""
        if self.share == 0 or moment.round != max(1, round(self.at * moment.rounds)):
            return params, state
        closed = dict(params)
        for layer in moment.layers:
            trunk = layer.name.startswith("trunk.")
            if self.where == ("module" if trunk else "trunk"):
                continue
            for task in moment.current if trunk else [layer.name.split(".")[1]]:
                name = f"gates.{task}.trunk.{layer.mask}.open" if trunk else f"gates.{task}.mask"
                if name in params and len(params[name]):
                    closed[name] = self._closed(params[name], self._importance(task, layer, params, state))
        return closed, state

    def _importance(self, task: str, layer: Layer, params: Params, state: Memory) -> Tensor:
        """[units]; where no hospital has sent any (the first round), by magnitude."""
        found = state.get(f"{task}/{layer.name}")
        if found is None or len(found) != layer.units(params):
            found = _by_unit(params[layer.rows[0].name], layer).norm(dim=1)
        return found

    def _closed(self, mask: Tensor, importance: Tensor) -> Tensor:
        """The mask without the least important of the units that are still open; one always stays."""
        open_ = mask.nonzero()[:, 0]
        count = max(min(int(self.share * len(mask)) - (len(mask) - len(open_)), len(open_) - 1), 0)
        order = importance[: len(mask)][open_].argsort(stable=True)
        return mask.index_fill(0, open_[order[:count]], 0.0)


def _by_unit(weight: Tensor, layer: Layer) -> Tensor:
    """A layer's weights [units, …] as one row a unit."""
    block = layer.rows[0].block
    return weight.reshape(len(weight) // block, block * math.prod(weight.shape[1:]))  # of an empty adapter too
