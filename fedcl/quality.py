"""What a hospital can say of its own labels: counts, which are all that leaves it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fedcl import evaluate
from fedcl.contracts import Batch, Job, Task
from fedcl.federation import Federation
from fedcl.mechanism import LABELS
from fedcl.net import Net
from fedcl.shelf import Shelf

FEWEST = 5  # samples: a count over fewer would speak of single ones
Ids = npt.NDArray[np.int64]


class Quality:
    """Counts over a hospital's samples of the tasks of a stage, with the merged model of the stage's end.

    Args:
        federation: for the samples; only the named client's are touched.
        net: holds the merged model.
        shelf: the same samples where the net computes.
    """

    def __init__(self, federation: Federation, net: Net, shelf: Shelf) -> None:
        self._federation, self._net, self._shelf = federation, net, shelf
        self._hashes: dict[tuple[int, int, str], Ids] = {}

    def measure(self, client: int, job: Job) -> dict[str, float]:
        """Figures `labels/…`, of a client that is one hospital with a task in this stage; none of fewer than 5 samples.

        Returns:
            samples: training samples of its current tasks; samples.<c>: those of class c; wrong.<c>: those of them that
            the merged model, told the task, would label otherwise; conflicts: samples with an exact copy of another
            label in training or validation, in any task so far; tested: test samples of its current tasks; leaks: those
            that are in training too; gaps: those of classes that it has no training sample of.
        """
        plan = self._federation.schedule
        if job.stage < 0 or len(self._federation.members[client]) > 1:
            return {}
        now = [task for task in map(self._task, plan[job.stage][client]) if task.id in job.tasks]
        sofar = {task.index: task for stage in plan[: job.stage + 1] for task in map(self._task, stage[client])}
        y, tested = self._labels(client, now, "train"), self._labels(client, now, "test")
        if len(y) < FEWEST:
            return {}
        met = list(sofar.values())
        trained, training = self._labels(client, met, "train"), self._keys(client, met, "train")
        keys = np.concatenate([training, self._keys(client, met, "val")])
        twice = _ambiguous(keys, np.concatenate([trained, self._labels(client, met, "val")]))
        found = {"samples": len(y)} | self._wrong(client, job, now)
        found["conflicts"] = int(np.isin(self._keys(client, now, "train"), twice).sum())
        if len(tested) >= FEWEST:
            found["tested"] = len(tested)
            found["leaks"] = int(np.isin(self._keys(client, now, "test"), training).sum())
            found["gaps"] = int(np.isin(tested, trained, invert=True).sum())
        return {LABELS + name: float(value) for name, value in found.items()}

    def _wrong(self, client: int, job: Job, now: list[Task]) -> dict[str, int]:
        """By class, where there are enough."""
        parts = self._shelf.parts(client, replace(job, tasks=tuple(task.id for task in now)))
        asked, missed = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for task, batch in parts:
            y = self._batch(client, task, "train").y
            if len(y):
                asked.append(y.numpy())
                missed.append(asked[-1][evaluate.wrong(self._net.net, task, Batch(batch.x, y)).cpu().numpy()])
        labels, counts = np.unique(np.concatenate(asked), return_counts=True)
        wrong = np.concatenate(missed)
        enough = {int(y): int(n) for y, n in zip(labels, counts, strict=True) if n >= FEWEST}
        samples = {f"samples.{label}": count for label, count in enough.items()}
        return samples | {f"wrong.{label}": int((wrong == label).sum()) for label in enough}

    def _labels(self, client: int, tasks: list[Task], split: str) -> Ids:
        """Of the client's samples of some tasks, one task after another [n]."""
        return np.concatenate([np.zeros(0, np.int64), *(self._batch(client, t, split).y.numpy() for t in tasks)])

    def _keys(self, client: int, tasks: list[Task], split: str) -> Ids:
        """A hash of each sample's bytes [n], 64 bits, in the order of `_labels`; equal samples have equal ones."""
        for task in tasks:
            if (key := (client, task.index, split)) not in self._hashes:
                rows = self._batch(client, task, split).x.flatten(1).contiguous().numpy()
                self._hashes[key] = np.array([hash(row.tobytes()) for row in rows], np.int64)
        return np.concatenate([np.zeros(0, np.int64), *(self._hashes[client, t.index, split] for t in tasks)])

    def _batch(self, client: int, task: Task, split: str) -> Batch:
        return self._federation.train_data(client, task.index, split)

    def _task(self, index: int) -> Task:
        return self._federation.tasks[index]


def _ambiguous(keys: Ids, labels: Ids) -> Ids:
    """The keys [k] that come with more than one label."""
    order = np.lexsort((labels, keys))
    keys, labels = keys[order], labels[order]
    return np.unique(keys[1:][(keys[1:] == keys[:-1]) & (labels[1:] != labels[:-1])])
