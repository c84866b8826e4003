"""DynamicNet: one trunk that all tasks share, and for each task a small module with a gate over its units.

    x ─► trunk ─► features ─┬─► tasks.t0: hidden → ReLU → gates.t0 → out ─► logits of t0
                            └─► tasks.t1: …

With one shared head it is the literature's plain net: x ─► trunk ─► tasks.shared.out ─► logits of all.
With masks, a task sees the trunk through its own: gates.t0.trunk.<layer>.
A parameter's name carries its role, and a new task touches nothing that is there already.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import cast, overload

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

from fedcl import plugins, structure
from fedcl.config import Masks, Model
from fedcl.contracts import FedclError, role
from fedcl.models import _masks, _slices
from fedcl.models._masks import WeightMask, needs_task, own_rows, pruned
from fedcl.models._weights import load_weights
from fedcl.structure import Axis, Layer

__all__ = ["SHARED", "DynamicNet", "Gate", "SharedHead", "TaskModule", "WeightMask"]
__all__ += ["build", "close_gates", "load_weights", "needs_task", "own_rows", "pruned"]

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
    """One linear head for all tasks.

    Row c is the global class c, in whatever order classes are met; or, by place, the c-th class of every task.
    """

    closed: Tensor | None

    def __init__(self, width: int, outputs: int, bias: bool, by_place: bool = False) -> None:
        super().__init__()
        self.out = nn.Linear(width, outputs, bias=bias)
        self.by_place = by_place
        # Not persistent: it follows the stage that a client is in, and is neither sent nor saved.
        self.register_buffer("closed", None, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, width] → logits [B, classes], -inf for closed classes."""
        logits = cast(Tensor, self.out(features))
        return logits if self.closed is None else logits + self.closed

    def allow(self, classes: Collection[int] | None) -> None:
        """Restrict the softmax to some classes; None opens all."""
        if classes is None or self.by_place:
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
        masks: through which kind of masks a task sees the trunk.
        adapters: for "adaptive" masks, how many others' weights a task may use.
    """

    def __init__(
        self,
        trunk: nn.Module,
        weight_norm: bool = False,
        shared: SharedHead | None = None,
        masks: Masks = "none",
        adapters: int = 1,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.tasks = nn.ModuleDict({} if shared is None else {SHARED: shared})
        self.gates = nn.ModuleDict()
        self.weight_norm = weight_norm
        self.masks = masks
        self.adapters = adapters
        if masks == "units":
            _masks.chain(trunk)  # or the reason why not
        self._shared = shared is not None

    def add_task(self, task: str, classes: int, expansion_units: int) -> None:
        """Give a task its module and gate; with a shared head only its masks, if the net has any.

        Args:
            task: identity [a-z0-9_]+, not there yet.
            classes: outputs of the module, ≥ 1.
            expansion_units: hidden units of the module, ≥ 1, typically 8 to 128.

        Raises:
            FedclError: the identity cannot be a part of a parameter's name, or is there already.
        """
        if task in (self.gates if self._shared else self.tasks):
            raise FedclError(f"task id {task!r} has a module already; a task is added once")
        # ModuleDict takes no key that is also one of its attributes, such as "keys".
        if not re.fullmatch(r"[a-z0-9_]+", task) or hasattr(self.tasks, task):
            raise FedclError(f"task id {task!r}: use a-z, 0-9 and _, with a prefix, for example 't0'")
        if classes < 1 or expansion_units < 1:
            raise FedclError(
                f"task {task!r}: {classes} classes, model.expansion_units = {expansion_units}; both are at least 1"
            )
        like = next(self.parameters(), torch.empty(0))
        if not self._shared:
            module = TaskModule(cast(int, self.trunk.width), expansion_units, classes, self.weight_norm)
            self.tasks[task] = module.to(like).train(self.training)
        if self.masks != "none" or not self._shared:
            gate = nn.Module() if self._shared else Gate(expansion_units)
            if self.masks != "none":
                gate.add_module("trunk", _masks.build(self.trunk, self.masks, self.adapters))
            self.gates[task] = gate.to(like).train(self.training)

    def has(self, task: str) -> bool:
        """Whether the task has all that it needs."""
        return task in self.gates if self.masks != "none" or not self._shared else True

    @overload
    def forward(self, x: Tensor, task: str) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, task: list[str]) -> list[Tensor]: ...
    def forward(self, x: Tensor, task: str | list[str]) -> Tensor | list[Tensor]:
        """Samples x [B, *shape] → logits of the task [B, classes]; for several tasks, those of each."""
        if isinstance(task, str):
            return self.head(self.features(x, task), task)
        if self.masks == "slices":
            kinds = [_slices.key(cast(nn.ModuleDict, self.gates[one].trunk)) for one in task]
            once = {kind: self.features(x, one) for kind, one in dict(zip(kinds, task, strict=True)).items()}
            return [self.head(once[kind], one) for kind, one in zip(kinds, task, strict=True)]
        if self.masks != "none":
            return [self.head(self.features(x, one), one) for one in task]
        features = self.features(x)
        return [self.head(features, one) for one in task]

    def features(self, x: Tensor, task: str = "") -> Tensor:
        """Samples x [B, *shape] → the trunk's features [B, width], as the task sees them where the net has masks."""
        if self.masks == "none":
            return cast(Tensor, self.trunk(x))
        if task not in self.gates:
            raise FedclError(f"task {task!r} has no masks; there are those of: {', '.join(self.gates) or 'none yet'}")
        masks = cast(nn.ModuleDict, self.gates[task].trunk)
        return cast(Tensor, functional_call(self.trunk, _masks.seen(self.trunk, masks), (x,)))

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

    def chain(self) -> tuple[str, ...]:
        """The trunk's layers where each feeds only the next one.

        Raises:
            FedclError: it is not such a trunk.
        """
        return _masks.chain(self.trunk)

    def growable(self, tasks: Collection[str]) -> tuple[Layer, ...]:
        """What can grow: the trunk's layers, then the modules of these tasks where each has its own.

        A shared head reads the last of them as a layer reads the one below.
        """
        trunk = tuple(layer.under("trunk.") for layer in _slices.layers(self.trunk))
        if self._shared:
            reader = f"tasks.{SHARED}.out.weight"
            reads = [(Axis(reader, 1, layer.features),) if layer.features else layer.columns for layer in trunk]
            return tuple(replace(layer, columns=c, features=0) for layer, c in zip(trunk, reads, strict=True))
        names = [name for name, _ in self.named_parameters()]
        return (*trunk, *(structure.module(task, names) for task in tasks if task in self.tasks))

    def by_place(self) -> bool:
        """Whether an output is a class's place in its task, so that the task's identity is not needed."""
        return self._shared and cast(SharedHead, self.tasks[SHARED]).by_place

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
        counts = dict.fromkeys(["trunk", *self.tasks, *self.gates], 0)
        for name, value in self.named_parameters():
            counts[role(name) or "trunk"] += value.numel()
        return counts


def build(model: Model, shape: tuple[int, ...], outputs: int) -> DynamicNet:
    """The net that a config describes, without tasks; torch's global generator draws its weights.

    `model.weights` is not read here: only the server starts from a file, see `load_weights`.

    Args:
        model: the config's section.
        shape: of a sample.
        outputs: of a head that tasks share, see `Federation.outputs`.

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
    masks = "none" if model.masks == "auto" else model.masks
    if model.heads == "task":
        return DynamicNet(trunk, model.weight_norm, masks=masks, adapters=model.adapters)
    head = SharedHead(cast(int, trunk.width), outputs, model.head_bias, by_place=model.heads == "domain")
    return DynamicNet(trunk, shared=head, masks=masks, adapters=model.adapters)
