"""Federated orthogonal training: the server lets the merged model move only across the inputs of old tasks.

Bakman et al. 2024 (ICLR). At a task's end each hospital sends, for each layer, A R with A [in, n] the layer's
inputs on its samples and R [n, r] uniform in [−1, 1]: the sum over hospitals spans what all inputs span, and secure
aggregation could hide its parts. The left singular vectors of the sum, less what the basis M has already, are added
until they cover ε of its energy (as eq. 9 of GPM, Saha et al. 2021). In later stages the server projects each
round's merged update, ΔW ← ΔW (I − M Mᵀ); hospitals train as they like. A bias is a weight of the constant input 1.
What tasks share and belongs to no linear layer or convolution (normalisation, tokens) stays as the first stage left it.
Works with the task known or not; keeps at a hospital what it sent, until its next task begins; sends r columns a layer,
once a task.

References:
    Bakman, Yaldiz, Ezzeldin, Avestimehr. Federated Orthogonal Training: Mitigating Global Catastrophic Forgetting
        in Continual Federated Learning. ICLR 2024. arXiv 2309.01289.
    Saha, Garg, Roy. Gradient Projection Memory for Continual Learning. ICLR 2021. arXiv 2103.09762.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from fedcl import infer, structure
from fedcl._sample_grads import recorded
from fedcl.contracts import Batch, Context, Memory, Method, Moment, Params, role
from fedcl.methods import _subspace


@dataclass(frozen=True)
class FOT(Method):
    """Federated orthogonal training.

    Attributes:
        threshold: ε in (0, 1]; the authors' are 0.96 for iid hospitals and 0.94 for two shards each.
        columns: r, ≥ 1, or 0 for as many as a layer has inputs. What is sent, and the most directions of a task.
        samples: of a task, that a hospital measures on; 0 takes all.
        biases: protect biases too; the authors' code lets them move.
    """

    threshold: float = 0.96
    columns: int = 0
    samples: int = 0
    biases: bool = True
    resizes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1 or self.columns < 0 or self.samples < 0:
            raise ValueError(f"threshold = {self.threshold} must be in (0, 1], columns and samples ≥ 0")

    def begin_task(self, ctx: Context, params: Params, memory: Memory) -> Memory:
        """Forget what was sent."""
        return {}

    def end_task(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Memory:
        """A R of each layer, at the merged model."""
        if len(data.x) < infer.SMALLEST:  # columns of so few samples would tell them
            return {}
        chosen = torch.randperm(len(data.x), generator=ctx.generator)[: self.samples or None].to(data.x.device)
        layers = _subspace.layers(ctx.net)
        with torch.no_grad(), recorded(layers) as calls:
            ctx.forward({}, data.x[chosen])
        sketches = {}
        for name, layer in layers.items():
            sketches[f"sketch/{name}"] = torch.zeros(0, 0)  # of a layer that the net never calls
            if calls[name]:
                rows = _subspace.inputs(layer, [call.a for call in calls[name]], self.biases)
                width = self.columns or rows.shape[1]
                mixed = torch.rand(len(rows), width, generator=ctx.generator, dtype=torch.float64) * 2 - 1
                sketches[f"sketch/{name}"] = (rows.T @ mixed.to(rows)).float()
        return sketches

    def upload(self, memory: Memory) -> Memory:
        """The sketches of the task just ended."""
        return memory

    def misfit(self, client: int, net: nn.Module, params: Params, upload: Memory) -> str:
        """A R of each layer, empty where its inputs are not seen; or nothing at all, of too few samples."""
        like = {}
        for name, layer in _subspace.layers(net).items():
            key, rows = f"sketch/{name}", _subspace.width(layer, self.biases)
            empty = key in upload and not upload[key].numel()
            like[key] = torch.empty(0, 0) if empty else torch.empty(rows, self.columns or rows)
        return structure.unlike(upload, like) if upload else ""

    def server(self, params: Params, state: Memory, uploads: Sequence[tuple[float, Memory]]) -> tuple[Memory, Memory]:
        """Extend each layer's basis by what the sum of all sketches adds."""
        sent = [upload for weight, upload in uploads if upload and weight > 0]
        state = dict(state)
        for key in dict.fromkeys(key for upload in sent for key in upload if upload[key].numel()):
            total = torch.stack([upload[key].double() for upload in sent if upload[key].numel()]).sum(0)
            name = key.replace("sketch/", "basis/", 1)
            old = state.get(name, torch.zeros(len(total), 0))
            state[name] = _subspace.covering(old, total @ total.T, self.threshold)
        return state, {}

    def merged(self, moment: Moment, before: Params, params: Params, state: Memory) -> tuple[Params, Memory]:
        """ΔW (I − M Mᵀ)."""
        shared = [name for name in params if role(name) in ("", "shared")]
        if moment.round == 0 or not state:
            return params, state
        moved = {name: params[name] - before[name] for name in shared}
        across = _subspace.across(moved, state)
        return params | {name: before[name] + value for name, value in across.items()}, state
