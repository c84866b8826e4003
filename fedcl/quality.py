"""What a hospital can say of its own labels: counts, which are all that leaves it."""

from __future__ import annotations

from dataclasses import replace

from fedcl import evaluate
from fedcl.contracts import Batch, Job, Task
from fedcl.federation import Federation
from fedcl.net import Net
from fedcl.shelf import Shelf

FEWEST = 5  # samples: a count over fewer would speak of single ones
_LABELS = "labels/"  # before a figure, in an update's metrics


class Quality:
    """Counts over a hospital's samples of the tasks of a stage, with the merged model of the stage's end.

    Args:
        federation: for the samples; only the named client's are touched.
        net: holds the merged model.
        shelf: the same samples where the net computes.
    """

    def __init__(self, federation: Federation, net: Net, shelf: Shelf) -> None:
        self._federation, self._net, self._shelf = federation, net, shelf
        self._hashes: dict[tuple[int, int, str], list[int]] = {}

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
        samples, tested = (sum(len(self._batch(client, t, split).y) for t in now) for split in ("train", "test"))
        if not now or samples < FEWEST:
            return {}
        found = {"samples": samples} | self._wrong(client, job, now)
        labels = self._labels(client, list(sofar.values()))
        found["conflicts"] = sum(len(labels[key]) > 1 for task in now for key in self._keys(client, task, "train"))
        if tested >= FEWEST:
            training = {key for task in sofar.values() for key in self._keys(client, task, "train")}
            trained = {y for task in sofar.values() for y in self._batch(client, task, "train").y.tolist()}
            found["tested"] = tested
            found["leaks"] = sum(key in training for task in now for key in self._keys(client, task, "test"))
            found["gaps"] = sum(y not in trained for task in now for y in self._batch(client, task, "test").y.tolist())
        return {_LABELS + name: float(value) for name, value in found.items()}

    def _wrong(self, client: int, job: Job, now: list[Task]) -> dict[str, int]:
        """By class, where there are enough."""
        parts = self._shelf.parts(client, replace(job, tasks=tuple(task.id for task in now)))
        wrong: dict[int, list[bool]] = {}
        for task, batch in parts:
            y = self._batch(client, task, "train").y
            if len(y):
                answers = evaluate.wrong(self._net.net, task, Batch(batch.x, y)).tolist()
                for label, answer in zip(y.tolist(), answers, strict=True):
                    wrong.setdefault(label, []).append(answer)
        enough = {label: found for label, found in sorted(wrong.items()) if len(found) >= FEWEST}
        counts = {f"samples.{label}": len(found) for label, found in enough.items()}
        return counts | {f"wrong.{label}": sum(found) for label, found in enough.items()}

    def _labels(self, client: int, tasks: list[Task]) -> dict[int, set[int]]:
        """The labels of each distinct sample of training and validation."""
        labels: dict[int, set[int]] = {}
        for task in tasks:
            for split in ("train", "val"):
                for key, y in zip(
                    self._keys(client, task, split), self._batch(client, task, split).y.tolist(), strict=True
                ):
                    labels.setdefault(key, set()).add(y)
        return labels

    def _keys(self, client: int, task: Task, split: str) -> list[int]:
        """A hash of each sample's bytes, 64 bits; equal samples have equal ones."""
        key = client, task.index, split
        if key not in self._hashes:
            rows = self._batch(client, task, split).x.flatten(1).contiguous().numpy()
            self._hashes[key] = [hash(row.tobytes()) for row in rows]
        return self._hashes[key]

    def _batch(self, client: int, task: Task, split: str) -> Batch:
        return self._federation.train_data(client, task.index, split)

    def _task(self, index: int) -> Task:
        return self._federation.tasks[index]
