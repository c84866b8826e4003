"""Gradient projection memory: a layer's weights move only across the inputs that old tasks gave it.

Saha et al. 2021. At a task's end, with R [in, n] a layer's inputs on some samples and M the basis so far, the left
singular vectors of R̂ = R − M Mᵀ R are added until ‖M Mᵀ R‖² + Σ σ_i² ≥ ε ‖R‖² (eq. 9; the authors' code takes one
too few in the first task). The *update* is projected, W ← W₀ + (W − W₀)(I − M Mᵀ) with W₀ the weights at the task's
start, so that momentum, Adam, weight decay and the move to a merged model do not leak. A bias is a weight of the
constant input 1. What has no such inputs (normalisation, tokens) stays as the first task left it. R is kept as R Rᵀ,
which adds up over hospitals: `share = "sum"` gives all the basis of the pooled data. Works with the task known or
not; keeps no samples but the directions of their features.

References:
    Saha, Garg, Roy. Gradient Projection Memory for Continual Learning. ICLR 2021. arXiv 2103.09762.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedcl import infer, structure
from fedcl._sample_grads import recorded
from fedcl.contracts import Batch, Context, Memory, Method, Params, Step, role
from fedcl.methods import _subspace

_MOST = 1e38  # of R Rᵀ: sums of a few of these are finite, and so is their basis


@dataclass(frozen=True)
class GPM(Method):
    """Gradient projection memory.

    Attributes:
        threshold: ε in (0, 1], the share of the inputs' squared length that is protected: one for all layers, or one
            for each in the net's order, the last for all that follow; the paper's are 0.95, 0.99, 0.99 for permuted
            MNIST.
        growth: added to ε with each task, ≥ 0; the paper's 0.003 for CIFAR.
        samples: of a task, that R is measured on, ≥ 1.
        share: whose inputs: a hospital's `own`, or those of all (`sum`), for which R Rᵀ is uploaded.
    """

    threshold: tuple[float, ...] = (0.97,)
    growth: float = 0.0
    samples: int = 300
    share: Literal["own", "sum"] = "own"
    edits_last: ClassVar[bool] = True
    resizes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.threshold or not all(0 < value <= 1 for value in self.threshold):
            raise ValueError(f"threshold = {self.threshold}: one or more numbers in (0, 1]")
        if self.growth < 0 or self.samples < 1 or self.share not in ("own", "sum"):
            raise ValueError(f"growth = {self.growth} must be ≥ 0, samples = {self.samples} ≥ 1, share own or sum")

    def hooks(self) -> frozenset[str]:
        """The federated half only where inputs are shared."""
        return super().hooks() - ({"upload", "server", "receive"} if self.share == "own" else set())

    def begin_task(self, ctx: Context, params: Params, memory: Memory) -> Memory:
        """W₀."""
        shared = [name for name in params if role(name) in ("", "shared")]
        return memory | {f"start/{name}": params[name].detach().clone() for name in shared}

    def edit_grads(self, ctx: Context, params: Params, grads: Params, memory: Memory) -> tuple[Params, Memory]:
        """∇W (I − M Mᵀ): what Adam scales its steps by should be the part that it may take."""
        return _subspace.across(grads, memory), memory

    def edit_update(self, ctx: Context, step: Step, memory: Memory) -> tuple[Params, Memory]:
        """W₀ + (W − W₀)(I − M Mᵀ)."""
        start = {key.removeprefix("start/"): value for key, value in memory.items() if key.startswith("start/")}
        if not any(key.startswith("basis/") for key in memory):
            return step.after, memory
        moved = _subspace.across({name: step.after[name] - start[name] for name in step.after if name in start}, memory)
        return step.after | {name: start[name] + value for name, value in moved.items()}, memory

    def end_task(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Memory:
        """Measure R Rᵀ at the merged model; extend M, unless all hospitals' are added first."""
        chosen = torch.randperm(len(data.x), generator=ctx.generator)[: self.samples].to(data.x.device)
        layers = _subspace.layers(ctx.net)
        with torch.no_grad(), recorded(layers) as calls:
            ctx.forward({}, data.x[chosen])
        none = torch.zeros(0, 0, dtype=torch.float64)  # of a layer that the net never calls: its inputs are not seen
        grams = {
            name: _subspace.gram(layer, [call.a for call in calls[name]]) if calls[name] else none
            for name, layer in layers.items()
        }
        kept = {key: value for key, value in memory.items() if not key.startswith("start/")}
        if self.share == "sum":
            if len(chosen) < infer.SMALLEST:  # a sum over so few samples would tell them
                return {key: value for key, value in kept.items() if not key.startswith("gram/")}
            return kept | {f"gram/{name}": gram for name, gram in grams.items()}
        return self._more(kept, grams)

    def upload(self, memory: Memory) -> Memory:
        """R Rᵀ of the task just ended, where hospitals share it."""
        return {key: value for key, value in memory.items() if key.startswith("gram/")}

    def misfit(self, client: int, net: nn.Module, params: Params, upload: Memory) -> str:
        """R Rᵀ of each layer, empty where its inputs are not seen; or nothing at all, of too few samples."""
        grams = {f"gram/{name}": _subspace.width(layer) for name, layer in _subspace.layers(net).items()}
        sizes = {key: 0 if key in upload and not upload[key].numel() else size for key, size in grams.items()}
        like = {key: torch.empty(size, size, dtype=torch.float64) for key, size in sizes.items()}
        if large := [
            key for key, gram in upload.items() if gram.is_floating_point() and bool((gram.abs() > _MOST).any())
        ]:
            return f"{large[0]} is beyond {_MOST:g}, as sums of inputs never are"
        return structure.unlike(upload, like) if upload else ""

    def server(self, params: Params, state: Memory, uploads: Sequence[tuple[float, Memory]]) -> tuple[Memory, Memory]:
        """The basis of all hospitals' inputs."""
        sent = [upload for weight, upload in uploads if upload and weight > 0]
        grams: dict[str, Tensor] = {}
        for key, gram in ((key, gram) for upload in sent for key, gram in upload.items() if gram.numel()):
            name = key.removeprefix("gram/")
            grams[name] = grams[name] + gram if name in grams else gram
        state = self._more(state, grams)
        return state, state

    def receive(self, broadcast: Memory, memory: Memory) -> Memory:
        """Take over the common basis."""
        return memory | broadcast

    def _more(self, memory: Memory, grams: dict[str, Tensor]) -> Memory:
        """M of each layer with the directions that one more task needs."""
        kept = {key: value for key, value in memory.items() if not key.startswith("gram/")}
        task = int(kept.get("tasks", torch.tensor(0)))
        for place, (name, gram) in enumerate((name, gram) for name, gram in grams.items() if gram.numel()):
            start = self.threshold[min(place, len(self.threshold) - 1)]
            old = kept.get(f"basis/{name}", gram.new_zeros(len(gram), 0, dtype=torch.float32))
            kept[f"basis/{name}"] = _subspace.covering(old, gram, min(start + task * self.growth, 1.0))
        return kept | {"tasks": torch.tensor(task + 1)}
