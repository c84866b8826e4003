"""A small generator that learns from a model alone: noise and a wanted class → a sample of the data's shape.

No data: what it is told comes from the model's answers and, where the model has any, its running statistics.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedcl import rng
from fedcl.contracts import Context, Params

_LEAST = 1e-12  # of a probability, before its logarithm


class Generator(nn.Module):
    """Noise [B, noise] and kinds [B] → samples [B, *shape].

    Images: a linear layer to a map of a quarter of the size, then twice a nearest-neighbour upsampling with a 3×3
    convolution; everything else: two hidden layers. Normalised and leaky between, as in MFCL and TARGET. The last step
    puts values between `bounds`, or, where there are none, gives every channel or feature mean 0 and deviation 1.
    """

    def __init__(
        self, shape: Sequence[int], kinds: int, noise: int, width: int, bounds: tuple[Tensor, Tensor] | None
    ) -> None:
        super().__init__()
        self.shape, self.kinds, self.bounds = tuple(shape), kinds, bounds
        self.start = (width, -(-shape[1] // 4), -(-shape[2] // 4)) if len(shape) == 3 else (width,)
        self.first = nn.Linear(noise + kinds, math.prod(self.start))
        self.norm: nn.Module
        if len(shape) == 3:
            sizes = [(-(-shape[1] // 2), -(-shape[2] // 2)), (shape[1], shape[2])]
            self.body = nn.Sequential(nn.BatchNorm2d(width), nn.LeakyReLU(0.2))
            for size in sizes:
                self.body += nn.Sequential(nn.Upsample(size), nn.Conv2d(width, width, 3, padding=1))
                self.body += nn.Sequential(nn.BatchNorm2d(width), nn.LeakyReLU(0.2))
            self.body.append(nn.Conv2d(width, shape[0], 3, padding=1))
            self.norm = nn.BatchNorm2d(shape[0], affine=False)
        else:
            self.body = nn.Sequential(nn.BatchNorm1d(width), nn.LeakyReLU(0.2), nn.Linear(width, width))
            self.body += nn.Sequential(nn.BatchNorm1d(width), nn.LeakyReLU(0.2), nn.Linear(width, math.prod(shape)))
            self.norm = nn.BatchNorm1d(math.prod(shape), affine=False)

    def forward(self, z: Tensor, kind: Tensor) -> Tensor:
        """Samples, in the model's inputs' range."""
        wanted = nn.functional.one_hot(kind, self.kinds).to(z)
        x = self.body(self.first(torch.cat([z, wanted], 1)).reshape(len(z), *self.start))
        if self.bounds is None:
            return self.norm(x).reshape(len(z), *self.shape)  # type: ignore[no-any-return]
        low, high = self.bounds
        return low + (high - low) * torch.sigmoid(x.reshape(len(z), *self.shape))


class Classes:
    """The classes of all tasks so far, "kinds" 0 … K − 1, and what a net says of samples of them.

    Args:
        ctx: of the server's half, see `Method.synthesize`.

    Attributes:
        task: [K], the index of each kind's task.
        label: [K], its output there.
        columns: [K, outputs], which class an output stands for: heads of tasks may number theirs alike.
    """

    def __init__(self, ctx: Context) -> None:
        self._each = ctx.each
        device = next(ctx.net.parameters()).device
        own = [
            (task.index, label, name)
            for task in ctx.past
            for label, name in zip(ctx.labels(task), task.classes, strict=True)
        ]
        self.task, self.label, names = torch.tensor(own, device=device).T
        apart = len(names.unique()) > len(self.label.unique())  # each head numbers its classes from 0
        self.columns = torch.arange(ctx.outputs, device=device) + ctx.outputs * apart * self.task[:, None]
        self._met = torch.isin(self.columns, self.columns.gather(1, self.label[:, None]))

    def ask(self, params: Params, x: Tensor, kind: Tensor) -> Tensor:
        """Samples x [B, …] of kinds [B] → logits [B, outputs], −∞ where no class was met yet."""
        return self._each(params, x, self.task[kind]).masked_fill(~self._met[kind], -torch.inf)


def spread(probabilities: Tensor, columns: Tensor) -> Tensor:
    """−H of the batch's mean answer, which is least where all answers are given alike; a 0-d tensor in nats.

    Args:
        probabilities: [B, outputs], 0 where a sample's softmax has no such output.
        columns: [B, outputs], which answer an output stands for: heads of tasks may number theirs alike.
    """
    mean = probabilities.new_zeros(int(columns.max()) + 1)
    mean = mean.index_add(0, columns.flatten(), probabilities.flatten()) / len(probabilities)
    return torch.xlogy(mean, mean.clamp_min(_LEAST)).sum()


def divergence(old: Tensor, new: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(old / T) ‖ softmax(new / T)) of each sample [B], over the outputs that the old logits have."""
    closed = ~old.isfinite()
    target, found = (torch.log_softmax(z.masked_fill(closed, -torch.inf) / temperature, 1) for z in (old, new))
    apart = target.masked_fill(closed, 0.0) - found.masked_fill(closed, 0.0)
    return temperature**2 * (target.exp() * apart).sum(1)


def roughness(x: Tensor) -> Tensor:
    """Mean squared distance of images [B, C, h, w] to themselves under a 3×3 binomial blur, a 0-d tensor."""
    line = torch.tensor([0.25, 0.5, 0.25]).to(x)
    kernel = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    return (nn.functional.conv2d(padded, kernel, groups=x.shape[1]) - x).square().mean()


@contextmanager
def watched(net: nn.Module) -> Iterator[list[Tensor]]:
    """‖μ − μ̂‖² + ‖σ² − σ̂²‖² of each call, in the block, of a layer with running statistics μ̂ and σ̂².

    μ and σ² are the batch's, over samples and positions; the variance is that of the batch itself (biased).
    """
    gaps: list[Tensor] = []

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, _BatchNorm)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        x = inputs[0].transpose(0, 1).flatten(1)  # [channels, B · positions]
        mean, variance = x.mean(1), x.var(1, unbiased=False)
        gaps.append((mean - layer.running_mean).square().sum() + (variance - layer.running_var).square().sum())

    layers = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    handles = [layer.register_forward_pre_hook(measure) for layer in layers]
    try:
        yield gaps
    finally:
        for handle in handles:
            handle.remove()


def untaught(ctx: Context) -> Params:
    """A student: parameters of the net's own shape, drawn anew where a layer knows how; each takes a gradient."""
    twin = copy.deepcopy(ctx.net)
    with rng.torch_global_from(split(ctx)):
        for _, module in sorted(
            twin.named_modules(), key=lambda named: named[0]
        ):  # a resumed run adds tasks in any order
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return {name: value.detach().requires_grad_() for name, value in twin.named_parameters()}


def split(ctx: Context) -> torch.Generator:
    """An independent generator, drawn from the context's."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=ctx.generator)))
