"""DynamicNet: one trunk that all tasks share, and for each task a small module with a gate over its units.

    x ─► trunk ─► features ─┬─► tasks.t0: hidden → ReLU → gates.t0 → out ─► logits of t0
                            └─► tasks.t1: …

With one shared head it is the literature's plain net: x ─► trunk ─► tasks.shared.out ─► logits of all.
A parameter's name carries its role, and a new task touches nothing that is there already.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fedcl import plugins
from fedcl.config import Model
from fedcl.contracts import FedclError, role
from fedcl.models._weights import load_weights

__all__ = ["SHARED", "DynamicNet", "Gate", "SharedHead", "TaskModule", "build", "close_gates", "load_weights"]

SHARED = "shared"  # the name of the head that all tasks use
OPEN = 2.0  # a new gate's logit: σ(2) = 0.88 lets nearly all through and still has a slope


class Gate(nn.Module):
    """A task's mask over its module's units: y = x · σ(logits) · mask.

    The soft part σ(logits) ∈ (0, 1) is trained. The binary mask ∈ {0, 1} is a buffer that the server decides.
    """

    mask: Tensor

    def __init__(self, units: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.full((units,), OPEN))
        self.register_buffer("mask", torch.ones(units))

    def forward(self, x: Tensor) -> Tensor:
        """Activations x [..., units] → the same, gated."""
        return x * (torch.sigmoid(self.logits) * self.mask)


def close_gates(params: Mapping[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """Switch off for good the units whose gate is nearly shut: mask ← mask · [σ(logit) ≥ threshold].

    Args:
        params: all of a net's, by name; those of gates are `gates.<task>.logits` and `.mask`.
        threshold: in [0, 1); 0 closes none, typically 0.05 to 0.5. A new gate is at 0.88.
    """
    closed = dict(params)
    for name in params:
        if threshold > 0 and name.startswith("gates.") and name.endswith(".mask"):
            gate = torch.sigmoid(params[name.removesuffix("mask") + "logits"])
            closed[name] = params[name] * (gate >= threshold)
    return closed


class TaskModule(nn.Module):
    """One task's layers behind the trunk: width → units → classes."""

    def __init__(self, width: int, units: int, classes: int, weight_norm: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, units)
        self.out = nn.Linear(units, classes)
        if weight_norm:  # Salimans & Kingma 2016: w = g · v / ‖v‖, one g for each unit
            parametrizations.weight_norm(self.hidden)
            parametrizations.weight_norm(self.out)

    def forward(self, features: Tensor, gate: nn.Module) -> Tensor:
        """Features [B, width] → logits [B, classes]."""
        return cast(Tensor, self.out(gate(torch.relu(self.hidden(features)))))


class SharedHead(nn.Module):
    """One linear head for all tasks; row c is the global class c, in whatever order classes are met."""

    closed: Tensor | None

    def __init__(self, width: int, classes: int, bias: bool) -> None:
        super().__init__()
        self.out = nn.Linear(width, classes, bias=bias)
        # Not persistent: it follows the stage that a client is in, and is neither sent nor saved.
        self.register_buffer("closed", None, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, width] → logits [B, classes], -inf for closed classes."""
        logits = cast(Tensor, self.out(features))
        return logits if self.closed is None else logits + self.closed

    def allow(self, classes: Collection[int] | None) -> None:
        """Restrict the softmax to some classes; None opens all."""
        if classes is None:
            self.closed = None
            return
        outputs = self.out.out_features
        if not classes or not all(0 <= c < outputs for c in classes):
            raise ValueError(f"classes {sorted(classes)}: at least one, each from 0 to {outputs - 1}")
        closed = torch.full((outputs,), -math.inf)
        closed[list(classes)] = 0.0
        self.closed = closed.to(self.out.weight)


class DynamicNet(nn.Module):
    """A trunk with one module and gate per task, or with one head that all tasks share.

    Args:
        trunk: maps x [B, *shape] to features [B, width] and has the attribute `width`.
        weight_norm: weight normalisation of modules that are added from now on.
        shared: the head that all tasks use; None gives each task its own.
    """

    def __init__(self, trunk: nn.Module, weight_norm: bool = False, shared: SharedHead | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.tasks = nn.ModuleDict({} if shared is None else {SHARED: shared})
        self.gates = nn.ModuleDict()
        self.weight_norm = weight_norm
        self._shared = shared is not None

    def add_task(self, task: str, classes: int, expansion_units: int) -> None:
        """Give a task its module and gate; a net with a shared head needs neither and stays as it is.

        Args:
            task: identity [a-z0-9_]+, not there yet.
            classes: outputs of the module, ≥ 1.
            expansion_units: hidden units of the module, ≥ 1, typically 8 to 128.

        Raises:
            FedclError: the identity cannot be a part of a parameter's name, or is there already.
        """
        if self._shared:
            return
        if task in self.tasks:
            raise FedclError(f"task id {task!r} has a module already; a task is added once")
        # ModuleDict takes no key that is also one of its attributes, such as "keys".
        if not re.fullmatch(r"[a-z0-9_]+", task) or hasattr(self.tasks, task):
            raise FedclError(f"task id {task!r}: use a-z, 0-9 and _, with a prefix, for example 't0'")
        if classes < 1 or expansion_units < 1:
            raise FedclError(
                f"task {task!r}: {classes} classes, model.expansion_units = {expansion_units}; both are at least 1"
            )
        width = cast(int, self.trunk.width)
        module = TaskModule(width, expansion_units, classes, self.weight_norm)
        like = next(self.parameters(), torch.empty(0))
        self.tasks[task] = module.to(like).train(self.training)
        self.gates[task] = Gate(expansion_units).to(like).train(self.training)

    def forward(self, x: Tensor, task: str) -> Tensor:
        """Samples x [B, *shape] → logits of the task [B, classes]."""
        return self.head(self.features(x), task)

    def features(self, x: Tensor) -> Tensor:
        """Samples x [B, *shape] → what all tasks share [B, width]."""
        return cast(Tensor, self.trunk(x))

    def head(self, features: Tensor, task: str) -> Tensor:
        """Features [B, width] → logits of the task [B, classes].

        Raises:
            FedclError: the task has no module yet.
        """
        if self._shared:
            return cast(Tensor, self.tasks[SHARED](features))
        if task not in self.tasks:
            raise FedclError(f"task {task!r} has no module; there are: {', '.join(self.tasks) or 'none yet'}")
        return cast(Tensor, self.tasks[task](features, self.gates[task]))

    def owner(self, task: str) -> str:
        """Whose module the task uses: its own, or "shared"; the second part of its parameters' names."""
        return SHARED if self._shared else task

    def allow(self, classes: Collection[int] | None) -> None:
        """Close a shared head's other classes: their logits are -inf; None opens all.

        Raises:
            FedclError: the net has a module per task, whose outputs are the task's classes anyway.
        """
        if self._shared:
            cast(SharedHead, self.tasks[SHARED]).allow(classes)
        elif classes is not None:
            raise FedclError("model.heads = 'task' has no classes to mask; take model.heads = 'shared'")

    def sizes(self) -> dict[str, int]:
        """Parameters of the trunk, and of each task's module with its gate: {"trunk": n, "t0": n, …}."""
        counts = dict.fromkeys(["trunk", *self.tasks], 0)
        for name, value in self.named_parameters():
            counts[role(name) or "trunk"] += value.numel()
        return counts


def build(model: Model, shape: tuple[int, ...], classes: int) -> DynamicNet:
    """The net that a config describes, without tasks; torch's global generator draws its weights.

    `model.weights` is not read here: only the server starts from a file, see `load_weights`.

    Args:
        model: the config's section.
        shape: of a sample.
        classes: of the data set, the outputs of a shared head.

    Raises:
        FedclError: an option of the trunk is unknown or has no such value.
    """
    trunk_of = plugins.load("models", model.name)
    known = plugins.options(trunk_of, skip=1)
    for key in model.options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise FedclError(
                f"model.options.{key}: {model.name!r} has no such option; {hint}there are: {', '.join(known)}"
            )
    trunk: nn.Module = trunk_of(tuple(shape), **model.options)
    if model.heads == "task":
        return DynamicNet(trunk, model.weight_norm)
    return DynamicNet(trunk, shared=SharedHead(cast(int, trunk.width), classes, model.head_bias))
