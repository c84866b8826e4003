"""What of a net can grow, and how tensors follow: a pure function of parameters by name.

Units are only ever appended. So what an earlier task has met of a layer is its first units, the same as before; and
whatever somebody keeps by parameter (importances, anchors, moments) goes on with zeros for what is new. Where units of
the current stage are taken away, those behind them move up: what is kept of these goes too, and starts from zeros.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Params = dict[str, Tensor]
Kind = Literal["units", "heads", "adapter"]

# A rule that takes units away (`drop`) leaves in its state, under this and the layer's name, the first of them.
LOST = "lost/"
SAID = "lost-"  # before the number of an announcement of it; no method has a "-" in its name there


@dataclass(frozen=True)
class Axis:
    """Where a tensor has its entries of a layer's units: `block` of them for each, one unit after the other."""

    name: str
    dim: int
    block: int = 1
    # What new entries are: as a layer of this fan-in starts, a constant, or (None) the norm of the weight's new rows.
    start: Literal["uniform"] | float | None = 0.0


@dataclass(frozen=True)
class Layer:
    """Units that can be added to: the tensors that make them, and those that read them."""

    name: str  # of the layer, as its parameters are named: "trunk.layers.0"
    kind: Kind
    rows: tuple[Axis, ...]  # the first is the weight
    columns: tuple[Axis, ...] = ()
    features: int = 0  # of what tasks' own modules read that a unit makes; 0 where `columns` say all who read it

    @property
    def mask(self) -> str:
        """The layer's name as a part of a mask's name."""
        return self.name.removeprefix("trunk.").replace(".", "-")

    def units(self, params: Mapping[str, Tensor]) -> int:
        """How many there are."""
        axis = self.rows[0]
        return params[axis.name].shape[axis.dim] // axis.block

    def under(self, prefix: str) -> Layer:
        """The same with longer names."""

        def longer(axes: Sequence[Axis]) -> tuple[Axis, ...]:
            return tuple(Axis(f"{prefix}{a.name}", a.dim, a.block, a.start) for a in axes)

        return Layer(f"{prefix}{self.name}", self.kind, longer(self.rows), longer(self.columns), self.features)


def rows(name: str, *kinds: str, block: int = 1) -> tuple[Axis, ...]:
    """The tensors that make a plain layer's units: its weight and its bias."""
    return tuple(Axis(f"{name}.{kind}", 0, block, "uniform") for kind in kinds)


def module(task: str, names: Collection[str]) -> Layer:
    """The hidden units of a task's own module, with their gates."""
    hidden, out = f"tasks.{task}.hidden", f"tasks.{task}.out"
    gates = (Axis(f"gates.{task}.logits", 0, start=2.0), Axis(f"gates.{task}.mask", 0, start=1.0))
    inner = "parametrizations.weight.original"
    if f"{hidden}.{inner}1" in names:  # weight normalisation: direction and length
        made = (*rows(hidden, f"{inner}1"), Axis(f"{hidden}.{inner}0", 0, start=None), *rows(hidden, "bias"))
        return Layer(hidden, "units", (*made, *gates), (Axis(f"{out}.{inner}1", 1),))
    return Layer(hidden, "units", (*rows(hidden, "weight", "bias"), *gates), (Axis(f"{out}.weight", 1),))


def widen(params: Params, layer: Layer, units: int, tasks: Iterable[str], generator: torch.Generator) -> Params:
    """Append units that nobody reads yet: no output changes but by the order of a wider sum.

    Args:
        params: all of a group's.
        layer: which.
        units: how many more, ≥ 0.
        tasks: current tasks, which see them from now on; to all others they are not there. Units that others got
            while a task was away stay closed for it: what those say to the next layer would change its answers.
        generator: draws what makes the new units, as a fresh layer's are drawn.
    """
    grown, weight = dict(params), params[layer.rows[0].name]
    bound = 1 / math.sqrt(max(weight[0].numel(), 1)) if len(weight) else 1 / math.sqrt(max(weight.shape[1:].numel(), 1))
    for axis in layer.rows:
        old = params[axis.name]
        shape = list(old.shape)
        shape[axis.dim] = units * axis.block
        if axis.start == "uniform":
            fresh = (2 * torch.rand(shape, generator=generator) - 1).to(old) * bound
        elif axis.start is None:
            more = grown[layer.rows[0].name][len(weight) :]
            fresh = more.flatten(1).norm(dim=1).view(shape)
        else:
            fresh = torch.full(shape, axis.start).to(old)
        grown[axis.name] = torch.cat([old, fresh], axis.dim)
    for axis in layer.columns:
        grown[axis.name] = _longer(grown[axis.name], axis.dim, units * axis.block)
    for task in tasks:
        grown |= follow(grown, [layer], task, units)
    return grown


def follow(params: Params, layers: Iterable[Layer], task: str, last: int | None = None) -> Params:
    """What of a task's module and masks changes so that they are as long as the trunk's layers are now.

    Args:
        params: all of a group's.
        layers: of the trunk.
        task: whose; without masks of these layers nothing changes.
        last: of the units that the task has not met, how many it is to use, ≥ 0, the last ones; None opens all.
    """
    changed: Params = {}
    for layer in layers:
        mask, trains = masks(task, layer)
        if mask not in params:
            continue
        more = layer.units(params) - len(params[mask])
        if more <= 0:
            continue
        missed = 0 if last is None else max(more - last, 0)
        changed[mask] = _longer(_longer(params[mask], 0, missed), 0, more - missed, 1.0)
        changed[trains] = _longer(params[trains], 0, more, 1.0)
        if layer.features:
            for name in reader(task, params):
                changed[name] = _longer(params[name], 1, more * layer.features)
    return changed


def masks(task: str, layer: Layer) -> tuple[str, str]:
    """The names of what a task has met of a layer of the trunk: which units it uses, and which of them train."""
    return f"gates.{task}.trunk.{layer.mask}.open", f"gates.{task}.trunk.{layer.mask}.trains"


def reader(task: str, names: Collection[str]) -> list[str]:
    """The weight with which a task's module reads the trunk's features, if the module is here."""
    start = f"tasks.{task}.hidden."
    return [n for n in (f"{start}weight", f"{start}parametrizations.weight.original1") if n in names]


def drop(params: Params, layer: Layer, kept: Tensor, tasks: Iterable[str]) -> Params:
    """Take units away for good, bool `kept` [units]; only such as no other than these tasks has met."""
    smaller, of = dict(params), len(kept)
    index = kept.nonzero()[:, 0]
    for axis in (*layer.rows, *layer.columns):
        smaller[axis.name] = select(params[axis.name], axis.dim, index, axis.block)
    for task in tasks:
        mask, _ = masks(task, layer)
        if mask in params and len(params[mask]) == of:
            smaller |= {name: params[name][index] for name in masks(task, layer)}
            for name in reader(task, params) if layer.features else ():
                smaller[name] = select(params[name], 1, index, layer.features)
    return smaller


def first(kept: Tensor) -> Tensor:
    """The place of the first unit that goes, 0-d int64; bool `kept` [units], not all."""
    return (~kept).nonzero()[0, 0]


def ends(params: Mapping[str, Tensor], layer: Layer, units: int, tasks: Iterable[str]) -> Params:
    """Where so many of a layer's first units end in the tensors that make or read them, for `cut`.

    Args:
        params: all of a group's.
        layer: which.
        units: how many.
        tasks: whose modules read more than these units.

    Returns:
        "<tensor>/<dimension, counted from the last: -1>" → the entries there, 0-d int64.
    """
    readers = [Axis(name, 1, layer.features) for task in tasks if layer.features for name in reader(task, params)]
    axes = [axis for axis in (*layer.rows, *layer.columns, *readers) if axis.name in params]
    return {f"{a.name}/{a.dim - params[a.name].ndim}": torch.tensor(units * a.block) for a in axes}


def cut(memory: Params, ends: Mapping[str, Tensor]) -> Params:
    """What is kept by parameter, without what is behind these ends; `fit` then puts zeros there."""
    shorter = dict(memory)
    for place, end in ends.items():
        name, _, last = place.rpartition("/")
        dim, length = int(last), int(end)
        for key, value in shorter.items():
            there = name in key.split("/") and not key.startswith("own/") and value.ndim >= -dim
            if there and value.shape[dim] > length:
                shorter[key] = value.narrow(dim, 0, length).clone()
    return shorter


def fit(memory: Params, params: Mapping[str, Tensor]) -> Params:
    """What is kept by parameter, in the shapes that the parameters have now; `memory` itself where it has them.

    A key names its parameter as one of its parts between "/". New units have zeros: no importance, no momentum, and
    an anchor that nothing holds them to. Leading dimensions (stacks over tasks) stay.
    """
    changed: Params = {}
    for key, value in memory.items():
        name = next((part for part in key.split("/") if part in params), "")
        if not name or key.startswith("own/"):
            continue
        shape = params[name].shape
        first = value.ndim - len(shape)
        if first >= 0 and shape and value.shape[first:] != shape:
            fitted = value.new_zeros(*value.shape[:first], *shape)
            common = [slice(min(a, b)) for a, b in zip(value.shape, fitted.shape, strict=True)]
            fitted[tuple(common)] = value[tuple(common)]
            changed[key] = fitted
    return memory | changed if changed else memory


def resize(net: nn.Module, arrays: Mapping[str, Tensor]) -> bool:
    """Give a net's tensors the shapes of these arrays; what they hold is to be filled in. Whether any changed."""
    changed = False
    for name, value in arrays.items():
        owner, _, last = name.rpartition(".")
        layer = net.get_submodule(owner)
        old = getattr(layer, last)
        if old.shape != value.shape:
            new = torch.empty(value.shape, dtype=old.dtype, device=old.device)
            if isinstance(old, nn.Parameter):
                setattr(layer, last, nn.Parameter(new, requires_grad=old.requires_grad))
            else:
                setattr(layer, last, new)
            changed = True
    return changed


def _longer(value: Tensor, dim: int, more: int, fill: float = 0.0) -> Tensor:
    shape = list(value.shape)
    shape[dim] = more
    return torch.cat([value, value.new_full(shape, fill)], dim)


def select(value: Tensor, dim: int, index: Tensor, block: int) -> Tensor:
    """The entries of these units along a dimension."""
    entries = (index[:, None] * block + torch.arange(block)).flatten()
    return value.index_select(dim, entries)


def role(name: str) -> str:
    """The task that a parameter belongs to, "" for the trunk: `tasks.t0.out.bias` → "t0"."""
    head, _, rest = name.partition(".")
    if head == "trunk":
        return ""
    if head not in ("tasks", "gates"):
        raise ValueError(f"parameter {name!r} has no role: names start with trunk., tasks.<task>. or gates.<task>.")
    return rest.partition(".")[0]


def misshapen(memory: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> str:
    """Which key that ends in "/<parameter>" has not that parameter's shape, in words; "" if none."""
    like = {key: params[name] for key in memory if (name := key.rpartition("/")[2]) in params and name != key}
    for key, value in like.items():
        if memory[key].shape != value.shape:
            return f"{key} has shape {tuple(memory[key].shape)}, expected {tuple(value.shape)}"
    return ""


def unlike(arrays: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """How arrays differ from these in names, shapes or dtypes: the first difference in words; "" if in none."""
    if missing := sorted(set(expected) - set(arrays)):
        return f"{missing[0]} is missing"
    if extra := sorted(set(arrays) - set(expected)):
        return f"{extra[0]} was not asked for"
    for name, value in arrays.items():
        if value.shape != expected[name].shape:
            return f"{name} has shape {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
        if value.dtype != expected[name].dtype:
            return f"{name} has dtype {value.dtype}, expected {expected[name].dtype}"
    return ""
