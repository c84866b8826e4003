"""Fully connected layers on the flattened sample; takes images and tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from fedcl.contracts import FedclError
from fedcl.models import _layers
from fedcl.structure import Axis, Layer, rows


class Mlp(nn.Module):
    """Linear layers, each with an activation and a dropout behind it."""

    def __init__(
        self, inputs: int, hidden: Sequence[int], bias: bool, dropout: Sequence[float], activation: str
    ) -> None:
        super().__init__()
        sizes = [inputs, *_layers.positive("hidden", hidden)]
        self.inputs = inputs
        self.activation = _layers.activation(activation)
        self.layers = nn.ModuleList(
            nn.Linear(fan_in, fan_out, bias=bias) for fan_in, fan_out in itertools.pairwise(sizes)
        )
        self.dropouts = nn.ModuleList(
            _layers.Dropout(p, "model.options.input_dropout" if place == 0 else "model.options.dropout")
            for place, p in enumerate(dropout)
        )

    @property
    def width(self) -> int:
        """Features."""
        return len(cast(nn.Linear, self.layers[-1]).weight) if self.layers else self.inputs

    def chain(self) -> tuple[str, ...]:
        """The layers in order, each feeding only the next."""
        return tuple(f"layers.{place}" for place in range(len(self.layers)))

    def growable(self) -> tuple[Layer, ...]:
        """All layers can be widened."""
        kinds = ("weight", "bias") if self.layers and self.layers[0].bias is not None else ("weight",)
        names = self.chain()
        readers = [(Axis(f"{name}.weight", 1),) for name in names[1:]]
        inner = [Layer(n, "units", rows(n, *kinds), r) for n, r in zip(names, readers, strict=False)]
        return (*inner, *(Layer(name, "units", rows(name, *kinds), features=1) for name in names[-1:]))

    def forward(self, x: Tensor) -> Tensor:
        """Samples x [B, *shape] → features [B, width]."""
        first, *others = self.dropouts
        x = first(x.flatten(1))
        for layer, dropout in zip(self.layers, others, strict=True):
            x = dropout(self.activation(layer(x)))
        return x


def build(
    shape: tuple[int, ...],
    *,
    hidden: Sequence[int] = (128, 64),
    bias: bool = True,
    activation: str = "relu",
    dropout: float | Sequence[float] = 0.0,
    input_dropout: float = 0.0,
) -> nn.Module:
    """Build the trunk.

    Args:
        shape: of a sample, any.
        hidden: units of each layer, typically 1 to 3 layers of 64 to 2000; empty is the sample itself.
        bias: whether the layers have one.
        activation: relu, tanh, gelu, silu or leaky_relu.
        dropout: probability behind each hidden layer, one for all or one for each; typically 0 to 0.5.
        input_dropout: probability for the input's values; typically 0 to 0.2.

    Raises:
        FedclError: an option has no such value.
    """
    rates = list(dropout) if isinstance(dropout, Sequence) else [dropout] * len(hidden)
    if len(rates) != len(hidden):
        raise FedclError(f"model.options.dropout = {rates}: give one for all, or {len(hidden)}, one for each layer")
    return Mlp(math.prod(shape), hidden, bias, [input_dropout, *rates], activation)
