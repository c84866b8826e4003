"""In which order a round's samples come: shuffled anew in each epoch, the batches of several tasks mixed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedcl.config import Train
from fedcl.contracts import Batch, Task

Part = tuple[Task, Batch]  # a task and all of a client's samples of it


def draw(
    train: Train, generator: torch.Generator, parts: Sequence[Part], begin: bool
) -> Iterator[tuple[Task, Batch, bool]]:
    """All batches of a round; each is overwritten by the next one of its task.

    Args:
        train: epochs, batch size, whether to shuffle.
        generator: draws the order.
        parts: the tasks, usually one.
        begin: whether this is the client's first round of the stage.

    Yields:
        (task, batch, whether its samples come for the first time in the stage).
    """
    size = train.batch_size
    rooms = [(torch.empty_like(batch.x[:size]), torch.empty_like(batch.y[:size])) for _, batch in parts]
    for epoch in range(train.epochs):
        plan: list[tuple[int, Tensor]] = []
        for index, (_, batch) in enumerate(parts):
            n = len(batch.y)
            order = torch.randperm(n, generator=generator) if train.shuffle else torch.arange(n)
            plan += [(index, chunk) for chunk in torch.split(order.to(batch.x.device), size)]
        if len(parts) > 1:
            plan = [plan[i] for i in torch.randperm(len(plan), generator=generator)]
        for index, chunk in plan:
            task, batch = parts[index]
            x, y = (room[: len(chunk)] for room in rooms[index])
            torch.index_select(batch.x, 0, chunk, out=x)
            torch.index_select(batch.y, 0, chunk, out=y)
            yield task, Batch(x, y), begin and epoch == 0
