"""Means over samples of powers of per-sample gradients: what Fisher diagonals and their kin are made of.

    M = 1/N Σ_n Σ_k |J_nᵀ v_kn|^p,   p ∈ {1, 2}

J_n [C, P] is the Jacobian of sample n's logits, v_k [N, C] are *cotangents*: gradients of some function of the logits.
The power is taken per sample, never of a batch's mean.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedcl._sample_grads import Bound, Call, closed_layers, floats, gradients, holds, join, own, recorded

Forward = Callable[[Tensor], Tensor]
Cotangents = Callable[[Tensor, Tensor], list[Tensor]]  # (logits [n, C], labels [n]) → v_k [n, C]
Power = Literal[1, 2]
_BUDGET = 1 << 24  # floats of per-sample gradients that vmap holds at once: 64 MB
_BLOCK = 1 << 20  # those that a closed form holds: larger blocks of memory are slower than their arithmetic


def moments(
    net: nn.Module,
    forward: Forward,
    names: Collection[str],
    x: Tensor,
    y: Tensor,
    cotangents: Cotangents,
    power: Power,
    chunk: int = 256,
) -> dict[str, Tensor]:
    """Measure M for some parameters, in evaluation mode.

    Parameters that the logits do not depend on, such as other tasks' heads, get 0. Layers with a closed form
    cost one backward pass per cotangent; all other parameters take vmap over samples.

    Args:
        net: holds the parameters; its mode is put back afterwards.
        forward: samples [n, *shape] → logits [n, C] by the net's own parameters, not by copies of them.
        names: the parameters to measure, as in `net.named_parameters()`.
        x: samples [N, *shape].
        y: labels [N].
        cotangents: the v_k of a chunk of samples.
        power: p.
        chunk: samples in memory at once.

    Returns:
        Parameter's name → M ≥ 0, of the parameter's shape.

    Raises:
        ValueError: an unknown parameter, no samples, or `forward` reads other parameters.
    """
    wanted = set(names)
    parameters = {name: value.detach() for name, value in sorted(net.named_parameters()) if name in wanted}
    if len(parameters) < len(wanted) or len(x) == 0:
        raise ValueError(f"{len(x)} samples, unknown parameters {sorted(wanted - set(parameters))}")
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    layers = closed_layers(net, wanted)
    rest: dict[str, Tensor] = {}
    with evaluating(net):
        for start in range(0, len(x), chunk):
            rows = x[start : start + chunk]
            with torch.enable_grad(), recorded(layers) as calls:
                logits = forward(rows)
            vectors = cotangents(logits.detach(), y[start : start + chunk])
            if start == 0:
                layers = {name: layer for name, layer in layers.items() if holds(calls[name], len(rows))}
                other = any(not call.own for found in calls.values() for call in found)
                rest = _others(net, forward, parameters, layers, rows[:1], other)
            _add_closed(total, layers, calls, logits, vectors, power)
            _add_vmapped(total, net, forward, rest, rows, vectors, power)
    return {name: value / len(x) for name, value in total.items()}


def _add_closed(
    total: dict[str, Tensor],
    layers: Mapping[str, nn.Module],
    calls: Mapping[str, list[Call]],
    logits: Tensor,
    vectors: list[Tensor],
    power: Power,
) -> None:
    """Add Σ_n Σ_k |J_nᵀ v_kn|^p of layers that have a closed form."""
    if not layers or not logits.requires_grad:
        return
    # A linear layer on plain rows has |δ_n a_nᵀ|^p = |δ_n|^p (|a_n|^p)ᵀ: one matrix product serves all cotangents.
    rows = {
        name: calls[name][0].a.new_zeros(calls[name][0].shape)
        for name, layer in layers.items()
        if _on_rows(layer, calls[name][0])
    }
    outputs = [calls[name][0].edge for name in layers]
    for place, vector in enumerate(vectors):
        keep = place + 1 < len(vectors)
        deltas: tuple[Tensor | None, ...] = torch.autograd.grad(
            logits, outputs, vector, retain_graph=keep, allow_unused=True
        )
        for name, delta in zip(layers, deltas, strict=True):
            if delta is None:
                continue
            if name in rows:
                rows[name] += _power(delta, power)
            else:
                _add_layer(total, name, layers[name], calls[name][0], delta, power)
    for name, sums in rows.items():
        if (target := join(name, "weight")) in total:
            total[target].addmm_(sums.T, _power(calls[name][0].a, power))
        if (target := join(name, "bias")) in total:
            total[target] += sums.sum(0)


def _power(values: Tensor, power: Power) -> Tensor:
    return values.square() if power == 2 else values.abs()


def _on_rows(layer: nn.Module, call: Call) -> bool:
    return type(layer) is nn.Linear and call.a.dim() == 2


def _add_layer(total: dict[str, Tensor], name: str, layer: nn.Module, call: Call, delta: Tensor, power: Power) -> None:
    step = max(1, _BLOCK // floats(layer, call))
    for start in range(0, len(delta), step):
        part = slice(start, start + step)
        for key, gradient in gradients(layer, call.a[part], delta[part]).items():
            if (target := join(name, key)) not in total:
                continue
            if gradient[0].numel() < _BLOCK >> 6 or power == 1:
                total[target] += _power(gradient, power).sum(0)
            else:  # sample by sample is one pass over large gradients instead of three
                for sample in gradient:
                    total[target].addcmul_(sample, sample)


def _others(
    net: nn.Module,
    forward: Forward,
    parameters: dict[str, Tensor],
    layers: Mapping[str, nn.Module],
    x: Tensor,
    other: bool,
) -> dict[str, Tensor]:
    """The parameters without a closed form that the logits of x [1, *shape] depend on.

    Raises:
        ValueError: there is none, and layers were called with `other` parameters than their own.
    """
    closed = {join(name, key) for name, layer in layers.items() for key in own(layer)}
    if closed.issuperset(parameters):
        return {}
    leaves = {f"net.{name}": value.clone().requires_grad_() for name, value in parameters.items()}
    with torch.enable_grad():
        logits = cast(Tensor, functional_call(Bound(net, forward), leaves, (x,)))
    used = set()
    if logits.requires_grad:
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            logits, list(leaves.values()), torch.ones_like(logits), allow_unused=True
        )
        used = {name for name, grad in zip(parameters, found, strict=True) if grad is not None}
    if other and not used:
        raise ValueError("`forward` reads copies of the net's parameters; it must read those of the net itself")
    return {name: value for name, value in parameters.items() if name in used - closed}


def _add_vmapped(
    total: dict[str, Tensor],
    net: nn.Module,
    forward: Forward,
    parameters: dict[str, Tensor],
    x: Tensor,
    vectors: list[Tensor],
    power: Power,
) -> None:
    """Add Σ_n Σ_k |J_nᵀ v_kn|^p of any parameters."""
    if not parameters:
        return
    bound = Bound(net, forward)
    leaves = {f"net.{name}": value for name, value in parameters.items()}

    def powers(row: Tensor, cotangents: Tensor) -> dict[str, Tensor]:
        def logits(values: dict[str, Tensor]) -> Tensor:
            return cast(Tensor, functional_call(bound, values, (row[None],)))[0]

        pull = vjp(logits, leaves)[1]
        sums = {name: torch.zeros_like(value) for name, value in leaves.items()}
        for cotangent in cotangents:
            (grads,) = pull(cotangent)
            sums = {name: value + _power(grads[name], power) for name, value in sums.items()}
        return sums

    stacked = torch.stack(vectors, dim=1)  # [n, K, C]
    step = max(1, _BUDGET // (2 * sum(value.numel() for value in parameters.values())))
    # vjp records what it needs, nothing outside is to be recorded; vmap has rules for plain attention only.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for start in range(0, len(x), step):
            found = vmap(powers)(x[start : start + step], stacked[start : start + step])
            for name in parameters:
                total[name] += found[f"net.{name}"].sum(0)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode for a block: no dropout, no running statistics."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
