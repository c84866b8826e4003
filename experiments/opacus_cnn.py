"""The net of Opacus' MNIST example as a trunk: two convolutions and one hidden layer, about 26,000 parameters."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


class OpacusCNN(nn.Module):
    """Images [B, 1, 28, 28] → features [B, 32]."""

    width = 32

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1),
            nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1),
            nn.Flatten(), nn.Linear(512, 32), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Features."""
        return cast(Tensor, self.layers(x))


def build(shape: tuple[int, ...]) -> nn.Module:
    """The trunk; it takes MNIST's shape alone."""
    return OpacusCNN()
