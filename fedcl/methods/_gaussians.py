"""A normal distribution of each class's samples: a stand-in for them that keeps no single one."""

from __future__ import annotations

import torch
from torch import Tensor

from fedcl.contracts import Batch, Context, Memory


def fit(ctx: Context, data: Batch, rank: int) -> Memory:
    """Mean [*shape], leading directions [rank, D] times their deviations, and what is left in all, of each class."""
    fitted: Memory = {}
    for label in sorted(set(data.y.tolist())):
        samples = data.x[data.y == label]
        x = samples.flatten(1)
        n, inputs = x.shape
        mean, found = x.mean(0), min(rank, n - 1, x.shape[1])
        _, scale, directions = torch.linalg.svd(x - mean, full_matrices=False)
        variance = scale.square() / max(n - 1, 1)
        rest = variance[found:].sum() / max(inputs - found, 1)
        along = torch.zeros(rank, inputs, device=x.device)
        along[:found] = (variance[:found] - rest).clamp_min(0).sqrt()[:, None] * directions[:found]
        parts = {"mean": mean.view(samples.shape[1:]), "along": along, "rest": rest.sqrt()}
        fitted |= {f"class/{ctx.task.index}-{label}/{key}": value for key, value in parts.items()}
    return fitted


def draw(ctx: Context, memory: Memory, count: int) -> tuple[Tensor, Tensor]:
    """Samples [count, *shape] of the old classes' distributions, each class with the same chance, and their tasks."""
    classes = sorted({key.split("/")[1] for key in memory if key.startswith("class/")})
    chosen = torch.randint(len(classes), (count,), generator=ctx.generator).tolist()
    rows = []
    for name in (classes[k] for k in chosen):
        mean, along, rest = (memory[f"class/{name}/{key}"] for key in ("mean", "along", "rest"))
        z = torch.randn(len(along) + mean.numel(), generator=ctx.generator).to(mean)
        rows.append(mean + (z[: len(along)] @ along + rest * z[len(along) :]).view_as(mean))
    task = torch.tensor([int(classes[k].split("-")[0]) for k in chosen], device=rows[0].device)
    return torch.stack(rows), task
