"""ResNet-18 with GroupNorm, under torchvision's parameter names; images of 8 pixels and more.

He et al. 2016 with the norm of Wu & He 2018: BatchNorm's running statistics drift to the last task and differ
between hospitals, so no trunk has one. The norms keep torchvision's names (bn1, bn2), so its weights load.

References:
    He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016. arXiv 1512.03385.
    Wu, He. Group Normalization. ECCV 2018. arXiv 1803.08494.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fedcl.contracts import FedclError
from fedcl.models import _layers

_SMALL = 64  # pixels up to which an image would be gone before the first block of the large stem's net


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as in He et al. 2015
    return conv


class Block(nn.Module):
    """Two 3×3 convolutions around a shortcut: relu(x + f(x))."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn1 = nn.GroupNorm(groups, outputs)
        self.conv2 = _conv(outputs, outputs, 3)
        self.bn2 = nn.GroupNorm(groups, outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.GroupNorm(groups, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [B, inputs, h, w] → [B, outputs, h / stride, w / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(shortcut + self.bn2(self.conv2(y)))


class ResNet18(nn.Module):
    """A stem and four stages of two blocks, each stage with twice the channels on half the map."""

    def __init__(self, inputs: int, channels: list[int], groups: int, large: bool) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, channels[0], 7, 2) if large else _conv(inputs, channels[0], 3)
        self.bn1 = nn.GroupNorm(groups, channels[0])
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        stages = []
        for stage, (before, after) in enumerate(zip(channels[:1] + channels, channels, strict=False)):
            stride = 1 if stage == 0 else 2
            stages.append(nn.Sequential(Block(before, after, stride, groups), Block(after, after, 1, groups)))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.width = channels[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Images x [B, channels, height, width] → features [B, width]."""
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))


def build(
    shape: tuple[int, ...],
    *,
    groups: int = 2,
    width_multiplier: float = 1.0,
    stem: Literal["auto", "small", "large"] = "auto",
) -> nn.Module:
    """Build the trunk.

    Args:
        shape: [channels, height, width] of an image.
        groups: of GroupNorm, 2 as in Reddi et al. 2021 (federated), 32 in Wu & He 2018; few are safer: a
            group of two values, on a map of one pixel, keeps nothing but their order.
        width_multiplier: times the 64, 128, 256 and 512 channels, typically 0.25 to 1.
        stem: `large` is torchvision's, a 7×7 convolution with stride and pooling, which its weights need;
            `small` is a 3×3 one that keeps the size; `auto` is small up to 64 pixels.

    Raises:
        FedclError: an option has no such value, or the samples are no images.
    """
    inputs, height, width = _layers.image("resnet18", shape)
    _layers.positive("groups", [groups])
    if width_multiplier <= 0:
        raise FedclError(f"model.options.width_multiplier = {width_multiplier}: above 0, 1 is ResNet-18's own width")
    if stem not in ("auto", "small", "large"):
        raise FedclError(f"model.options.stem = {stem!r}: there are auto, small, large")
    channels = [2 * max(1, round(width_multiplier * 2**stage * 32)) for stage in range(4)]
    if any(number % groups for number in channels):
        raise FedclError(f"model.options.groups = {groups} does not divide the layers' channels {channels}; take 2")
    return ResNet18(inputs, channels, groups, stem == "large" or (stem == "auto" and min(height, width) > _SMALL))
