"""Which of a client's samples a round trains on, and in which order they come.

`offline` makes epochs over all samples of the task in every round. `online` and `hybrid` deal them out over the
rounds of the stage, in order of arrival, and each is trained on once. A curriculum goes from the samples of the
smallest loss to all (Bengio et al. 2009), by a pacing function (Hacohen & Weinshall 2019; names after Wu et al.
2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedcl import rng
from fedcl.config import Curriculum, Train
from fedcl.contracts import Batch, Memory, Task

Part = tuple[Task, Batch]  # a task and a client's samples of it
POSITION, OFFERED = "stream/position/", "stream/offered/"  # in the client's memory, by task


class Drawn(NamedTuple):
    """One step's samples."""

    task: Task
    batch: Batch  # overwritten by the next one of its task
    first: Tensor | None  # [B] bool, which samples come for the first time in the stage; None is none
    progress: float  # of the epoch, in (0, 1]


PACING: dict[str, Callable[[float], float]] = {
    "linear": lambda u: u,
    "root": math.sqrt,
    "quadratic": lambda u: u * u,
    "step": lambda u: float(u >= 1),
}


def available(curriculum: Curriculum, progress: float) -> float:
    """The share of samples, easiest first, at a point of the stage in [0, 1)."""
    reached = PACING[curriculum.pacing](min(progress / curriculum.full, 1.0))
    return curriculum.start + (1 - curriculum.start) * reached


def arrived(train: Train, seed: int, client: int, part: Part, low: int, high: int) -> Part:
    """The samples that a client meets in rounds low … high − 1 of a stage; offline, all of them."""
    task, batch = part
    if train.stream == "offline":
        return part
    n = len(batch.y)
    rows = torch.arange(n)
    if train.order == "random":  # of arrival: the data set's own order may be sorted by class
        rows = torch.randperm(n, generator=rng.torch_stream(seed, "arrival", client, task.index))
    rows = rows[n * low // train.rounds : n * high // train.rounds].to(batch.y.device)
    return task, Batch(batch.x[rows], batch.y[rows])


def since(train: Train, task: Task, memory: Memory) -> int:
    """The first round of the stage whose samples the client has not met: it may have sat out some."""
    return 0 if train.stream == "offline" else int(memory.get(f"{POSITION}{task.id}", torch.zeros(())))


def remember(train: Train, parts: Sequence[Part], number: int, offered: dict[str, Tensor], memory: Memory) -> Memory:
    """The memory after a round: how far the stream went, and what was offered of a curriculum."""
    if train.stream != "offline":
        memory = memory | {f"{POSITION}{task.id}": torch.tensor(number + 1) for task, _ in parts}
    return memory | {f"{OFFERED}{name}": value for name, value in offered.items()}


def forget(memory: Memory) -> Memory:
    """The memory at the beginning of a stage."""
    return {key: value for key, value in memory.items() if not key.startswith("stream/")}


def draw(
    train: Train,
    generator: torch.Generator,
    parts: Sequence[Part],
    number: int,
    begin: bool,
    difficulty: Sequence[Tensor],
    offered: dict[str, Tensor],
) -> Iterator[Drawn]:
    """All batches of a round.

    Args:
        train: epochs, batch size, order.
        generator: draws the order.
        parts: the tasks, usually one.
        number: of the round in its stage.
        begin: whether this is the client's first round of the stage.
        difficulty: for a curriculum, the loss of each sample, by part.
        offered: for a curriculum, task → which samples came already [n] bool; written to.
    """
    size, online = train.batch_size, train.stream != "offline"
    epochs = 1 if online else train.epochs
    rooms = [(torch.empty_like(batch.x[:size]), torch.empty_like(batch.y[:size])) for _, batch in parts]
    for epoch in range(epochs):
        plan: list[tuple[int, Tensor]] = []
        for index, (_, batch) in enumerate(parts):
            rows = torch.arange(len(batch.y))
            if difficulty:
                share = available(train.curriculum, (number + epoch / epochs) / train.rounds)
                rows = difficulty[index].argsort(stable=True)[: max(1, round(share * len(rows)))].cpu()
            if train.order != "arrival" and not online:
                rows = rows[torch.randperm(len(rows), generator=generator)]
            plan += [(index, chunk) for chunk in torch.split(rows, size)]
        if len(parts) > 1:
            plan = [plan[i] for i in torch.randperm(len(plan), generator=generator)]
        for done, (index, chunk) in enumerate(plan, start=1):
            task, batch = parts[index]
            x, y = (room[: len(chunk)] for room in rooms[index])
            rows = chunk.to(batch.x.device)
            torch.index_select(batch.x, 0, rows, out=x)
            torch.index_select(batch.y, 0, rows, out=y)
            first = None
            if difficulty:
                first = ~offered[task.id][chunk]
                offered[task.id][chunk] = True
            elif online or (begin and epoch == 0):
                first = torch.ones(len(chunk), dtype=torch.bool)
            yield Drawn(task, Batch(x, y), first, done / len(plan))
