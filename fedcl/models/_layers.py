"""Layers that trunks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedcl.contracts import FedclError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "leaky_relu": nn.functional.leaky_relu,
}


class Dropout(nn.Module):
    """Inverted dropout that draws from a generator of its own, never from torch's global one.

    Srivastava et al. 2014: in training each value is zeroed with probability p and the rest is divided by
    1 - p; in evaluation, and for p = 0, it is the identity.

    Attributes:
        generator: set by the training loop, see `draw_from`.
    """

    def __init__(self, p: float, key: str = "model.options.dropout") -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise FedclError(f"{key} = {p}: a dropout probability is at least 0 and below 1")
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop values of x [...]."""
        if not self.training or self.p == 0:
            return x
        source = self.generator
        if source is None:
            raise RuntimeError("dropout has no generator: call draw_from(net, generator) before training")
        kept = _kept(x.shape, self.p, source).to(x.device, x.dtype)
        return x * kept.mul_(1 / (1 - self.p))

    def extra_repr(self) -> str:
        """The probability, in `print(net)`."""
        return f"p={self.p}"


def _kept(shape: torch.Size, p: float, source: torch.Generator) -> Tensor:
    """Bool [...]: True with probability 1 - p, to 2⁻¹⁶; each draw of 64 bits serves four values."""
    count = shape.numel()
    draws = torch.empty(-(-count // 4), dtype=torch.int64, device=source.device)
    bits = draws.random_(-(2**63), None, generator=source).view(torch.int16)[:count].view(shape)
    return bits >= min(round(p * 2**16), 2**16 - 1) - 2**15


def draw_from(net: nn.Module, generator: torch.Generator | None) -> None:
    """Let all dropout layers of a net draw from one generator."""
    for module in net.modules():
        if isinstance(module, Dropout):
            module.generator = generator


@contextmanager
def drawn_dropout(net: nn.Module) -> Iterator[dict[nn.Module, list[Tensor]]]:
    """Note by what dropout multiplies in the block [n, …]: what it makes of ones. The draws are those without it."""
    dropouts = (Dropout, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    drawn: dict[nn.Module, list[Tensor]] = {
        layer: [] for layer in net.modules() if isinstance(layer, dropouts) and layer.training and layer.p > 0
    }
    inputs: list[Tensor] = []

    def ones(layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        inputs.append(given[0])
        return (torch.ones_like(given[0]),)

    def times(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        drawn[layer].append(output)
        return inputs.pop() * output

    handles = [layer.register_forward_pre_hook(ones) for layer in drawn]
    handles += [layer.register_forward_hook(times) for layer in drawn]
    try:
        yield drawn
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replayed_dropout(drawn: Mapping[nn.Module, list[Tensor]], factors: Sequence[Tensor]) -> Iterator[None]:
    """Let dropout layers multiply by one sample's factors, in the order in which they were drawn."""
    numbered = iter(factors)
    left = {layer: iter([next(numbered) for _ in several]) for layer, several in drawn.items()}

    def times(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * next(left[layer])

    handles = [layer.register_forward_hook(times) for layer in drawn]
    for layer in drawn:
        layer.eval()
    try:
        yield
    finally:
        for layer in drawn:
            layer.train()
        for handle in handles:
            handle.remove()


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function behind `model.options.activation`.

    Raises:
        FedclError: there is none of that name.
    """
    if name not in ACTIVATIONS:
        raise FedclError(f"model.options.activation = {name!r}: there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def positive(key: str, values: Sequence[int]) -> list[int]:
    """`values` where all are whole numbers of at least 1.

    Raises:
        FedclError: one is not.
    """
    for value in values:
        if not isinstance(value, int) or value < 1:
            raise FedclError(f"model.options.{key}: {value!r} is not a whole number of at least 1")
    return list(values)


def image(trunk: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width) of a sample.

    Raises:
        FedclError: the samples are no images.
    """
    if len(shape) != 3:
        raise FedclError(
            f"model.name = {trunk!r} needs images [channels, height, width], but a sample has the shape "
            f"{list(shape)} ({math.prod(shape)} values); take model.name = 'mlp', or a data set of images"
        )
    channels, height, width = shape
    return channels, height, width
