"""What the server sees of one update: one hospital's, or a sum where a mechanism lets it see no more.

The server asks for one step of SGD on n records, all of them in one batch: an honest answer to that shows most. The
answer comes from the client's own code, under the run's own mechanisms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedcl import methods, privacy
from fedcl.client import Client
from fedcl.config import Config
from fedcl.contracts import FedclError, Job, Task, Update, role
from fedcl.federation import Federation
from fedcl.leaks.moment import Moment
from fedcl.leaks.plan import Target
from fedcl.leaks.records import held, without
from fedcl.models.dynamic_net import DynamicNet
from fedcl.net import Net
from fedcl.store import Store

_PLAIN = "finetune"


@dataclass(frozen=True, eq=False)
class Seen:
    """One update, and the truth behind it."""

    gradient: dict[str, Tensor]  # −delta / learning rate, as the server computes it
    net: DynamicNet  # that was sent
    x: Tensor  # [n, *shape] of all hospitals that are in it, as the net saw them
    y: Tensor  # [n] outputs of the task's head
    task: Task
    hospitals: int  # in the sum


def update(target: Target, moment: Moment, task: Task, records: Mapping[int, np.ndarray], number: int) -> Seen:
    """What the server sees of the hospitals' answers to one Job.

    Args:
        target: the run.
        moment: the model that the server sends.
        task: that it is trained on.
        records: hospital → rows of the federation, n for each. Several hospitals are seen as a sum.
        number: of the try: noise is drawn anew for each.
    """
    federation, size = target.federation, len(next(iter(records.values())))
    config = step(target.config, size, number)
    small = _only(federation, task, records)
    arrays = {n: v for n, v in moment.params.items() if role(n) in ("", task.id, moment.net.owner(task.id))}
    client = Client(config, small, methods.build(config), Store(None))
    guard = privacy.build(config)
    job = Job(
        phase="train",
        stage=moment.stage,
        round=moment.stage * target.config.train.rounds,
        tasks=(task.id,),
        arrays=arrays,
        lr=config.train.lr,
        flags=("begin",),
        seen=tuple(sorted(task.classes)),
        terms=guard.terms({}),
    )
    answers = [client.run(hospital, job) for hospital in records]
    batches = [small.batch(hospital, task.index, "train") for hospital in records]
    net = Net(config, small, torch.device("cpu"))
    net.load(arrays)
    net.allow(task, job.seen)
    y = net.labels(task, torch.cat([batch.y for batch in batches]))
    found = _mean(answers, config.train.lr)
    return Seen(found, net.net.eval(), torch.cat([batch.x for batch in batches]), y, task, len(records))


def summed(config: Config) -> bool:
    """Whether the server sees sums alone."""
    return privacy.build(config).sums is not None


def step(config: Config, size: int, number: int) -> Config:
    """The run's config, but for one plain step on `size` records; what a mask hides is added up here instead."""
    guard = privacy.build(config)
    names = [name for name, part in guard.parts.items() if part is not guard.sums]
    one = {"rounds": 1, "epochs": 1, "batch_size": size, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    one |= {"stream": "offline", "order": "random", "reset": "round"}
    return config.model_copy(
        update={
            "seed": config.seed + number,  # noise and batches; the weights are given
            "method": _PLAIN,
            "methods": {},
            "train": config.train.model_copy(update=one),
            "alarms": config.alarms.model_copy(update={"on": False}),
            "data": config.data.model_copy(update={"augment": []}),
            "privacy": config.privacy.model_copy(update={"mechanism": "+".join(names) or "none"}),
            "mechanisms": {name: config.mechanisms[name] for name in names if name in config.mechanisms},
            "run": config.run.model_copy(update={"device": "cpu", "runtime": "inline"}),
        }
    )


def _only(federation: Federation, task: Task, records: Mapping[int, np.ndarray]) -> Federation:
    """The federation in which these hospitals hold nothing of the task but these records."""
    if any(len(federation.members[client]) > 1 for client in range(len(federation.members))):
        raise FedclError("pooled data are in one place: there is no update of a hospital to be seen")
    rest = [np.setdiff1d(held(federation, hospital, task.index), rows) for hospital, rows in records.items()]
    return without(federation, np.concatenate(rest))


def _mean(answers: list[Update], lr: float) -> dict[str, Tensor]:
    """The mean of the answers by their weights, as the gradient that it is a step of."""
    weights = torch.tensor([answer.weight for answer in answers])
    shares = (weights / weights.sum()).tolist()
    return {
        name: torch.stack([answer.arrays[name] * -share for answer, share in zip(answers, shares, strict=True)]).sum(0)
        / lr
        for name in answers[0].arrays
    }
