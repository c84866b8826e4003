"""What clipping needs of one layer: the lengths of its per-sample gradients, and their weighted sum.

With a layer's input a_n and the gradient δ_n of its output, a weight's gradient is G_n = Σ_t δ_nt a_ntᵀ over T tokens
or positions. Its length is found without it where that is cheaper (Li et al. 2022, Bu et al. 2022: ghost norms):

    T = 1                ‖G_n‖² = ‖δ_n‖² ‖a_n‖²
    few tokens           ‖G_n‖² = Σ_st (a_ns · a_nt)(δ_ns · δ_nt)
    otherwise            of G_n itself

and Σ_n c_n G_n = Σ_n Σ_t (c_n δ_nt) a_ntᵀ takes one matrix product and no second backward pass (Bu et al. 2023:
book-keeping); where the G_n are in memory anyway, their weighted sum.

References:
    Li, Tramèr, Liang, Hashimoto. Large Language Models Can Be Strong Differentially Private Learners. ICLR 2022.
    Bu, Mao, Xu. Scalable and Efficient Training of Large Convolutional Neural Networks with Differential Privacy.
        NeurIPS 2022. arXiv 2205.10683.
    Bu, Wang, Zha, Karypis. Differentially Private Optimization on Large Model at Small Cost. ICML 2023.
        arXiv 2210.00038.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight
from torch.nn.utils import parametrize

from fedcl._sample_grads import Call, floats, gradients, windows

_BLOCK = 1 << 24  # floats of per-sample gradients, and of what they are made of, at once: 64 MB
_GRAM = 4  # tokens² by (in · out) / (in + out), up to which ghost norms were quicker when measured


class Part(NamedTuple):
    """A layer's share in clipping."""

    squares: Tensor  # of its per-sample gradients' lengths [n]
    total: Callable[[Tensor], dict[str, Tensor]]  # weights c [n] → Σ_n c_n · gradient of sample n, by parameter


def part(layer: nn.Module, call: Call, delta: Tensor, keys: Collection[str]) -> Part:
    """Measure a layer.

    Args:
        layer: one of `closed_layers`.
        call: of which `holds` is true.
        delta: gradient of each sample's loss by the layer's output [n, …].
        keys: the parameters, by their names in the layer, that count.
    """
    dtype = next(layer.parameters()).dtype
    a, delta = call.a.to(dtype), delta.to(dtype)
    plain = isinstance(layer, nn.Conv2d) or (isinstance(layer, nn.Linear) and not parametrize.is_parametrized(layer))
    if plain and a.dim() == 2:
        return _of_rows(a, delta, keys)
    if plain and "weight" in keys and _few_tokens(layer, delta):
        return _of_grams(layer, a, delta, keys)
    return _of_gradients(layer, a, delta, keys, max(1, _BLOCK // floats(layer, call)))


def _of_rows(a: Tensor, delta: Tensor, keys: Collection[str]) -> Part:
    """A linear layer that sees one row a sample."""
    length = torch.linalg.vector_norm(a, dim=1).square() if "weight" in keys else torch.zeros_like(a[:, 0])
    squares = torch.linalg.vector_norm(delta, dim=1).square() * (length + ("bias" in keys))

    def total(c: Tensor) -> dict[str, Tensor]:
        scaled = delta * c[:, None]
        return {key: scaled.T @ a if key == "weight" else scaled.sum(0) for key in keys}

    return Part(squares, total)


def _few_tokens(layer: nn.Module, delta: Tensor) -> bool:
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return False
    weight = cast(Tensor, layer.weight)
    tokens = delta[0].numel() // len(weight)
    return tokens**2 * (len(weight) + weight[0].numel()) < _GRAM * weight.numel()


def _of_grams(layer: nn.Module, a: Tensor, delta: Tensor, keys: Collection[str]) -> Part:
    """Ghost norms; in double precision, since the sum over pairs cancels more than that over tokens."""
    if isinstance(layer, nn.Conv2d):
        seen, out = windows(layer, a).mT.double(), delta.flatten(2).mT.double()
    else:
        seen, out = a.flatten(1, -2).double(), delta.flatten(1, -2).double()  # [n, tokens, …]
    squares = ((seen @ seen.mT) * (out @ out.mT)).sum((1, 2)).clamp(min=0)
    if "bias" in keys:
        squares += out.sum(1).square().sum(1)
    return Part(squares.to(a.dtype), lambda c: _contracted(layer, a, delta, keys, c))


def _of_gradients(layer: nn.Module, a: Tensor, delta: Tensor, keys: Collection[str], step: int) -> Part:
    """Lengths of the gradients themselves, `step` samples at once; all are kept where they fit, or are small."""
    keeps = step >= len(a) or not isinstance(layer, nn.Linear | nn.Conv2d)
    squares, kept = [], []
    for start in range(0, len(a), step):
        found = gradients(layer, a[start : start + step], delta[start : start + step])
        found = {key: found[key].flatten(1) for key in keys}
        squares.append(torch.stack([torch.linalg.vector_norm(g, dim=1).square() for g in found.values()]).sum(0))
        kept += [found] if keeps else []

    def total(c: Tensor) -> dict[str, Tensor]:
        if not keeps:
            return _contracted(layer, a, delta, keys, c)
        shapes = {key: layer.get_parameter(key).shape for key in keys}
        sums = {key: torch.zeros_like(layer.get_parameter(key)).flatten() for key in keys}
        for place, found in enumerate(kept):
            for key, grads in found.items():
                sums[key] += c[place * step : (place + 1) * step] @ grads
        return {key: value.view(shapes[key]) for key, value in sums.items()}

    return Part(torch.cat(squares), total)


def _contracted(layer: nn.Module, a: Tensor, delta: Tensor, keys: Collection[str], c: Tensor) -> dict[str, Tensor]:
    """Σ_n c_n G_n of a convolution or a linear layer, straight from a and δ."""
    scaled = delta * c.view(-1, *[1] * (delta.dim() - 1))
    if isinstance(layer, nn.Conv2d):
        padding = cast(tuple[int, int], layer.padding)
        shape, settings = list(layer.weight.shape), (layer.stride, padding, layer.dilation, layer.groups)
        weight: Tensor = conv2d_weight(a, shape, scaled, *settings)  # type: ignore[no-untyped-call]
        found = {"weight": weight, "bias": scaled.sum((0, 2, 3))}
    else:  # the rule is linear in δ: all tokens of all samples are those of one
        one = gradients(layer, a.reshape(1, -1, a.shape[-1]), scaled.reshape(1, -1, scaled.shape[-1]))
        found = {key: value[0] for key, value in one.items()}
    return {key: found[key] for key in keys}
