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
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.utils import parametrizations, parametrize

from fedcl.models.dynamic_net import Gate


class Call(NamedTuple):
    """One call of a layer in a forward pass."""

    a: Tensor  # input [n, …]
    edge: GradientEdge  # the output's place in the graph: still that of the output when it is changed in place
    shape: torch.Size  # of the output, [n, …]
    version: int  # of the input, which somebody might change in place afterwards
    own: bool  # called with the layer's own parameters; a masked net, and a copy, call it with others


def _linear(layer: nn.Linear, a: Tensor, delta: Tensor) -> dict[str, Tensor]:
    a, delta = (
        a.reshape(len(a), -1, a.shape[-1]),
        delta.reshape(len(a), -1, delta.shape[-1]),
    )  # [n, tokens, …]
    return {"weight": delta.mT @ a, "bias": delta.sum(1)}


def _conv2d(layer: nn.Conv2d, a: Tensor, delta: Tensor) -> dict[str, Tensor]:
    patches = windows(layer, a)
    patches = patches.reshape(len(a), layer.groups, -1, patches.shape[-1])  # [n, groups, in·k·k, positions]
    grouped = delta.reshape(len(a), layer.groups, -1, patches.shape[-1])  # [n, groups, out, positions]
    weight = grouped @ patches.mT  # positions share the weights: their sum comes before any square
    return {"weight": weight.reshape(len(a), *layer.weight.shape), "bias": delta.flatten(2).sum(2)}


def windows(layer: nn.Conv2d, a: Tensor) -> Tensor:
    """What each position of a convolution sees: [n, in, …] → [n, in·k·k, positions], as `F.unfold` lays it out."""
    (top, left), (high, wide) = cast(tuple[int, int], layer.padding), layer.kernel_size
    (down, right), (row, column) = layer.dilation, layer.stride
    seen = (
        F.pad(a, (left, left, top, top)).unfold(2, down * (high - 1) + 1, row).unfold(3, right * (wide - 1) + 1, column)
    )
    seen = seen[..., ::down, ::right]  # [n, in, rows, columns, k, k]: a view, whose copy is quicker than F.unfold
    return seen.permute(0, 1, 4, 5, 2, 3).reshape(len(a), -1, seen.shape[2] * seen.shape[3])


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
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
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


def own(layer: nn.Module) -> list[str]:
    """The parameters that a layer's rule is about; a gate may have modules below it, which are others' to serve."""
    if type(layer) in _RULES and not parametrize.is_parametrized(layer):
        return [key for key, value in layer._parameters.items() if value is not None]
    return [key for key, _ in layer.named_parameters()]


def closed_layers(net: nn.Module, parameters: Collection[str]) -> dict[str, nn.Module]:
    """The layers, by name, that have a rule and at least one of the parameters, none shared with another layer."""
    modules = list(net.named_modules())
    uses = Counter(id(value) for _, module in modules for value in module._parameters.values())
    return {
        name: layer
        for name, layer in modules
        if _rule(layer) is not None
        and any(join(name, key) in parameters for key in own(layer))
        and all(uses[id(value)] == 1 for value in _held(layer))
    }


def _held(layer: nn.Module) -> list[Tensor]:
    """A layer's parameters, quicker than `layer.parameters()` tells them where nothing is below it."""
    if layer._modules:
        return list(layer.parameters())
    return [value for value in layer._parameters.values() if value is not None]


@contextmanager
def recorded(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Call]]]:
    """Note the calls of layers in the forward passes of the block; a block with gradients passes over what has none."""
    calls: dict[str, list[Call]] = {name: [] for name in layers}
    graph = torch.is_grad_enabled()

    def note(name: str, before: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if graph and not torch.is_grad_enabled():  # of a teacher, say, that the block asks too
                return output
            leaf = not output.requires_grad  # all before it is frozen: the graph starts here
            if leaf:
                output = output.detach().requires_grad_()
            same = all(one is two for one, two in zip(_held(module), before, strict=True))
            edge = get_gradient_edge(output)
            calls[name].append(Call(inputs[0].detach(), edge, output.shape, inputs[0]._version, same))
            return output.clone() if leaf else output  # what follows may change it in place, which no leaf allows

        return hook

    handles = [layer.register_forward_hook(note(n, _held(layer))) for n, layer in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def holds(calls: list[Call], n: int) -> bool:
    """Whether a layer's rule holds: it was called once, as it is, on a row per sample that nobody changed since."""
    if len(calls) != 1 or not calls[0].own:
        return False
    return len(calls[0].a) == n and calls[0].a._version == calls[0].version


def floats(layer: nn.Module, call: Call) -> int:
    """Values per sample that a layer's rule holds in memory."""
    size = sum(value.numel() for value in layer.parameters()) + call.a[0].numel()
    if isinstance(layer, nn.Conv2d):  # the unfolded input
        size += layer.in_channels * math.prod(layer.kernel_size) * math.prod(call.shape[2:])
    return size


def join(module: str, parameter: str) -> str:
    """A parameter's name in the net; the net itself is the module ""."""
    return f"{module}.{parameter}" if module else parameter


class Bound(nn.Module):
    """Lets `functional_call` swap the parameters of a net under a closure over it."""

    def __init__(self, net: nn.Module, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net
        self._run = (run,)  # not as a module: a net that is its own closure would be swapped twice, and put back once

    def forward(self, *rows: Tensor) -> Tensor:
        """What the closure says of samples."""
        return self._run[0](*rows)
