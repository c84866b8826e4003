"""How a task sees the trunk: a mask over units or weights, the slice that it met, or weights of its own.

Masks act on parameters, never on activations: a unit behind a gate m ∈ [0, 1] is a layer whose row of weights, and
whose bias, are multiplied by m (the same thing for ReLU, since max(0, m h) = m max(0, h)).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from fedcl.config import Masks, Model
from fedcl.contracts import FedclError, Params, Step, Task, role
from fedcl.models import _slices

SCALE = 400.0  # s_max of HAT, where nobody says another


class UnitMask(nn.Module):
    """One gate a unit, σ(scale · logits): soft while it is trained, as good as binary at a large scale.

    Serrà et al. 2018 (HAT), eq. 1. `taken` is the largest gate of all earlier tasks, which the server writes.
    """

    taken: Tensor
    scale: Tensor

    def __init__(self, units: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(units))
        self.register_buffer("taken", torch.zeros(units))
        self.register_buffer("scale", torch.tensor(SCALE))

    def forward(self, values: Tensor) -> Tensor:
        """A layer's weight [units, …] or bias [units], gated."""
        return values * torch.sigmoid(self.scale * self.logits).view(-1, *[1] * (values.dim() - 1))


class WeightMask(nn.Module):
    """Who owns a weight: UNUSED by the task, its own (FREE until it is fixed), or TAKEN by an earlier task."""

    UNUSED, FREE, TAKEN = 0, 1, 2
    owner: Tensor

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.register_buffer("owner", torch.full(shape, self.FREE, dtype=torch.uint8))

    def forward(self, values: Tensor) -> Tensor:
        """A layer's weight, zero where the task does not use it; its bias as it is."""
        return values * (self.owner != self.UNUSED) if values.dim() > 1 else values


class AdaptiveMask(nn.Module):
    """A layer as a task makes it of the shared one: B ⊙ σ(logits) + A + Σ_j α_j A_j, and a bias of its own.

    Yoon et al. 2021 (FedWeIT), eq. 2: σ(logits) [units] is the task's mask m, `adaptive` its A, `attention` its α over
    what it `received` of others. In evaluation mode, what of A is not above `threshold` in size counts as 0.
    """

    received: Tensor
    threshold: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, adapters: int) -> None:
        super().__init__()
        shape, units = layer.weight.shape, len(layer.weight)
        self.logits = nn.Parameter(torch.randn(units) / units**0.5)
        self.adaptive = nn.Parameter(torch.zeros(shape))
        self.attention = nn.Parameter(torch.zeros(adapters))
        self.bias = None if layer.bias is None else nn.Parameter(torch.zeros(units))
        self.register_buffer("received", torch.zeros(adapters, *shape))
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        """The shared weight [units, …] → the task's; the shared bias [units] → the task's own."""
        if values.dim() == 1:
            return values if self.bias is None else self.bias
        own = self.adaptive if self.training else pruned(self.adaptive, self.threshold)
        gate = torch.sigmoid(self.logits).view(-1, *[1] * (values.dim() - 1))
        return values * gate + own + (self.attention @ self.received.flatten(1)).view_as(own)


Mask = UnitMask | WeightMask | AdaptiveMask


def pruned(values: Tensor, threshold: Tensor | float) -> Tensor:
    """The values, with exact zeros where they are at most the threshold in size."""
    return values * (values.abs() > threshold)


def build(trunk: nn.Module, kind: Masks, adapters: int = 1) -> nn.ModuleDict:
    """Fresh masks of one task, by layer; a key is the layer's name with "-" for ".".

    Raises:
        FedclError: the trunk is no plain chain of layers, and masks over units need one.
    """
    if kind == "none":
        return nn.ModuleDict()
    if kind == "slices":
        return _slices.build(trunk)
    if kind == "units":
        gated = {name: cast(nn.Linear, trunk.get_submodule(name)) for name in chain(trunk)}
        return nn.ModuleDict({key(name): UnitMask(len(layer.weight)) for name, layer in gated.items()})
    layers = {name: layer for name, layer in trunk.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    if kind == "adaptive":
        return nn.ModuleDict({key(name): AdaptiveMask(layer, adapters) for name, layer in layers.items()})
    return nn.ModuleDict({key(name): WeightMask(layer.weight.shape) for name, layer in layers.items()})


def chain(trunk: nn.Module) -> tuple[str, ...]:
    """The names of a trunk's layers where each feeds only the next one.

    Raises:
        FedclError: it is not such a trunk.
    """
    found: Callable[[], tuple[str, ...]] | None = getattr(trunk, "chain", None)
    if found is None:
        raise FedclError(
            f"masks over units need layers that each feed only the next, which {type(trunk).__name__} has not; "
            "take model.name = 'mlp' or 'cnn'"
        )
    return found()


def seen(trunk: nn.Module, masks: nn.ModuleDict) -> dict[str, Tensor]:
    """The trunk's parameters as a task sees them; those that its masks leave alone are not among them."""
    if any(isinstance(mask, _slices.Slice) for mask in masks.values()):
        return _slices.seen(trunk, masks)
    view = {}
    for name, mask in masks.items():
        layer = name.replace("-", ".")
        for kind, value in trunk.get_submodule(layer).named_parameters(recurse=False):
            view[f"{layer}.{kind}"] = cast(Tensor, mask(value))
    return view


def needs_task(model: Model, kind: Masks) -> str:
    """Why masks of a kind cannot work with this net; "" if they can."""
    if model.masks not in ("auto", kind):
        return f"sees the trunk through masks: model.masks must be 'auto' or {kind!r}"
    if model.heads == "domain" or (model.heads == "shared" and model.mask != "task"):
        return "needs the task's identity: take model.heads = 'task', or 'shared' with model.mask = 'task'"
    return ""


def own_rows(task: Task, step: Step) -> Params:
    """A shared head after a step in which only the outputs of the task's own classes may move."""
    moved = {}
    for name, after in step.after.items():
        if role(name) == "shared":
            own = torch.zeros(len(after), dtype=torch.bool, device=after.device)
            own[list(task.classes)] = True
            moved[name] = torch.where(own.view(-1, *[1] * (after.dim() - 1)), after, step.before[name])
    return moved


def key(layer: str) -> str:
    """A layer's name as a part of a parameter's name."""
    return layer.replace(".", "-")
