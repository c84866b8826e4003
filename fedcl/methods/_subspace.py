"""Orthonormal bases of what must not change: of gradients (OGD), and of a layer's inputs (GPM)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedcl.contracts import Memory, Params, role

_SMALL = 1e-6  # of a vector's length: what is left of one that the others span already


def extended(basis: Tensor, vector: Tensor) -> Tensor:
    """Orthonormal rows [k, P] and what is new in a vector [P]: [k or k + 1, P].

    Gram-Schmidt twice: once leaves errors of the size of single precision times the part that was taken out.
    """
    left = vector
    for _ in range(2):
        left = left - basis.T @ (basis @ left)
    length = left.norm()
    if length < _SMALL * vector.norm() or length == 0:
        return basis
    return torch.cat([basis, (left / length)[None]])


def covering(basis: Tensor, gram: Tensor, threshold: float) -> Tensor:
    """M [in, r] with the fewest singular vectors of R̂ that satisfy eq. 9, from R Rᵀ [in, in] in float64."""
    old = basis.double()
    rest = gram - old @ (old.T @ gram)
    rest = rest - (rest @ old) @ old.T  # R̂ R̂ᵀ
    values, vectors = torch.linalg.eigh((rest + rest.T) / 2)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    missing = threshold * gram.trace() - (gram.trace() - values.sum())
    # The fewest r with σ_1² + … + σ_r² ≥ what is missing, and no more than there are directions left.
    count = int((values.cumsum(0) < missing - 1e-12 * gram.trace()).sum()) + 1 if missing > 0 else 0
    count = min(count, len(gram) - basis.shape[1])
    joined = torch.cat([old, vectors[:, :count]], 1)
    return torch.linalg.qr(joined)[0].float().contiguous() if joined.shape[1] else basis


def layers(net: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that tasks share and whose inputs can span a basis, by name, in the net's order."""
    return {
        name: layer
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and role(f"{name}.") in ("", "shared")
    }


def width(layer: nn.Linear | nn.Conv2d, biases: bool = True) -> int:
    """How many inputs a weight's row meets: the columns of `inputs`."""
    seen = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels * math.prod(layer.kernel_size)
    return seen + (biases and layer.bias is not None)


def gram(layer: nn.Module, calls: Sequence[Tensor]) -> Tensor:
    """R Rᵀ in float64 of a layer's inputs."""
    r = inputs(layer, calls)
    return r.T @ r


def inputs(layer: nn.Module, calls: Sequence[Tensor], biases: bool = True) -> Tensor:
    """Rᵀ [n, in] in float64: a layer's inputs as its weights meet them, with the constant 1 where it has a bias."""
    columns = []
    for a in calls:
        if isinstance(layer, nn.Conv2d):
            padding = layer.padding if isinstance(layer.padding, tuple) else 0
            a = nn.functional.unfold(a, layer.kernel_size, layer.dilation, padding, layer.stride).mT
        columns.append(a.flatten(0, -2).double())
    r = torch.cat(columns)
    if layer.bias is not None and biases:
        r = torch.cat([r, r.new_ones(len(r), 1)], 1)
    return r


def across(moved: Params, memory: Memory) -> Params:
    """Moves of layers' weights and biases without their part along M, `basis/<layer>`; what has none does not move."""
    if not any(key.startswith("basis/") for key in memory):
        return moved
    allowed = {}
    for name, value in moved.items():
        layer, _, kind = name.rpartition(".")
        basis = memory.get(f"basis/{layer}")
        if role(name) not in ("", "shared"):
            allowed[name] = value
        elif basis is None:
            allowed[name] = torch.zeros_like(value)
        elif kind == "bias":
            allowed.setdefault(name, value)  # where it is no weight of the constant 1
        elif kind == "weight":
            flat, bias = value.flatten(1), f"{layer}.bias"
            if wide := len(basis) > flat.shape[1]:
                flat = torch.cat([flat, moved[bias][:, None]], 1)
            flat = flat - (flat @ basis) @ basis.T
            if wide:
                allowed[bias], flat = flat[:, -1], flat[:, :-1]
            allowed[name] = flat.reshape(value.shape)
    return allowed
