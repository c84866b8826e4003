"""Does a claimed ε hold? One release of it is repeated, with a canary by a coin each time, and the canary looked for.

The release is a hospital's answer to one step, as the client's own code makes it: clipping, sum, noise. The canary is
an image of noise with the label that the net thinks least likely, so that its gradient is long and like no other's. The
server's score is the update's length along it. Trials are independent, and what the ledger is told of one such answer
is what their bound (Nasr et al. 2021) must not exceed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from fedcl import evaluate, privacy, protect, rng
from fedcl.attacks.audit import bound
from fedcl.attacks.gradients import gradient
from fedcl.attacks.roc import area
from fedcl.contracts import FedclError, Task
from fedcl.leaks import observe
from fedcl.leaks.moment import Moment, at
from fedcl.leaks.observe import Seen
from fedcl.leaks.plan import Target
from fedcl.leaks.records import held, limits, replaced, shown
from fedcl.mechanism import Asked

_OTHERS = 4  # records that are in every trial


def measure(target: Target, trials: int = 600) -> dict[str, Any]:
    """Audit one step's answer: results as JSON has them.

    Args:
        target: a run with a mechanism whose unit is the record.
        trials: about half of them with the canary; n trials prove no more than about log(n / 4) − 1.3.

    Raises:
        FedclError: nothing claims an ε for records.
    """
    claims = [name for name, part in privacy.build(target.config).parts.items() if part.unit == "record"]
    if not claims:
        raise FedclError(
            f"{target.path} claims no ε for records (privacy.mechanism = {target.config.privacy.mechanism!r}): there "
            "is nothing to audit; take --what membership"
        )
    moment = at(target, 0)
    task = target.federation.tasks[min(task for client in target.federation.schedule[0] for task in client)]
    hospital = max(range(len(target.federation.names)), key=lambda h: target.federation.count(h, task.index, "train"))
    rows = held(target.federation, hospital, task.index)[: _OTHERS + 1]
    target = _planted(target, moment, task, rows[:1])
    member = torch.from_numpy(rng.stream(target.config.seed, "attack coins").random(trials) < 0.5)
    scores = torch.tensor(
        [
            _score(observe.update(target, moment, task, {hospital: rows if inside else rows[1:]}, number), target, rows)
            for number, inside in enumerate(member.tolist())
        ],
        dtype=torch.float64,
    )
    delta = target.config.privacy.delta
    found = bound(scores, member, rng.torch_stream(target.config.seed, "attack halves"), delta=delta)
    claimed, statement = _claimed(target, hospital, task, len(rows))
    auc = area(scores, member)
    return {
        "mechanism": claims[0],
        "task": task.id,
        "trials": trials,
        "auc": [auc.value, auc.low, auc.high],
        "found": found.epsilon,
        "claimed": claimed if math.isfinite(claimed) else None,
        "statement": statement,
        "confidence": found.confidence,
        "caught": found.epsilon > claimed,
    }


def _planted(target: Target, moment: Moment, task: Task, row: np.ndarray) -> Target:
    """The target with the canary in the place of a record."""
    federation = target.federation
    low, high = limits(federation)
    bits = rng.stream(target.config.seed, "attack canary").random((1, *federation.shape)) < 0.5
    x = torch.from_numpy(np.where(bits, high, low).astype(np.float32))
    shown = task.transform(x) if task.transform else x
    label = task.classes[int(evaluate.known(moment.net, task, shown).argmin())]
    return replace(target, federation=replaced(federation, row, x, torch.tensor([label])))


def _score(seen: Seen, target: Target, rows: np.ndarray) -> float:
    """The sum of the records' clipped gradients, with its noise, along the canary's."""
    record = shown(target.federation, rows[:1], seen.task.index)
    y = (torch.tensor(seen.task.classes) == record.y).nonzero()[0]
    params = {name: value.detach() for name, value in seen.net.named_parameters() if name in seen.gradient}

    def forward(values: Any, x: Tensor) -> Tensor:
        return evaluate.own(seen.net, seen.task, functional_call(seen.net, dict(values), (x, seen.task.id)))

    own = gradient(forward, params, record.x, y)
    length = math.sqrt(sum(float(value.square().sum()) for value in own.values()))
    along = sum(float((own[name] * seen.gradient[name]).sum()) for name in own)
    return len(seen.y) * along / length  # how many records there are counts as public


def _claimed(target: Target, hospital: int, task: Task, samples: int) -> tuple[float, str]:
    """ε of one such answer, as the ledger tells it: (ε, with its terms)."""
    config = observe.step(target.config, samples, 0)
    guard = privacy.build(config)
    book = protect.ledger(config, target.federation, guard)
    assert book is not None
    reads = frozenset(part.records for part in guard.method.parts.values())
    told = book.projected(guard.releases(Asked(hospital, "train", 0, 0, False, {task.id: samples}, (), reads)))
    return told.spent.pld, str(told)
