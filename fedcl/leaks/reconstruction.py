"""Which samples an update shows: every attack on what the server sees of one step, beside what needs no attack."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedcl import fisher, privacy, rng
from fedcl.attacks import adapter, analytic, images, inversion, labels
from fedcl.contracts import FedclError, Job, Task
from fedcl.leaks import observe
from fedcl.leaks.moment import at
from fedcl.leaks.observe import Seen
from fedcl.leaks.plan import Target
from fedcl.leaks.records import held, limits
from fedcl.models.dynamic_net import SHARED

_SHOWN = 8  # records in the report, at most
_GREY = 255
_ITERATIONS, _STARTS = 20, 2  # of a step of L-BFGS; of searches for a matching gradient


class Budget(NamedTuple):
    """How long searches go on, and how many there are: tries with one record, and with eight."""

    steps: int = 400
    single: int = 3
    eight: int = 2


_USUAL = Budget()


class Guess(NamedTuple):
    """What an attack answers to a batch."""

    attack: str
    x: Tensor  # [n, *shape], in the truth's order
    knows: str  # beside the net and the update


def measure(target: Target, stage: int = 0, budget: Budget = _USUAL) -> dict[str, Any]:
    """Attack updates of a stage's first step: results as JSON has them.

    Raises:
        FedclError: the stage's model was not kept, or the net or the federation is none that this can attack.
    """
    config, federation = target.config, target.federation
    if config.model.masks not in ("auto", "none"):
        raise FedclError("a net that tasks see through masks is not reconstructed from; take --what membership")
    moment = at(target, stage)
    task = federation.tasks[min(task for client in federation.schedule[stage] for task in client)]
    low, high = limits(federation)
    rows: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    for size, tries in ((1, budget.single), (8, budget.eight)):
        found: dict[str, list[tuple[Guess, Tensor, Tensor]]] = {}
        hits: list[bool] = []
        for number in range(tries):
            seen = observe.update(target, moment, task, _records(target, task, size, number), number)
            hits += _labels(target, seen)
            for guess in _guesses(target, seen, number, (low, high), budget):
                x, truth = ((value - low) / (high - low) for value in (guess.x, seen.x))
                found.setdefault(guess.attack, []).append((guess, x, truth))
        rows += [_row(target, task, name, size, several, (low, high)) for name, several in found.items()]
        name = "label" if size == 1 else "label counts"
        rows += [{"attack": name, "batch": size, "right": sum(hits), "tries": len(hits)}] if hits else []
        pictures += [_picture(size, found)] if len(federation.shape) == 3 else []
    sums = len(_records(target, task, 1, 0))
    sees = f"the sum of {sums} hospitals" if observe.summed(config) else "one hospital's update"
    return {"stage": stage, "task": task.id, "sees": sees, "rows": rows, "pictures": pictures}


def _records(target: Target, task: Task, size: int, number: int) -> dict[int, np.ndarray]:
    """Drawn records of the hospital that has most, or of all that are in one sum."""
    federation = target.federation
    own = {hospital: held(federation, hospital, task.index) for hospital in range(len(federation.names))}
    able = {hospital: rows for hospital, rows in own.items() if len(rows) >= size}
    if not able:
        raise FedclError(f"no hospital has {size} training records of task {task.id}: there is no batch to attack")
    if not observe.summed(target.config):
        most = max(able, key=lambda hospital: len(able[hospital]))
        able = {most: able[most]}
    draw = rng.stream(target.config.seed, "attack batch", task=task.index, round=number)
    return {hospital: np.sort(draw.permutation(rows)[:size]) for hospital, rows in able.items()}


def _guesses(target: Target, seen: Seen, number: int, bounds: tuple[float, float], budget: Budget) -> Iterator[Guess]:
    """All attacks that the net allows."""
    n, shape, net, g = len(seen.y), seen.x.shape[1:], seen.net, seen.gradient
    params = {name: value.detach() for name, value in net.named_parameters() if name in g}
    source = rng.torch_stream(target.config.seed, "attack search", round=number)

    def forward(values: Any, x: Tensor) -> Tensor:
        logits: Tensor = functional_call(net, dict(values), (x, seen.task.id))
        return logits

    first = first_layer(net.trunk, shape)
    if first:
        weight, bias = (f"trunk.{first}.{kind}" for kind in ("weight", "bias"))
        if n == 1:
            yield Guess("first layer", _shaped(analytic.layer_input(g[weight], g[bias]), shape), "nothing")
        elif len(rows := analytic.row_inputs(g[weight], g[bias])):
            best = images.nearest(rows.view(-1, *shape), seen.x)
            yield Guess("first layer", best, "which row is whose: an upper bound")
    found = inversion.invert(forward, params, g, tuple(seen.x.shape), seen.y, source, steps=budget.steps, bounds=bounds)
    yield Guess("inverting gradients", images.matched(found.x, seen.x), "the labels")
    yield _matched(seen, forward, params, source, budget)
    if n == 1:
        yield from _from_module(seen, source, bounds, budget)
    if first:
        yield _from_fisher(target, seen, forward, (weight, bias), source)


def _matched(
    seen: Seen, forward: Callable[..., Tensor], params: dict[str, Tensor], source: torch.Generator, budget: Budget
) -> Guess:
    """The batch whose gradient is nearest; a single record's label is read from the last bias first (iDLG)."""
    told = _told_label(seen)
    found = inversion.match_gradient(
        forward,
        params,
        seen.gradient,
        tuple(seen.x.shape),
        len(seen.net(seen.x[:1], seen.task.id)[0]),
        source,
        labels=None if told is None else torch.tensor([told]),
        steps=max(1, budget.steps // _ITERATIONS),
        starts=_STARTS,
    )
    x = found.x.nan_to_num(0.0)
    return Guess("DLG" if told is None else "iDLG", images.matched(x, seen.x), "nothing")


def _from_module(seen: Seen, source: torch.Generator, bounds: tuple[float, float], budget: Budget) -> Iterator[Guess]:
    """The sample behind the features that a module's first layer tells."""
    layer = "out" if seen.net.owner(seen.task.id) == SHARED else "hidden"
    names = [f"tasks.{seen.net.owner(seen.task.id)}.{layer}.{kind}" for kind in ("weight", "bias")]
    if not all(name in seen.gradient for name in names):  # weight normalisation, or no bias
        return
    features = analytic.layer_input(*(seen.gradient[name] for name in names))
    trunk: Callable[[Tensor], Tensor] = seen.net.trunk
    x = adapter.invert_features(trunk, features, tuple(seen.x.shape[1:]), source, steps=budget.steps, bounds=bounds)
    yield Guess("task module alone", x[None], "nothing")


def _from_fisher(
    target: Target, seen: Seen, forward: Callable[..., Tensor], names: tuple[str, str], source: torch.Generator
) -> Guess:
    """|x| of a Fisher diagonal of the batch, as a method of the run would send it."""
    part = privacy.build(target.config).trainer(Job("train", 0, 0, (), {}))

    def ask(x: Tensor) -> Tensor:
        logits: Tensor = seen.net(x, seen.task.id)
        return logits

    if part is None:
        found = fisher.diagonal(seen.net, ask, names, seen.x, seen.y, kind="empirical", generator=source)
    else:
        guard = privacy.build(target.config)
        found = fisher.private(
            seen.net,
            ask,
            names,
            seen.x,
            seen.y,
            kind="empirical",
            clip=part.clip,
            noise_multiplier=part.fisher_sigma * part.sensitivity,
            size=len(seen.y),
            draw=guard.draw("attack Fisher", 0, 0),
            generator=source,
        )
    weight, bias = (found[name] for name in names)
    x = analytic.fisher_input(weight, bias) if bool(bias.any()) else torch.zeros_like(weight[0])
    return Guess("Fisher diagonal", _shaped(x, seen.x.shape[1:]).expand_as(seen.x), "nothing")


def first_layer(trunk: nn.Module, shape: torch.Size) -> str:
    """The name of a linear layer with bias that sees the sample itself; "" where there is none."""
    for name, layer in trunk.named_modules():
        if isinstance(layer, nn.Linear) and layer.in_features == math.prod(shape):
            return str(name) if "bias" in layer._parameters and layer._parameters["bias"] is not None else ""
    return ""


def _labels(target: Target, seen: Seen) -> list[bool]:
    """Of each record, whether the last bias tells its label: that of a single one, or how many there are of each."""
    told, bias, n = _told_label(seen), _bias(seen), len(seen.y)
    if told is not None:
        return [told == int(seen.y)]
    if bias is None:
        return []
    with torch.no_grad():
        said = seen.net(_public(target, seen.task), seen.task.id).softmax(1).mean(0)
    counts = (labels.histogram(bias, said) * n).round()
    right = int(torch.minimum(counts, torch.bincount(seen.y, minlength=len(counts))).sum())
    return [place < right for place in range(n)]


def _told_label(seen: Seen) -> int | None:
    """What the last bias says of a single record; None where there is no such bias, or no such record."""
    bias = _bias(seen)
    return labels.label(bias) if bias is not None and len(seen.y) == 1 else None


def _bias(seen: Seen) -> Tensor | None:
    """The gradient of the last bias."""
    return seen.gradient.get(f"tasks.{seen.net.owner(seen.task.id)}.out.bias")


def _public(target: Target, task: Task) -> Tensor:
    """Samples that no hospital trains on: the server may have such."""
    federation = target.federation
    return torch.cat([federation.batch(h, task.index, "test").x for h in range(len(federation.names))])


def _shaped(x: Tensor, shape: torch.Size) -> Tensor:
    return x.detach().view(1, *shape)


def _row(
    target: Target,
    task: Task,
    name: str,
    size: int,
    several: list[tuple[Guess, Tensor, Tensor]],
    bounds: tuple[float, float],
) -> dict[str, Any]:
    """One attack's figures over all tries."""
    low, high = bounds
    public = _public(target, task)
    x, truth = torch.cat([x for _, x, _ in several]), torch.cat([truth for _, _, truth in several])
    ratios = images.psnr(x, truth)
    told: dict[str, Any] = {"attack": name, "batch": size, "knows": several[0][0].knows, "tries": len(several)}
    told |= {"records": len(ratios), "psnr": [float(ratios.median()), float(ratios.min()), float(ratios.max())]}
    told["baseline"] = float(images.baseline((public - low) / (high - low), truth).median())
    if truth.dim() == 4:
        told["ssim"] = float(images.ssim(x, truth).median())
    return told


def _picture(size: int, found: dict[str, list[tuple[Guess, Tensor, Tensor]]]) -> dict[str, Any]:
    """Originals and reconstructions of the first records, as grey values."""
    truth = next(iter(found.values()))
    rows = {"original": torch.cat([true for _, _, true in truth])}
    rows |= {name: torch.cat([x for _, x, _ in several]) for name, several in found.items()}
    return {"batch": size, "rows": {name: _grey(x[:_SHOWN]) for name, x in rows.items()}}


def _grey(x: Tensor) -> list[list[list[int]]]:
    """Images [n, C, H, W] in [0, 1] as their channels' mean, 0…255."""
    values: list[list[list[int]]] = (x.detach().mean(1).nan_to_num(0).clamp(0, 1) * _GREY).round().int().tolist()
    return values
