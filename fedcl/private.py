"""Steps under a mechanism that makes the gradients itself: each record's is clipped alone, and noise hides each.

Kept records of earlier tasks (`Method.kept`) are records as any other: a step draws each with the same chance, clips
its gradient, and it pays for that again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from fedcl import fisher
from fedcl.batches import Drawn, Part
from fedcl.clipped import clipped_sum
from fedcl.config import Train
from fedcl.contracts import Batch, Context, Memory, Method, Params
from fedcl.mechanism import Trainer
from fedcl.models.dynamic_net import DynamicNet
from fedcl.noise import Draw
from fedcl.protocols import Measure
from fedcl.steps import Steps

_STATE = "privacy/"  # in the client's memory: what the noise remembers from one step to the next


class PrivateSteps(Steps):
    """One round of one client.

    Args:
        train: epochs, and the expected size of a batch.
        method: for its penalty, which sees weights alone, and for the records that it keeps.
        net: what trains.
        part: the mechanism.
        task: index of the task.
        samples: that the client has of it.
        draw: draws the noise.
        generator: draws the records.
        memory: the client's.
        fresh: whether the noise begins anew: the first round of a stage.
    """

    def __init__(
        self,
        train: Train,
        method: Method,
        net: nn.Module,
        part: Trainer,
        task: int,
        samples: int,
        draw: Draw,
        generator: torch.Generator,
        memory: Memory,
        fresh: bool,
    ) -> None:
        self._train, self._method, self._net = train, method, net
        self._part, self._draw, self._generator = part.fitted(samples, train.batch_size), draw, generator
        self._kept = [_others(*method.kept(memory), task)] if method.records == "kept" else []
        self._state = {k.removeprefix(_STATE): v for k, v in memory.items() if k.startswith(_STATE) and not fresh}
        self._penalty = "penalty" in method.hooks()
        self._rate = part.rate(samples, train.batch_size)
        self._expected = part.size(samples, train.batch_size) + self._rate * sum(len(tasks) for _, tasks in self._kept)

    def draws(
        self,
        ctx: Context,
        parts: Sequence[Part],
        begin: bool,
        difficulty: Sequence[Tensor],
        offered: dict[str, Tensor],
    ) -> Iterator[Drawn]:
        """The batches of the round, of one task; some may be empty."""
        ((task, data),) = parts
        size, epochs = self._train.batch_size, self._train.epochs
        for rows in self._part.rows(len(data.y), size, epochs, self._generator):
            there = rows.to(data.y.device)
            yield Drawn(task, Batch(data.x[there], data.y[there]), None, 1.0)

    def backward(self, ctx: Context, params: Params, drawn: Drawn, memory: Memory) -> Tensor:
        """Gradients (Σ clipped + noise) / expected batch; the mean loss of the records that were drawn."""
        x, y = drawn.batch.x, drawn.batch.y
        index = torch.full_like(y, ctx.task.index)
        for old, tasks in self._kept:
            rows = (torch.rand(len(tasks), generator=self._generator) < self._rate).to(y.device)
            x, y, index = torch.cat([x, old.x[rows]]), torch.cat([y, old.y[rows]]), torch.cat([index, tasks[rows]])

        seen: list[Tensor] = []

        def losses(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
            logits = ctx.each({}, x, index) if self._kept else ctx.forward({}, x)
            found = nn.functional.cross_entropy(logits, y, reduction="none")
            seen.append(found)
            return found

        sums, _ = clipped_sum(self._net, list(params), losses, (x, y, index), self._part.clip)
        noised, self._state = self._part.noised(sums, self._state, self._draw)
        for name, parameter in params.items():
            parameter.grad = noised[name].div_(max(self._expected, 1.0))
        if self._penalty:
            self._method.penalty(ctx, params, drawn.batch, memory).backward()  # type: ignore[no-untyped-call]
        return seen[0].detach().mean() if seen else x.new_zeros(())

    def size(self, drawn: Drawn) -> float:
        """How many records a step draws on average: how many it drew has to stay secret."""
        return self._expected

    def remember(self, memory: Memory) -> Memory:
        """The client's memory with what the noise has to remember."""
        rest = {key: value for key, value in memory.items() if not key.startswith(_STATE)}
        return rest | {_STATE + key: value for key, value in self._state.items()}


def _others(kept: Batch, tasks: Tensor, task: int) -> tuple[Batch, Tensor]:
    """Kept records of other tasks: one that came by two ways would count twice in a step."""
    rows = tasks != task
    return Batch(kept.x[rows], kept.y[rows]), tasks[rows]


def measure(net: DynamicNet, task: str, part: Trainer, draw: Draw, source: torch.Generator) -> Measure:
    """How a Fisher diagonal of a task is measured where records are protected: one label is drawn for each sample."""

    def diagonal(names: Collection[str], x: Tensor, y: Tensor) -> Params:
        return fisher.private(
            net,
            lambda rows: net(rows, task),
            names,
            x,
            y,
            kind="sampled",
            clip=part.clip,
            noise_multiplier=part.fisher_sigma * part.sensitivity,
            size=len(y),
            draw=draw,
            generator=source,
        )

    return diagonal
