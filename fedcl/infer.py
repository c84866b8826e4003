"""Which task does a sample belong to, when nobody says? Rules over what all task modules know.

`entropy`, `confidence` and `energy` are pure functions of the modules' outputs: logits per task [n, C_t] → scores
[n, T], the highest wins. They fail where a module was never shown another task's samples, which is the rule.
`confidence` is calibrated by one temperature a module (Guo et al. 2017), chosen on the hospitals' validation samples.

`prototypes` gives each task's module the means of its classes in a space that never moves: a fixed random projection of
the input with a ReLU (RanPAC, McDonnell et al. 2023, eqs. 3-5). Hospitals send sums at the end of a task: samples and
features per class, one second moment per task. Sums add up, so that the result is that of the pooled data whatever the
split between hospitals, and secure aggregation can hide each hospital's own. Without it the server sees them, and
a sum over one sample would be that sample: a class of fewer than SMALLEST samples is withheld.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fedcl import rng
from fedcl.config import Model
from fedcl.contracts import Batch, FedclError, Memory, Params, Task

PREFIX = "infer/"
WIDTH = 256  # random features: 33 k numbers a task and hospital travel for the second moment
SHRINKAGE = 0.01
SMALLEST = 5  # samples of a class that a hospital must have to send sums of it
TEMPERATURES = torch.logspace(-1, 1, 21)  # 0.1 … 10; the middle one is 1


def entropy(logits: Sequence[Tensor]) -> Tensor:
    """The module that is least undecided: −H(softmax z_t) / log C_t (normalised by the number of classes)."""
    scores = []
    for z in logits:
        logp = z.log_softmax(1)
        scores.append((logp.exp() * logp).sum(1) / max(math.log(z.shape[1]), 1e-12))
    return torch.stack(scores, 1)


def confidence(logits: Sequence[Tensor]) -> Tensor:
    """The module with the largest probability of a class (Hendrycks & Gimpel 2017), of calibrated logits."""
    return torch.stack([z.softmax(1).amax(1) for z in logits], 1)


def energy(logits: Sequence[Tensor]) -> Tensor:
    """The module with the largest log Σ exp z_t (Liu et al. 2020), as no softmax sets the modules apart."""
    return torch.stack([z.logsumexp(1) for z in logits], 1)


def prepare(statistics: Params) -> Params:
    """What prediction needs of all hospitals' sums.

    `<task>.temperature` (a 0-d tensor), `whiten` [WIDTH, WIDTH] and `<task>.means` [C', WIDTH], whitened.

    Class means per task; one covariance within classes over all tasks, shrunk towards a multiple of the identity.
    Classes without samples are left out. Empty for empty statistics.
    """
    held = {key.removesuffix(".nll"): value for key, value in statistics.items() if key.endswith(".nll")}
    warm = {f"{task}.temperature": _best(nll) for task, nll in held.items()}
    tasks = [key.removesuffix(".count") for key in statistics if key.endswith(".count")]
    if not tasks:
        return warm
    within = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    upper = torch.triu_indices(WIDTH, WIDTH)
    means, total = {}, 0.0
    for task in tasks:
        count = statistics[f"{task}.count"].double()
        mean = statistics[f"{task}.sum"].double() / count.clamp_min(1)[:, None]
        outer = torch.zeros_like(within)
        outer[upper[0], upper[1]] = statistics[f"{task}.outer"].double()
        within += outer + outer.triu(1).T - (mean * count[:, None]).T @ mean
        total += float(count.sum())
        means[task] = mean[count > 0].float()
    within /= max(total, 1.0)
    scale = within.diagonal().mean().clamp_min(1e-12)
    within = (1 - SHRINKAGE) * within + SHRINKAGE * scale * torch.eye(WIDTH, dtype=torch.float64)
    whiten = torch.linalg.cholesky(torch.linalg.inv(within)).float()
    return warm | {"whiten": whiten} | {f"{task}.means": mean @ whiten for task, mean in means.items()}


def _best(nll: Tensor) -> Tensor:
    """The temperature of the smallest negative log-likelihood; 1 where nothing was held out."""
    return TEMPERATURES[int(nll.argmin())] if float(nll.abs().sum()) > 0 else torch.ones(())


def prototypes(tasks: Sequence[Task], x: Tensor, prepared: Params) -> Tensor:
    """The task whose nearest class mean is nearest in Mahalanobis distance (Lee et al. 2018, eq. 2)."""
    points = project(x) @ prepared["whiten"]
    far = points.new_full((len(points), 1), math.inf)  # a task without any prototype is chosen last
    distances = [torch.cat([torch.cdist(points, prepared[f"{task.id}.means"]), far], 1).amin(1) for task in tasks]
    return -torch.stack(distances, 1)


@lru_cache(maxsize=4)
def _projection(inputs: int) -> Tensor:
    """The same for everybody, in every run: nothing to send, nothing to keep."""
    return torch.randn(inputs, WIDTH, generator=rng.torch_stream(0, "infer")) / math.sqrt(inputs)


def project(x: Tensor) -> Tensor:
    """Samples [n, *shape] → fixed random features [n, WIDTH], ≥ 0."""
    flat = x.flatten(1).cpu()
    return (flat @ _projection(flat.shape[1])).relu_()


RULES: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "entropy": entropy,
    "confidence": confidence,
    "energy": energy,
}


def resolve(rule: str, key: str = "model.infer") -> str:
    """The rule behind a name, which `key` was given; `auto` is `prototypes`.

    Raises:
        FedclError: there is none of that name.
    """
    rule = "prototypes" if rule == "auto" else rule
    if rule not in RULES and rule != "prototypes":
        raise FedclError(f"{key} = {rule!r}: there are auto, prototypes, {', '.join(RULES)}")
    return rule


def needs_statistics(model: Model) -> bool:
    """Whether the hospitals have to send sums at the end of a task."""
    return model.heads == "task" and resolve(model.infer) in ("prototypes", "confidence")


@torch.no_grad()
def measure(rule: str, task: Task, batch: Batch, logits: Tensor, truth: Tensor) -> Memory:
    """A hospital's sums for one task.

    Args:
        rule: what they are for, see `resolve`.
        task: whose sums.
        batch: training samples; `y` holds the module's outputs.
        logits: of the task's module on validation samples [n, C].
        truth: their outputs [n].

    Returns:
        nll [21], of the validation samples at each temperature; for prototypes also count [C], sum [C, WIDTH], and
        outer [WIDTH (WIDTH + 1) / 2], the upper triangle of Σ φ φᵀ; all without classes of too few samples.
    """
    nll = torch.stack([F.cross_entropy(logits / t, truth, reduction="sum") for t in TEMPERATURES])
    sums = {"nll": nll.cpu()}
    if resolve(rule) == "prototypes":
        sums |= _moments(task, batch)
    return {f"{PREFIX}{task.id}.{name}": value for name, value in sums.items()}


def _moments(task: Task, batch: Batch) -> Memory:
    onehot = F.one_hot(batch.y.cpu(), len(task.classes))
    onehot = onehot * (onehot.sum(0) >= SMALLEST)
    features = project(batch.x) * onehot.sum(1, keepdim=True)
    onehot = onehot.to(features.dtype)
    upper = torch.triu_indices(WIDTH, WIDTH)
    outer = (features.T @ features)[upper[0], upper[1]]
    return {"count": onehot.sum(0), "sum": onehot.T @ features, "outer": outer}


def merge(statistics: Params, stage: Sequence[Mapping[str, Tensor]]) -> Params:
    """Add all hospitals' sums of a stage; samples that are met again count again."""
    total = dict(statistics)
    for extras in stage:
        for key, value in extras.items():
            if key.startswith(PREFIX):
                name = key.removeprefix(PREFIX)
                total[name] = total[name] + value if name in total else value.clone()
    return total


def misfit(extras: Mapping[str, Tensor], tasks: Sequence[Task]) -> str:
    """Why a hospital's sums cannot be added; "" if they can."""
    sizes = {task.id: len(task.classes) for task in tasks}
    for key, value in extras.items():
        if key.startswith(PREFIX):
            task, _, name = key.removeprefix(PREFIX).partition(".")
            classes = sizes.get(task, 0)
            shapes = {"nll": (len(TEMPERATURES),), "count": (classes,), "sum": (classes, WIDTH)}
            shapes["outer"] = (WIDTH * (WIDTH + 1) // 2,)
            if not classes or tuple(value.shape) != shapes.get(name):
                return f"{key} has shape {tuple(value.shape)}, which is not that of a current task"
    return ""


def without(extras: Mapping[str, Tensor]) -> Params:
    """What a client sent beside its sums."""
    return {key: value for key, value in extras.items() if not key.startswith(PREFIX)}


def predict(rule: str, tasks: Sequence[Task], logits: Mapping[str, Tensor], x: Tensor, prepared: Params) -> Tensor:
    """Global class ids [n] where the task is not known: the rule's task, then its module's class."""
    rule = resolve(rule)
    if rule == "prototypes" and any(f"{task.id}.means" not in prepared for task in tasks):
        rule = "entropy"  # a task that no hospital has consolidated yet
    outputs = [logits[task.id] for task in tasks]
    if rule == "prototypes":
        scores = prototypes(tasks, x, prepared)
    else:
        one = torch.ones(())
        warm = [z / prepared.get(f"{task.id}.temperature", one) for task, z in zip(tasks, outputs, strict=True)]
        scores = RULES[rule](warm if rule == "confidence" else outputs)
    chosen = scores.argmax(1)
    classes = [torch.tensor(task.classes)[z.argmax(1)] for task, z in zip(tasks, outputs, strict=True)]
    return torch.stack(classes, 1).gather(1, chosen[:, None])[:, 0]
