"""A hospital's samples as a Job asks for them: its tasks, this round's part of a stream, labels as outputs."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from fedcl import augment, batches, evaluate, rng
from fedcl.batches import Drawn, Part
from fedcl.config import Config
from fedcl.contracts import Batch, Job, Memory, Task
from fedcl.device import Device
from fedcl.federation import Federation
from fedcl.net import Net


class Shelf:
    """The samples of the clients of one process.

    Args:
        config: the experiment.
        federation: who holds what; only the named client's samples are touched.
        here: where they are to lie.
        net: for what its outputs mean.
    """

    def __init__(self, config: Config, federation: Federation, here: Device, net: Net) -> None:
        self._train, self._seed = config.train, config.seed
        self._federation, self._here, self._net = federation, here, net
        self._augment = augment.build(config.data.augment)

    def parts(self, client: int, job: Job, split: str = "train") -> list[Part]:
        """(task, all of the client's samples) of the tasks of a Job."""
        parts = []
        for name in job.tasks:
            task = self._net.tasks[name]
            key = (client, task.index, split)
            batch = self._here.batch(key, functools.partial(self._federation.train_data, *key))
            self._net.allow(task, job.seen)
            parts.append((task, Batch(batch.x, self._net.labels(task, batch.y))))
        return parts

    def arrived(self, client: int, job: Job, memory: Memory) -> list[Part]:
        """The samples that a round trains on: all, or what came of a stream since the client last trained."""
        now = job.round % self._train.rounds + 1
        return [
            batches.arrived(self._train, self._seed, client, part, batches.since(self._train, part[0], memory), now)
            for part in self.parts(client, job)
        ]

    def consolidated(self, client: int, job: Job) -> list[Part]:
        """The samples that came since the client last consolidated; all of the task's, unless it is a stream."""
        train, number = self._train, job.round % self._train.rounds
        every = train.consolidate_every if train.stream == "hybrid" else train.rounds
        low = number // every * every
        return [batches.arrived(train, self._seed, client, part, low, number + 1) for part in self.parts(client, job)]

    def test(self, hospital: int, task: Task) -> Batch:
        """A hospital's test samples of a task, with global class ids."""
        load = functools.partial(self._federation.batch, hospital, task.index, "test")
        return self._here.batch(("test of", hospital, task.index), load)

    def augmented(self, noise: torch.Generator, found: Iterator[Drawn]) -> Iterator[Drawn]:
        """A round's batches; whatever augmentation draws comes from a stream of its own."""
        if self._augment is None:
            yield from found
            return
        with rng.torch_global_from(noise):
            for drawn in found:
                yield drawn._replace(batch=Batch(self._augment(drawn.batch.x), drawn.batch.y))

    def curriculum(self, job: Job, parts: list[Part], memory: Memory) -> tuple[list[Tensor], dict[str, Tensor]]:
        """For a curriculum: each sample's loss now, and which samples were offered in this stage already."""
        if self._train.order != "curriculum":
            return [], {}
        offered, losses = {}, []
        self._net.net.eval()
        for task, batch in parts:
            key = f"{batches.OFFERED}{task.id}"
            offered[task.id] = memory[key].clone() if key in memory else torch.zeros(len(batch.y), dtype=torch.bool)
            self._net.allow(task, job.seen)
            losses.append(evaluate.losses(self._net.net, task, batch))
        return losses, offered
