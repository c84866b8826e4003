"""Convolutions with pooling, then one linear layer; images of 4 pixels and more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from fedcl.contracts import FedclError
from fedcl.models import _layers
from fedcl.structure import Axis, Layer, rows


class Cnn(nn.Module):
    """Blocks of convolution, activation and max-pooling; then a linear layer with activation and dropout."""

    def __init__(
        self, convs: Sequence[nn.Conv2d], pool: int, flat: int, width: int, activation: str, dropout: float
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.pool = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()
        self.activation = _layers.activation(activation)
        self.out = nn.Linear(flat, width) if width else None
        self.pixels = flat // convs[-1].out_channels  # of a map that the linear layer sees
        self.dropout = _layers.Dropout(dropout)

    @property
    def width(self) -> int:
        """Features."""
        last = cast(nn.Conv2d, self.convs[-1]).weight
        return len(last) * self.pixels if self.out is None else len(self.out.weight)

    def chain(self) -> tuple[str, ...]:
        """The layers in order, each feeding only the next."""
        convs = tuple(f"convs.{place}" for place in range(len(self.convs)))
        return convs if self.out is None else (*convs, "out")

    def growable(self) -> tuple[Layer, ...]:
        """All layers can be widened: by channels, or by units."""
        names, last = self.chain(), len(self.convs) - 1
        found = []
        for place, name in enumerate(names):
            block = self.pixels if place == last else 1  # a channel is read pixel by pixel behind the last map
            reads = (Axis(f"{names[place + 1]}.weight", 1, block),) if place + 1 < len(names) else ()
            found.append(Layer(name, "units", rows(name, "weight", "bias"), reads, 0 if reads else block))
        return tuple(found)

    def forward(self, x: Tensor) -> Tensor:
        """Images x [B, channels, height, width] → features [B, width]."""
        for conv in self.convs:
            x = self.pool(self.activation(conv(x)))
        x = x.flatten(1)
        return self.dropout(x if self.out is None else self.activation(self.out(x)))  # type: ignore[no-any-return]


def build(
    shape: tuple[int, ...],
    *,
    channels: Sequence[int] = (32, 64),
    kernel: int = 3,
    pool: int = 2,
    width: int = 128,
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """Build the trunk.

    Args:
        shape: [channels, height, width] of an image.
        channels: filters of each convolution, typically 1 to 4 layers of 16 to 256.
        kernel: side of a filter in pixels, odd, typically 3 or 5; maps are padded and keep their size.
        pool: side of the max-pooling behind each convolution in pixels; 1 is none.
        width: features of the linear layer behind the convolutions; 0 leaves it out.
        activation: relu, tanh, gelu, silu or leaky_relu.
        dropout: probability for the features, typically 0 to 0.5.

    Raises:
        FedclError: an option has no such value, or the samples are no images.
    """
    inputs, *sides = _layers.image("cnn", shape)
    _layers.positive("pool", [pool])
    _layers.positive("width", [width] if width else [])
    if _layers.positive("kernel", [kernel])[0] % 2 == 0:
        raise FedclError(f"model.options.kernel = {kernel}: only an odd kernel keeps a map's size; take {kernel + 1}")
    convs = []
    for outputs in _layers.positive("channels", channels):
        convs.append(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))
        inputs, sides = outputs, [side // pool for side in sides]
    if min(sides) < 1:
        raise FedclError(
            f"model.options.channels = {list(channels)}: as many poolings by {pool} leave nothing of "
            f"{shape[1]}×{shape[2]} pixels; take fewer layers, or model.options.pool = 1"
        )
    return Cnn(convs, pool, inputs * sides[0] * sides[1], width, activation, dropout)
