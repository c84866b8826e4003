"""Per-sample gradients of single layers in closed form, from a layer's input and the gradient of its output.

Goodfellow 2015 (arXiv 1510.01799): one forward and one backward pass over a batch tell for each layer its input
a [n, …] and the gradient δ [n, …] of its output; the gradient of the layer's parameters follows for each sample.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from fedcl.models.dynamic_net import Gate


class Call(NamedTuple):
    """One call of a layer in a forward pass."""

    a: Tensor  # input [n, …]
    output: Tensor  # [n, …], in the graph
    version: int  # of the input, which somebody might change in place afterwards


def _linear(layer: nn.Linear, a: Tensor, delta: Tensor) -> dict[str, Tensor]:
    a, delta = (
        a.reshape(len(a), -1, a.shape[-1]),
        delta.reshape(len(a), -1, delta.shape[-1]),
    )  # [n, tokens, …]
    return {"weight": delta.mT @ a, "bias": delta.sum(1)}


def _conv2d(layer: nn.Conv2d, a: Tensor, delta: Tensor) -> dict[str, Tensor]:
    padding = cast(tuple[int, int], layer.padding)
    patches = F.unfold(a, layer.kernel_size, layer.dilation, padding, layer.stride)
    patches = patches.reshape(len(a), layer.groups, -1, patches.shape[-1])  # [n, groups, in·k·k, positions]
    grouped = delta.reshape(len(a), layer.groups, -1, patches.shape[-1])  # [n, groups, out, positions]
    weight = grouped @ patches.mT  # positions share the weights: their sum comes before any square
    return {"weight": weight.reshape(len(a), *layer.weight.shape), "bias": delta.flatten(2).sum(2)}


def _layer_norm(layer: nn.LayerNorm, a: Tensor, delta: Tensor) -> dict[str, Tensor]:
    normal = F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    shape = (len(a), -1, *layer.normalized_shape)
    return {"weight": (delta * normal).reshape(shape).sum(1), "bias": delta.reshape(shape).sum(1)}


def _group_norm(layer: nn.GroupNorm, a: Tensor, delta: Tensor) -> dict[str, Tensor]:
    normal = F.group_norm(a, layer.num_groups, eps=layer.eps)
    return {"weight": (delta * normal).flatten(2).sum(2), "bias": delta.flatten(2).sum(2)}


def _gate(layer: Gate, a: Tensor, delta: Tensor) -> dict[str, Tensor]:
    soft = torch.sigmoid(layer.logits.detach())
    per_value = delta * a * (soft * (1 - soft) * layer.mask)
    return {"logits": per_value.reshape(len(a), -1, a.shape[-1]).sum(1)}


def _weight_normed(layer: nn.Linear, a: Tensor, delta: Tensor) -> dict[str, Tensor]:
    # w = g u with u = v / ‖v‖ (Salimans & Kingma 2016, eq. 3): ∂g = ∂w · u, ∂v = g / ‖v‖ (∂w - ∂g u)
    plain = _linear(layer, a, delta)
    values = {name: value.detach() for name, value in layer.named_parameters()}
    g, v = values[_WEIGHT + "0"], values[_WEIGHT + "1"]
    length = v.norm(dim=1, keepdim=True)
    along = (plain["weight"] * (v / length)).sum(2, keepdim=True)
    across = (g / length) * (plain["weight"] - along * (v / length))
    return {"bias": plain["bias"], _WEIGHT + "0": along, _WEIGHT + "1": across}


_WEIGHT = "parametrizations.weight.original"
_Rule = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]
_RULES: dict[type[nn.Module], _Rule] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    Gate: _gate,
}


def _rule(layer: nn.Module) -> _Rule | None:
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or layer.padding == "same"):
        return None
    if isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer):
        parametrized = cast(nn.ModuleDict, layer.parametrizations)
        (own, *more), others = cast(nn.ModuleList, parametrized["weight"]), len(parametrized) - 1
        normed = isinstance(own, parametrizations._WeightNorm) and own.dim == 0 and not more and not others
        return _weight_normed if normed else None
    return _RULES.get(type(layer))  # the exact type: a subclass may compute something else


def gradients(layer: nn.Module, a: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """Per-sample gradients [n, *parameter] of a layer's parameters; of a bias also where there is none.

    Args:
        layer: one of `closed_layers`.
        a: the layer's input [n, …].
        delta: gradient of each sample's loss by the layer's output [n, …].
    """
    rule = _rule(layer)
    assert rule is not None
    return rule(layer, a, delta)


def closed_layers(net: nn.Module, parameters: Collection[str]) -> dict[str, nn.Module]:
    """The layers, by name, that have a rule and at least one of the parameters, none shared with another layer."""
    uses = Counter(id(value) for module in net.modules() for value in module.parameters(recurse=False))
    return {
        name: layer
        for name, layer in net.named_modules()
        if _rule(layer) is not None
        and any(join(name, key) in parameters for key, _ in layer.named_parameters())
        and all(uses[id(value)] == 1 for value in layer.parameters())
    }


@contextmanager
def recorded(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Call]]]:
    """Note the calls of layers in the forward passes of the block."""
    calls: dict[str, list[Call]] = {name: [] for name in layers}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:  # all before it is frozen: the graph starts here
                output = output.detach().requires_grad_()
            calls[name].append(Call(inputs[0].detach(), output, inputs[0]._version))
            return output.clone()  # what follows may change it in place

        return hook

    handles = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def holds(calls: list[Call], n: int) -> bool:
    """Whether a layer's rule holds: it was called once, on a row per sample that nobody changed since."""
    return len(calls) == 1 and len(calls[0].a) == n and calls[0].a._version == calls[0].version


def floats(layer: nn.Module, call: Call) -> int:
    """Values per sample that a layer's rule holds in memory."""
    size = sum(value.numel() for value in layer.parameters()) + call.a[0].numel()
    if isinstance(layer, nn.Conv2d):  # the unfolded input
        size += layer.in_channels * math.prod(layer.kernel_size) * call.output[0, 0].numel()
    return size


def join(module: str, parameter: str) -> str:
    """A parameter's name in the net; the net itself is the module ""."""
    return f"{module}.{parameter}" if module else parameter
