"""Experience replay: train on old samples beside the new ones, from a small buffer in the hospital's own store.

Loss (1 − w) CE(new batch) + w CE(buffer batch), an average of two draws of one size (Chaudhry et al. 2019, arXiv
1902.10486; a sum would double the learning rate). Each stored sample is answered by its own task's head, which trains
along. Works with the task known or not. Keeps raw samples, which are never sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from fedcl.contracts import Batch, Context, Memory, Method, Params
from fedcl.methods import _buffer
from fedcl.models.dynamic_net import DynamicNet


@dataclass(frozen=True)
class Replay(Method):
    """Experience replay.

    Attributes:
        size: samples that a hospital keeps at most; 0 is no limit but `bytes`.
        bytes: that they take at most; 0 is no limit but `size`.
        keep: which: `reservoir`, each sample ever seen with the same chance; `balanced`, as many of each class;
            `herding`, those whose features' mean is nearest to the class's (Rebuffi et al. 2017, algorithm 4), chosen
            at the end of a task on the merged model.
        when: samples come in at the end of their `task`, so that all replay is of earlier tasks; or at each `step`, as
            a stream that passes once needs it.
        weight: w, share of the loss that is the buffer's, in [0, 1).
        batch: samples drawn a step; 0 is as many as new ones.
    """

    size: int = 200
    bytes: int = 0
    keep: Literal["reservoir", "balanced", "herding"] = "reservoir"
    when: Literal["task", "step"] = "task"
    weight: float = 0.5
    batch: int = 0
    needs_past: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _buffer.check(self.size, self.bytes)
        if self.keep not in ("reservoir", "balanced", "herding"):
            raise ValueError(f"keep = {self.keep!r} must be one of reservoir, balanced, herding")
        if self.when not in ("task", "step") or (self.when == "step" and self.keep == "herding"):
            raise ValueError(f"when = {self.when!r} must be task, or step without herding")
        if not 0 <= self.weight < 1 or self.batch < 0:
            raise ValueError(f"weight = {self.weight} must be in [0, 1), batch = {self.batch} ≥ 0")

    def hooks(self) -> frozenset[str]:
        """Samples come in by `observe` or by `end_task`; by neither at w = 0."""
        if self.weight == 0:
            return frozenset()
        return super().hooks() - {"observe" if self.when == "task" else "end_task"}

    def loss(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """The average of both, a 0-d tensor."""
        new = nn.functional.cross_entropy(ctx.forward(params, batch.x), batch.y)
        if "y" not in memory:
            return new
        drawn, there = _buffer.draw(ctx, memory, self.batch or len(batch.y))
        weight = self.weight * there.to(new)
        return (1 - weight) * new + weight * _buffer.loss(ctx, params, drawn)

    def observe(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Memory:
        """Offer samples to the buffer."""
        offer = _buffer.reservoir if self.keep == "reservoir" else _buffer.balanced
        return offer(ctx, _buffer.rows(ctx, batch), memory, self.size, self.bytes)

    def end_task(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Memory:
        """Offer all of the task's samples."""
        return self._herd(ctx, data, memory) if self.keep == "herding" else self.observe(ctx, params, data, memory)

    def _herd(self, ctx: Context, data: Batch, memory: Memory) -> Memory:
        """As many of each class as there is room for, the most typical first, old ones cut to the same number."""
        new = _buffer.rows(ctx, data)
        groups = [{key: value[data.y == label] for key, value in new.items()} for label in sorted(set(data.y.tolist()))]
        features = cast(DynamicNet, ctx.net).features
        old = _split(memory, skip=ctx.task.index)
        share = _buffer.room(self.size, self.bytes, new) // (len(old) + len(groups))
        with torch.no_grad():
            fresh = [_herded(group, features(group["x"], ctx.task.id), share) for group in groups]
        kept = [{key: value[:share] for key, value in group.items()} for group in old] + fresh
        held = {key: torch.cat([group[key] for group in kept]) for key in new}
        count = torch.tensor(len(held["y"]))
        return held | {"filled": count, "offered": count}


def _herded(group: dict[str, Tensor], features: Tensor, share: int) -> dict[str, Tensor]:
    """A class's first samples in the order of Rebuffi et al.: each brings their mean nearest to the class's."""
    points = nn.functional.normalize(features.flatten(1).double())
    mean, total, left = points.mean(0), torch.zeros_like(points[0]), torch.zeros_like(points[:, 0])
    order: list[int] = []
    for k in range(1, min(share, len(points)) + 1):
        order.append(int(((mean - (total + points) / k).square().sum(1) + left).argmin()))
        total = total + points[order[-1]]
        left[order[-1]] = torch.inf
    return {key: value[order] for key, value in group.items()}


def _split(memory: Memory, skip: int) -> list[dict[str, Tensor]]:
    """A buffer by task and class, in its order, without the task that is herded anew."""
    if "y" not in memory:
        return []
    keys = {(int(t), int(y)) for t, y in zip(memory["task"], memory["y"], strict=True) if int(t) != skip}
    masks = [(memory["task"] == task) & (memory["y"] == label) for task, label in sorted(keys)]
    return [{key: memory[key][mask] for key in ("x", "y", "task")} for mask in masks]
