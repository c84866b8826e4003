"""A small vision transformer; images whose sides are multiples of a patch.

References:
    Dosovitskiy, Beyer, Kolesnikov, Weissenborn, others. An Image is Worth 16x16 Words: Transformers for Image
        Recognition at Scale. ICLR 2021. arXiv 2010.11929.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcl.contracts import FedclError
from fedcl.models import _layers
from fedcl.structure import Axis, Layer, rows


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q kᵀ / √d) v of Vaswani et al. 2017.

    Rows of `qkv` are grouped by head, so that a head more is rows more at the end.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.each = dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens x [B, T, dim] → [B, T, dim]."""
        batch, tokens, _ = x.shape
        heads = len(self.qkv.weight) // (3 * self.each)  # as many as have grown
        split = self.qkv(x).reshape(batch, tokens, heads, 3, self.each)
        q, k, v = split.permute(3, 0, 2, 1, 4)  # each [B, heads, T, dim / heads]
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Adapter(nn.Module):
    """A bottleneck around a shortcut, x + W₂ gelu(W₁ x + b) (Houlsby et al. 2019); without units it is the identity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, dim))
        self.bias = nn.Parameter(torch.empty(0))
        self.out = nn.Parameter(torch.empty(dim, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens x [B, T, dim] → [B, T, dim]."""
        if not len(self.weight):
            return x
        return x + F.linear(F.gelu(F.linear(x, self.weight, self.bias)), self.out)


class Block(nn.Module):
    """Attention and a two-layer net, each behind a LayerNorm and around a shortcut; then an adapter, if any."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, adapter: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, mlp_ratio * dim)
        self.down = nn.Linear(mlp_ratio * dim, dim)
        self.adapter = Adapter(dim) if adapter else None

    def forward(self, x: Tensor) -> Tensor:
        """Tokens x [B, T, dim] → [B, T, dim]."""
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return x if self.adapter is None else self.adapter(x)

    def growable(self) -> tuple[Layer, ...]:
        """Heads, hidden units, and an adapter's."""
        heads = rows("attention.qkv", "weight", "bias", block=3 * self.attention.each)
        found = [
            Layer("attention.qkv", "heads", heads, (Axis("attention.proj.weight", 1, self.attention.each),)),
            Layer("up", "units", rows("up", "weight", "bias"), (Axis("down.weight", 1),)),
        ]
        if self.adapter is not None:
            found.append(Layer("adapter", "adapter", rows("adapter", "weight", "bias"), (Axis("adapter.out", 1),)))
        return tuple(found)


class Vit(nn.Module):
    """Patches as tokens, learned positions, blocks; then the class token or the tokens' mean."""

    def __init__(
        self,
        inputs: int,
        patch: int,
        tokens: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        token: bool,
        adapters: bool,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(inputs * patch * patch, dim)
        self.token = nn.Parameter(torch.zeros(1, 1, dim)) if token else None
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens + token, dim), std=0.02))
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, adapters) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.width = dim

    def growable(self) -> tuple[Layer, ...]:
        """Each block's layers; what goes from block to block keeps its size."""
        blocks = [(place, cast(Block, block)) for place, block in enumerate(self.blocks)]
        return tuple(layer.under(f"blocks.{place}.") for place, block in blocks for layer in block.growable())

    def forward(self, x: Tensor) -> Tensor:
        """Images x [B, channels, height, width] → features [B, width]."""
        x = self.embed(F.unfold(x, self.patch, stride=self.patch).mT)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.positions
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x.mean(1) if self.token is None else x[:, 0]


def build(
    shape: tuple[int, ...],
    *,
    patch: int = 4,
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
    mlp_ratio: int = 2,
    pool: Literal["mean", "class"] = "mean",
    adapters: bool = False,
) -> nn.Module:
    """Build the trunk (Dosovitskiy et al. 2021, with the norm before each part).

    Args:
        shape: [channels, height, width] of an image.
        patch: side of a patch in pixels, a divisor of both; typically 4 up to 32 pixels, 16 at 224.
        dim: features of a token, a multiple of `heads`; typically 64 to 384.
        depth: blocks, typically 4 to 12.
        heads: of the attention, typically dim / 64 to dim / 16.
        mlp_ratio: hidden units of a block's net by dim, typically 2 to 4.
        pool: what the head sees: the tokens' `mean`, or a learned `class` token.
        adapters: a place for an adapter in each block, empty until the net grows one.

    Raises:
        FedclError: an option has no such value, or the samples are no images.
    """
    inputs, height, width = _layers.image("vit", shape)
    for key, value in {
        "patch": patch,
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": mlp_ratio,
    }.items():
        _layers.positive(key, [value])
    if height % patch or width % patch:
        fits = [n for n in range(2, min(height, width) + 1) if height % n == 0 and width % n == 0]
        raise FedclError(f"model.options.patch = {patch} does not divide {height}×{width} pixels; these do: {fits}")
    if dim % heads:
        raise FedclError(f"model.options.dim = {dim} is no multiple of model.options.heads = {heads}")
    if pool not in ("mean", "class"):
        raise FedclError(f"model.options.pool = {pool!r}: there are mean, class")
    tokens = (height // patch) * (width // patch)
    return Vit(inputs, patch, tokens, dim, depth, heads, mlp_ratio, pool == "class", adapters)
