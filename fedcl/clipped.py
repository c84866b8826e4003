"""Sums of per-sample gradients, each clipped to a length: the heart of DP-SGD, without its noise.

    S = Σ_n g_n · min(1, C / ‖g_n‖₂),   g_n = ∂ℓ_n / ∂θ over all trainable parameters together

One sample more or less moves S by at most C (Abadi et al. 2016, algorithm 1). Layers with a closed form cost one
backward pass for the whole batch, and no gradient of a single sample where that is cheaper; for all other parameters
`torch.func` finds each sample's length, and a second backward pass of Σ_n c_n ℓ_n their sum.

References:
    Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang. Deep Learning with Differential Privacy. CCS 2016.
        arXiv 1607.00133.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedcl._clipped_layers import Part, part
from fedcl._sample_grads import Bound, closed_layers, holds, join, own, recorded
from fedcl.models._layers import drawn_dropout, replayed_dropout

Losses = Callable[..., Tensor]  # (x [n, *shape], y [n], …) → ℓ [n]
_BUDGET = 1 << 24  # floats of per-sample gradients that vmap holds at once: 64 MB


def clipped_sum(
    net: nn.Module, names: Collection[str], losses: Losses, rows: Sequence[Tensor], clip: float, chunk: int = 512
) -> tuple[dict[str, Tensor], Tensor]:
    """Add up per-sample gradients, each clipped.

    The net's mode stays as it is. Dropout draws as in a plain forward pass over a chunk, and what it drew holds for
    all that is computed of the chunk. A sample whose gradient is not finite counts as 0. Call it outside autocast.

    Args:
        net: holds the parameters. Its layers must keep samples apart, see `mixing`.
        names: the trainable parameters, as in `net.named_parameters()`.
        losses: what belongs to some samples → their losses ℓ [n], by the net's own parameters, which a layer's rule
            takes to be used by the layer alone.
        rows: what belongs to the samples, each [n, …]: typically x and y; n = 0 is a draw like others.
        clip: C > 0, typically 0.1 to 10.
        chunk: samples in memory at once.

    Returns:
        S by name, 0 for parameters that the losses do not depend on; and the lengths ‖g_n‖₂ before clipping [n].

    Raises:
        ValueError: an unknown parameter, a clip that is not above 0, losses that are not one a sample, or that depend
            on none of the parameters.
    """
    wanted = set(names)
    # By name: sums follow the order, and the net's own is that in which modules were added.
    parameters = {name: value for name, value in sorted(net.named_parameters()) if name in wanted}
    if len(parameters) < len(wanted) or not clip > 0:
        raise ValueError(f"clip {clip}, unknown parameters {sorted(wanted - set(parameters))}")
    total: dict[str, Tensor] = {}
    first = next(iter(parameters.values()), torch.zeros(()))
    lengths = [first.new_zeros(0)]
    layers = dict(sorted(closed_layers(net, wanted).items()))
    with _requiring(parameters):
        for start in range(0, len(rows[0]), chunk):
            chunked = [row[start : start + chunk] for row in rows]
            lengths.append(_add(total, net, parameters, layers, losses, chunked, clip))
    sums = {name: total[name] if name in total else torch.zeros_like(value) for name, value in parameters.items()}
    return sums, torch.cat(lengths)


def mixing(net: nn.Module) -> list[str]:
    """The names of layers that mix samples, so that one sample's gradient hangs on others and clipping bounds nothing.

    They are BatchNorm, and InstanceNorm with running statistics. GroupNorm takes their place, as in `resnet18`.
    """
    statistics = nn.modules.batchnorm._NormBase
    return [
        name
        for name, layer in net.named_modules()
        if isinstance(layer, statistics)
        and (layer.track_running_stats or not isinstance(layer, nn.modules.instancenorm._InstanceNorm))
    ]


def _add(
    total: dict[str, Tensor],
    net: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    layers: Mapping[str, nn.Module],
    losses: Losses,
    rows: list[Tensor],
    clip: float,
) -> Tensor:
    """Add the clipped gradients of a chunk to the total: their lengths before [n]."""
    count = len(rows[0])
    with torch.enable_grad(), recorded(layers) as calls, drawn_dropout(net) as drawn:
        found = losses(*rows)
    if found.shape != (count,):
        raise ValueError(f"losses of the shape {list(found.shape)} for {count} samples; give one for each")
    keys = {
        name: [key for key in own(layer) if join(name, key) in parameters]
        for name, layer in layers.items()
        if holds(calls[name], count)
    }
    closed = {join(name, key) for name, several in keys.items() for key in several}
    rest = {name: value for name, value in parameters.items() if name not in closed}
    deltas = _gradients(found, [*(calls[name][0].edge for name in keys), *rest.values()], None, keep=bool(rest))
    rest = {name: value for (name, value), g in zip(rest.items(), deltas[len(keys) :], strict=True) if g is not None}
    with torch.no_grad():
        parts = {
            name: part(layers[name], calls[name][0], delta, several)
            for (name, several), delta in zip(keys.items(), deltas, strict=False)
            if delta is not None
        }
        if not parts and not rest:
            raise ValueError("the losses depend on none of the named parameters; they may read copies of them")
        norms = _norms(parts, net, losses, rest, rows, drawn)
        finite = norms.isfinite()
        if not bool(finite.all()):  # 0 · inf would be no number: without them
            others = [row[finite.to(row.device)] for row in rows]
            if len(others[0]):
                _add(total, net, parameters, layers, losses, others, clip)
            return norms
        factors = (clip / norms).clamp(max=1)
        for name, measured in parts.items():
            for key, value in measured.total(factors).items():
                _into(total, join(name, key), value)
    if rest:
        for name, whole in zip(rest, _gradients(found, list(rest.values()), factors), strict=True):
            assert whole is not None
            _into(
                total, name, whole.clone(memory_format=torch.contiguous_format)
            )  # autograd may give one tensor to two
    return norms


def _into(total: dict[str, Tensor], name: str, value: Tensor) -> None:
    total[name] = total[name].add_(value) if name in total else value


def _gradients(found: Tensor, inputs: list[Any], weights: Tensor | None, keep: bool = False) -> list[Tensor | None]:
    """Σ_n w_n ∂ℓ_n by each of the inputs; None where the losses do not depend on it."""
    if not inputs or not found.requires_grad:
        return [None] * len(inputs)
    weights = torch.ones_like(found) if weights is None else weights.to(found)
    return list(torch.autograd.grad(found, inputs, weights, retain_graph=keep, allow_unused=True))


def _norms(
    parts: Mapping[str, Part],
    net: nn.Module,
    losses: Losses,
    rest: Mapping[str, Tensor],
    rows: list[Tensor],
    drawn: Mapping[nn.Module, list[Tensor]],
) -> Tensor:
    """‖g_n‖₂ [n]: of the layers measured, and of all other parameters by vmap over samples."""
    squares = [measured.squares for measured in parts.values()]
    if rest:
        bound = Bound(net, losses)
        leaves = {f"net.{name}": value.detach() for name, value in rest.items()}
        factors = [one for several in drawn.values() for one in several]

        def square(*given: Tensor) -> Tensor:
            row, factors = given[: len(rows)], given[len(rows) :]

            def loss(values: dict[str, Tensor]) -> Tensor:
                with replayed_dropout(drawn, factors):
                    answer = functional_call(bound, values, tuple(one[None] for one in row))
                return cast(Tensor, answer)[0]

            return torch.stack([g.square().sum() for g in grad(loss)(leaves).values()]).sum()

        step = max(1, _BUDGET // sum(value.numel() for value in rest.values()))
        with sdpa_kernel(SDPBackend.MATH):  # vmap has rules for plain attention only
            squares.append(vmap(square, chunk_size=step)(*rows, *factors))
    return torch.stack(squares).sum(0).sqrt()


@contextmanager
def _requiring(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """All of these take a gradient in the block."""
    frozen = [value for value in parameters.values() if not value.requires_grad]
    for value in frozen:
        value.requires_grad_(True)
    try:
        yield
    finally:
        for value in frozen:
            value.requires_grad_(False)
