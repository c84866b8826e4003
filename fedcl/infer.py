"""Which task does a sample belong to, when nobody says? Rules over the outputs of all task modules.

Rules of the outputs alone are pure functions: logits per task [n, C_t] → scores [n, T]; the highest wins. The density
rule needs statistics of the trunk's features, which hospitals send as sums at the end of a task: per class counts and
feature sums, per task one second moment. Sums add up, so that no hospital's own need be seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fedcl.config import Model
from fedcl.contracts import Batch, FedclError, Memory, Params, Task
from fedcl.models.dynamic_net import DynamicNet

PREFIX = "infer/"
SHRINKAGE = 0.05


def entropy(logits: Sequence[Tensor]) -> Tensor:
    """The module that is least undecided: −H(softmax z_t) / log C_t (normalised by the number of classes)."""
    scores = []
    for z in logits:
        logp = z.log_softmax(1)
        scores.append((logp.exp() * logp).sum(1) / max(math.log(z.shape[1]), 1e-12))
    return torch.stack(scores, 1)


def confidence(logits: Sequence[Tensor]) -> Tensor:
    """The module with the largest probability of a class (Hendrycks & Gimpel 2017)."""
    return torch.stack([z.softmax(1).amax(1) for z in logits], 1)


def energy(logits: Sequence[Tensor]) -> Tensor:
    """The module with the largest log Σ exp z_t (Liu et al. 2020), as no softmax sets the modules apart."""
    return torch.stack([z.logsumexp(1) for z in logits], 1)


def density(tasks: Sequence[Task], features: Tensor, statistics: Params) -> Tensor:
    """The task whose nearest class mean is nearest in Mahalanobis distance (Lee et al. 2018, eq. 2).

    Class means per task, one covariance within classes over all tasks, shrunk towards a multiple of the identity.
    """
    width = features.shape[1]
    within = torch.zeros(width, width, dtype=torch.float64)
    means, total = [], 0.0
    for task in tasks:
        count = statistics[f"{task.id}.count"].double()
        mean = statistics[f"{task.id}.sum"].double() / count.clamp_min(1)[:, None]
        within += statistics[f"{task.id}.outer"].double() - (mean * count[:, None]).T @ mean
        total += float(count.sum())
        means.append(mean[count > 0])
    within = within / max(total, 1.0)
    scale = within.diagonal().mean().clamp_min(1e-12)
    within = (1 - SHRINKAGE) * within + SHRINKAGE * scale * torch.eye(width, dtype=torch.float64)
    whiten = torch.linalg.cholesky(torch.linalg.inv(within))
    x = features.double() @ whiten
    scores = [
        -torch.cdist(x, mean @ whiten).amin(1) if len(mean) else torch.full((len(x),), -math.inf).double()
        for mean in means
    ]
    return torch.stack(scores, 1)


RULES: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "entropy": entropy,
    "confidence": confidence,
    "energy": energy,
}


def resolve(rule: str) -> str:
    """The rule behind a name; `auto` is `density`.

    Raises:
        FedclError: there is none of that name.
    """
    rule = "density" if rule == "auto" else rule
    if rule not in RULES and rule != "density":
        raise FedclError(f"model.infer = {rule!r}: there are auto, density, {', '.join(RULES)}")
    return rule


def needs_statistics(model: Model) -> bool:
    """Whether the hospitals have to send feature statistics at the end of a task."""
    return model.heads == "task" and resolve(model.infer) == "density"


@torch.no_grad()
def measure(net: DynamicNet, task: Task, batch: Batch) -> Memory:
    """A hospital's sums for one task: count [C], sum [C, F], outer [F, F]; `batch.y` holds the module's outputs."""
    features = net.features(batch.x).cpu()
    onehot = torch.nn.functional.one_hot(batch.y.cpu(), len(task.classes)).to(features.dtype)
    sums = {"count": onehot.sum(0), "sum": onehot.T @ features, "outer": features.T @ features}
    return {f"{PREFIX}{task.id}.{name}": value for name, value in sums.items()}


def merge(statistics: Params, stage: Sequence[Mapping[str, Tensor]]) -> Params:
    """All hospitals' sums of a stage: a task met again replaces what was known of it."""
    new: Params = {}
    for extras in stage:
        for key, value in extras.items():
            if key.startswith(PREFIX):
                name = key.removeprefix(PREFIX)
                new[name] = new[name] + value if name in new else value.clone()
    return statistics | new


def predict(
    rule: str, tasks: Sequence[Task], logits: Mapping[str, Tensor], features: Tensor, statistics: Params
) -> Tensor:
    """Global class ids [n] where the task is not known: the rule's task, then its module's class."""
    rule = resolve(rule)
    if rule == "density" and any(f"{task.id}.count" not in statistics for task in tasks):
        rule = "entropy"  # a task that no hospital has consolidated yet
    outputs = [logits[task.id] for task in tasks]
    scores = density(tasks, features, statistics) if rule == "density" else RULES[rule](outputs)
    chosen = scores.argmax(1)
    classes = [torch.tensor(task.classes)[z.argmax(1)] for task, z in zip(tasks, outputs, strict=True)]
    return torch.stack(classes, 1).gather(1, chosen[:, None])[:, 0]
