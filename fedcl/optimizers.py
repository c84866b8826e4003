"""The three optimisers of a client, and their state as a part of the client's memory."""

from __future__ import annotations

import inspect
import sys

import torch
from torch import Tensor

from fedcl.config import Train
from fedcl.contracts import Memory, Params

_PREFIX = "optimizer/"


def build(train: Train, params: list[Tensor], lr: float, several: bool = False) -> torch.optim.Optimizer:
    """A fresh optimiser.

    Args:
        train: kind, momentum, weight decay.
        params: what it moves.
        lr: learning rate.
        several: whether a step may leave some parameters without a gradient (several tasks at once). The fused
            kernels, which take one pass over all parameters, want momentum for all of them or none; so they do not
            go with a state that is kept either, as a new task's parameters have none yet.
    """
    _without_compiler()
    fused = not several and train.reset == "round"
    if train.optimizer == "sgd":
        return torch.optim.SGD(params, lr=lr, momentum=train.momentum, weight_decay=train.weight_decay, fused=fused)
    kind = torch.optim.Adam if train.optimizer == "adam" else torch.optim.AdamW
    return kind(params, lr=lr, weight_decay=train.weight_decay, fused=fused)


def step(optimizer: torch.optim.Optimizer) -> None:
    """One step, inside `torch.no_grad()`: the class's own `step` without the profiler's hooks around it."""
    inspect.unwrap(type(optimizer).step)(optimizer)


def _without_compiler() -> None:
    """Spare a process torch's compiler (2 s, 150 MB), which an optimiser imports only to switch it off for itself.

    Where torch no longer does that, this does nothing.
    """
    inner = getattr(torch.optim.Optimizer.add_param_group, "__wrapped__", None)
    if inner is not None and "torch._dynamo" not in sys.modules:
        inner.__dynamo_disable = inner


def recall(optimizer: torch.optim.Optimizer, params: Params, memory: Memory) -> None:
    """Give the optimiser the state that `remember` kept."""
    for name, parameter in params.items():
        start = f"{_PREFIX}{name}/"
        state = {key.removeprefix(start): value for key, value in memory.items() if key.startswith(start)}
        if state:
            optimizer.state[parameter] = {key: value.clone().to(parameter.device) for key, value in state.items()}


def remember(optimizer: torch.optim.Optimizer, params: Params, memory: Memory) -> Memory:
    """The memory with the optimiser's state in it, keys `optimizer/<parameter>/<moment>`."""
    kept = dict(memory)  # also the state of what is not trained now: its task may come back
    for name, parameter in params.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                kept[f"{_PREFIX}{name}/{key}"] = value.detach().clone()
    return kept
