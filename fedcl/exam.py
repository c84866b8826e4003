"""What a hospital scores for the server: answers to a Job, or figures that come along with training."""

from __future__ import annotations

from collections.abc import Sequence

from fedcl import evaluate
from fedcl.config import Config
from fedcl.contracts import Job, Params, Task, Update
from fedcl.federation import Federation
from fedcl.net import Net
from fedcl.quality import Quality
from fedcl.shelf import Shelf


class Exam:
    """Scores of the net that a worker holds.

    Args:
        config: for how the task is inferred.
        federation: who is behind a client.
        net: holds what the Job brought, or what was trained of it.
        shelf: the client's samples.
    """

    def __init__(self, config: Config, federation: Federation, net: Net, shelf: Shelf) -> None:
        self._infer, self._members, self._net, self._shelf = config.model.infer, federation.members, net, shelf
        self._quality = Quality(federation, net, shelf) if config.alarms.on else None

    def test(self, client: int, job: Job, asked: Sequence[str]) -> Update:
        """Counts of right answers of each hospital behind the client on each task's test samples.

        Where they will be summed, by task alone, of all tasks that the server asked for. Beside them what the client
        can say of its labels, see `Quality.measure`.
        """
        arrays: Params = {}
        tasks = [self._net.tasks[name] for name in job.tasks]
        for hospital in self._members[client]:
            data = [(task, self._shelf.test(hospital, task)) for task in tasks]
            counted = evaluate.count(self._net.net, tasks, job.seen, data, self._infer, job.broadcast)
            for task, (answers, scores) in counted.items():
                arrays[f"{hospital}.{task}.answers"] = answers
                arrays[f"{hospital}.{task}.scores"] = scores
        metrics = self._quality.measure(client, job) if self._quality else {}
        arrays = _whole([self._net.tasks[name] for name in asked], arrays) if job.sealed else arrays
        return Update(client, arrays, 0.0, metrics, version=job.version)

    def validate(self, client: int, job: Job, loss: bool) -> dict[str, float]:
        """Accuracy (and loss, if asked for) of the incoming model on validation samples of the client's tasks."""
        parts = self._shelf.parts(client, job, "val")
        total = sum(len(batch.y) for _, batch in parts)
        if not total:
            return {}
        right = lost = 0.0
        for task, batch in parts:
            self._net.allow(task, job.seen)
            right += evaluate.accuracy(self._net.net, task, batch) * len(batch.y)
            lost += float(evaluate.losses(self._net.net, task, batch).sum()) if loss else 0.0
        told = {"validate/loss": lost / total} if loss else {}
        return {"validate/accuracy": right / total, "validate/n": float(total)} | told

    def local(self, client: int, job: Job) -> dict[str, float]:
        """Accuracy of the client's own model, before the merge, on its test samples of the task."""
        if len(self._members[client]) > 1:
            return {}
        (task, batch), *_ = self._shelf.parts(client, job, "test")
        if not len(batch.y):
            return {}
        return {"local/accuracy": evaluate.accuracy(self._net.net, task, batch), "local/n": float(len(batch.y))}


def _whole(tasks: Sequence[Task], answers: Params) -> Params:
    """Hospitals' counts by task alone; zeros where there are no samples."""
    found = evaluate.blank(tasks)
    for key, value in answers.items():
        found[key.partition(".")[2]] += value
    return found
