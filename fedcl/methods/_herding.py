"""Herding: the samples of a class whose features' mean is nearest to the class's (Rebuffi et al. 2017, algorithm 4)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fedcl.contracts import Batch, Context, Memory
from fedcl.methods import _buffer
from fedcl.models.dynamic_net import DynamicNet


def herd(ctx: Context, data: Batch, memory: Memory, size: int, bytes: int) -> Memory:
    """As many of each class as there is room for, the most typical first, old ones cut to the same number."""
    new = _with_earlier(_buffer.rows(ctx, data), memory, ctx.task.index)
    groups = [{k: value[new["y"] == label] for k, value in new.items()} for label in sorted(set(new["y"].tolist()))]
    features = cast(DynamicNet, ctx.net).features
    old = _split(memory, skip=ctx.task.index)
    each, more = divmod(_buffer.room(size, bytes, new), len(old) + len(groups))
    shares = [each + (place < more) for place in range(len(old) + len(groups))]
    kept = [{key: value[:share] for key, value in group.items()} for group, share in zip(old, shares, strict=False)]
    with torch.no_grad():
        for group, share in zip(groups, shares[len(old) :], strict=True):
            kept.append(_herded(group, features(group["x"], ctx.task.id), share))
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


def _with_earlier(new: dict[str, Tensor], memory: Memory, task: int) -> dict[str, Tensor]:
    """A task's samples, and those kept of it that are not among them: of a stream, an earlier part's."""
    if "y" not in memory:
        return new
    there = {sample.cpu().numpy().tobytes() for sample in new["x"]}
    kept = zip(memory["x"], memory["task"].tolist(), strict=True)
    rows = [r for r, (x, t) in enumerate(kept) if t == task and x.cpu().numpy().tobytes() not in there]
    return {key: torch.cat([memory[key][rows], value]) for key, value in new.items()}


def _split(memory: Memory, skip: int) -> list[dict[str, Tensor]]:
    """A buffer by task and class, in its order, without the task that is herded anew."""
    if "y" not in memory:
        return []
    keys = {(int(t), int(y)) for t, y in zip(memory["task"], memory["y"], strict=True) if int(t) != skip}
    masks = [(memory["task"] == task) & (memory["y"] == label) for task, label in sorted(keys)]
    return [{key: memory[key][mask] for key in ("x", "y", "task")} for mask in masks]
