"""A tiny net of two tasks with linear heads, and contexts of it, for tests of methods one hook at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.func import functional_call

from fedcl.contracts import Batch, Context, Task

TASKS = (Task("t0", 0, (0, 1, 2)), Task("t1", 1, (3, 4)))


class Linear(torch.nn.Module):
    """x [B, 4] → trunk.w → relu → the head of a task; names as in a DynamicNet."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(*shape, generator=generator))

        self.trunk = torch.nn.ParameterDict({"w": draw(6, 4), "b": draw(6)})
        self.tasks = torch.nn.ParameterDict({"t0": draw(3, 6), "t1": draw(2, 6)})

    def features(self, x: torch.Tensor, task: str = "") -> torch.Tensor:
        return torch.relu(x.flatten(1) @ self.trunk["w"].T + self.trunk["b"])

    def forward(self, x: torch.Tensor, task: str) -> torch.Tensor:
        return self.features(x) @ self.tasks[task].T


def params(net: Linear) -> dict[str, torch.Tensor]:
    """By name, as methods see them."""
    return dict(net.named_parameters())


def context(net: Linear, task: int = 0, past: tuple[int, ...] = (), seed: int = 0, **changes: Any) -> Context:
    """What a method would be handed."""

    def call(named, x, name):
        return functional_call(net, dict(named), (x, name))

    def old(named, x, teacher=False, known=None):
        asked = [TASKS[index].id for index in past if known is None or TASKS[index].id in known]
        found = [call(named, x, name) for name in asked]
        return [value.detach() for value in found] if teacher else found

    def each(named, x, index, teacher=False, whole=False):
        padded = torch.full((2, len(x), 3), -torch.inf)
        padded = torch.stack([
            torch.cat([call(named, x, t.id), torch.full((len(x), 3 - len(t.classes)), -torch.inf)], 1) for t in TASKS
        ])  # fmt: skip
        found = padded[index, torch.arange(len(x))]
        return found.detach() if teacher else found

    made = Context(
        forward=lambda named, x: call(named, x, TASKS[task].id),
        net=net,
        task=TASKS[task],
        stage=task,
        client=0,
        lr=0.1,
        generator=torch.Generator().manual_seed(seed),
        past=tuple(TASKS[index] for index in past),
        old=old,
        each=each,
        outputs=3,
    )
    return replace(made, **changes)


def batch(n: int = 8, task: int = 0, seed: int = 1) -> Batch:
    """Random samples with labels as outputs of the task's head."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    return Batch(x, torch.randint(len(TASKS[task].classes), (n,), generator=generator))
