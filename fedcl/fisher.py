"""The diagonal of the Fisher information: how much the net's predictions depend on each parameter θ.

    exact      F = 1/N Σ_n Σ_c p_nc (∂ log p_nc / ∂θ)²        every class, weighted by its probability
    sampled    F = 1/N Σ_n (∂ log p_nc / ∂θ)²                 one class c ~ p_n for each sample
    empirical  F = 1/N Σ_n (∂ log p_nc / ∂θ)²                 the label c = y_n

Kirkpatrick et al. 2017 (EWC) weight their penalty with it; Kunstner et al. 2019 compare the kinds. The square
is taken per sample, never of a batch's mean. As ∂ log p_nc / ∂logits = onehot(c) - p_n, each kind is a sum
over *cotangents* v_k [N, C], with J_n the Jacobian of sample n's logits:

    F = 1/N Σ_n Σ_k (J_nᵀ v_kn)²,   v_kn = √weight · (onehot(c_k) - p_n)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedcl._sample_grads import Call, closed_layers, floats, gradients, holds, join, recorded

Forward = Callable[[Tensor], Tensor]
Kind = Literal["exact", "sampled", "empirical"]
_BUDGET = 1 << 24  # floats of per-sample gradients that vmap holds at once: 64 MB
_BLOCK = 1 << 20  # those that a closed form holds: larger blocks of memory are slower than their arithmetic


def diagonal(
    net: nn.Module,
    forward: Forward,
    names: Collection[str],
    x: Tensor,
    y: Tensor,
    *,
    kind: Kind,
    generator: torch.Generator,
    chunk: int = 256,
) -> dict[str, Tensor]:
    """Measure the diagonal Fisher information of some parameters, in evaluation mode.

    Parameters that the logits do not depend on, such as other tasks' heads, get 0. Layers with a closed form
    cost one backward pass per cotangent; all other parameters take vmap over samples.

    Args:
        net: holds the parameters; its mode is put back afterwards.
        forward: samples [n, *shape] → logits [n, C] by the net's own parameters, not by copies of them; the
            logit of a closed class is -inf.
        names: the parameters to measure, as in `net.named_parameters()`.
        x: samples [N, *shape], typically N = 100 to 1000.
        y: labels [N]; only `empirical` reads them.
        kind: exact costs C backward passes, the others one.
        generator: draws the classes of `sampled`.
        chunk: samples in memory at once.

    Returns:
        Parameter's name → F ≥ 0, of the parameter's shape.

    Raises:
        ValueError: an unknown kind or parameter, no samples, or `forward` reads other parameters.
    """
    wanted = set(names)
    parameters = {name: value.detach() for name, value in net.named_parameters() if name in wanted}
    if kind not in ("exact", "sampled", "empirical"):
        raise ValueError(f"Fisher kind {kind!r}: there are exact, sampled, empirical")
    if len(parameters) < len(wanted) or len(x) == 0:
        raise ValueError(f"{len(x)} samples, unknown parameters {sorted(wanted - set(parameters))}")
    fisher = {name: torch.zeros_like(value) for name, value in parameters.items()}
    layers = closed_layers(net, wanted)
    rest: dict[str, Tensor] = {}
    with _evaluating(net):
        for start in range(0, len(x), chunk):
            rows = x[start : start + chunk]
            with torch.enable_grad(), recorded(layers) as calls:
                logits = forward(rows)
            vectors = _cotangents(logits.detach(), y[start : start + chunk], kind, generator)
            if start == 0:
                layers = {name: layer for name, layer in layers.items() if holds(calls[name], len(rows))}
                rest = _others(net, forward, parameters, layers, rows[:1])
            _add_closed(fisher, layers, calls, logits, vectors)
            _add_vmapped(fisher, net, forward, rest, rows, vectors)
    return {name: value / len(x) for name, value in fisher.items()}


def _cotangents(logits: Tensor, y: Tensor, kind: Kind, generator: torch.Generator) -> list[Tensor]:
    """The v_k of the module's docstring, from logits [n, C]; finite also where a logit is -inf."""
    p = torch.softmax(logits, dim=1)
    onehots = torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
    if kind == "exact":
        # A class that is closed for all samples has no weight, and needs no pass.
        live = (p > 0).any(0).nonzero().flatten().tolist()
        return [p[:, c : c + 1].sqrt() * (onehots[c] - p) for c in live]
    if kind == "sampled":
        y = torch.multinomial(p.to(generator.device), 1, generator=generator).flatten().to(p.device)
    return [onehots[y] - p]


def _add_closed(
    fisher: dict[str, Tensor],
    layers: Mapping[str, nn.Module],
    calls: Mapping[str, list[Call]],
    logits: Tensor,
    vectors: list[Tensor],
) -> None:
    """Add Σ_n Σ_k (J_nᵀ v_kn)² of layers that have a closed form."""
    if not layers or not logits.requires_grad:
        return
    # A linear layer on plain rows has (δ_n a_nᵀ)² = δ_n² (a_n²)ᵀ: one matrix product serves all cotangents.
    rows = {
        name: 0 * calls[name][0].output.detach() for name, layer in layers.items() if _on_rows(layer, calls[name][0])
    }
    outputs = [calls[name][0].output for name in layers]
    for place, vector in enumerate(vectors):
        keep = place + 1 < len(vectors)
        deltas: tuple[Tensor | None, ...] = torch.autograd.grad(
            logits, outputs, vector, retain_graph=keep, allow_unused=True
        )
        for name, delta in zip(layers, deltas, strict=True):
            if delta is None:
                continue
            if name in rows:
                rows[name].addcmul_(delta, delta)
            else:
                _add_layer(fisher, name, layers[name], calls[name][0], delta)
    for name, squares in rows.items():
        if (target := join(name, "weight")) in fisher:
            fisher[target].addmm_(squares.T, calls[name][0].a.square())
        if (target := join(name, "bias")) in fisher:
            fisher[target] += squares.sum(0)


def _on_rows(layer: nn.Module, call: Call) -> bool:
    return type(layer) is nn.Linear and call.a.dim() == 2


def _add_layer(fisher: dict[str, Tensor], name: str, layer: nn.Module, call: Call, delta: Tensor) -> None:
    step = max(1, _BLOCK // floats(layer, call))
    for start in range(0, len(delta), step):
        part = slice(start, start + step)
        for key, gradient in gradients(layer, call.a[part], delta[part]).items():
            if (target := join(name, key)) not in fisher:
                continue
            if gradient[0].numel() < _BLOCK >> 6:
                fisher[target] += gradient.square().sum(0)
            else:  # sample by sample is one pass over large gradients instead of three
                for sample in gradient:
                    fisher[target].addcmul_(sample, sample)


class _Bound(nn.Module):
    """Lets `functional_call` swap the parameters of a net under a closure over it."""

    def __init__(self, net: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.net, self.run = net, forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def _others(
    net: nn.Module,
    forward: Forward,
    parameters: dict[str, Tensor],
    layers: Mapping[str, nn.Module],
    x: Tensor,
) -> dict[str, Tensor]:
    """The parameters without a closed form that the logits of x [1, *shape] depend on."""
    closed = {join(name, key) for name, layer in layers.items() for key, _ in layer.named_parameters()}
    if closed.issuperset(parameters):
        return {}
    leaves = {f"net.{name}": value.clone().requires_grad_() for name, value in parameters.items()}
    with torch.enable_grad():
        logits = cast(Tensor, functional_call(_Bound(net, forward), leaves, (x,)))
    used = set()
    if logits.requires_grad:
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            logits, list(leaves.values()), torch.ones_like(logits), allow_unused=True
        )
        used = {name for name, grad in zip(parameters, found, strict=True) if grad is not None}
    if layers and not used:
        raise ValueError("`forward` reads copies of the net's parameters; it must read those of the net itself")
    return {name: value for name, value in parameters.items() if name in used - closed}


def _add_vmapped(
    fisher: dict[str, Tensor],
    net: nn.Module,
    forward: Forward,
    parameters: dict[str, Tensor],
    x: Tensor,
    vectors: list[Tensor],
) -> None:
    """Add Σ_n Σ_k (J_nᵀ v_kn)² of any parameters."""
    if not parameters:
        return
    bound = _Bound(net, forward)
    leaves = {f"net.{name}": value for name, value in parameters.items()}

    def squares(row: Tensor, cotangents: Tensor) -> dict[str, Tensor]:
        def logits(values: dict[str, Tensor]) -> Tensor:
            return cast(Tensor, functional_call(bound, values, (row[None],)))[0]

        pull = vjp(logits, leaves)[1]
        total = {name: torch.zeros_like(value) for name, value in leaves.items()}
        for cotangent in cotangents:
            (grads,) = pull(cotangent)
            total = {name: value + grads[name].square() for name, value in total.items()}
        return total

    stacked = torch.stack(vectors, dim=1)  # [n, K, C]
    step = max(1, _BUDGET // (2 * sum(value.numel() for value in parameters.values())))
    # vjp records what it needs, nothing outside is to be recorded; vmap has rules for plain attention only.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for start in range(0, len(x), step):
            found = vmap(squares)(x[start : start + step], stacked[start : start + step])
            for name in parameters:
                fisher[name] += found[f"net.{name}"].sum(0)


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode for a block: no dropout, no running statistics."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
