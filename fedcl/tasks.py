"""Which task comes when: tasks of classes, domains, data sets or sites, and each hospital's order of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedcl import rng
from fedcl.contracts import FedclError, Samples, Task
from fedcl.sections import Stream

Schedule = tuple[tuple[tuple[int, ...], ...], ...]  # [stage][client] → tasks; () is none


@dataclass(frozen=True, eq=False)
class Permute:
    """The features in another order, the same for all samples (Goodfellow et al. 2013, arXiv 1312.6211)."""

    order: Tensor  # [features] int64

    def __call__(self, x: Tensor) -> Tensor:
        """X [n, *shape] → the same shape."""
        return x.flatten(1).index_select(1, self.order).reshape(x.shape)


@dataclass(frozen=True)
class Rotate:
    """Images turned about their middle, counter-clockwise; 0 comes in at the corners, bilinear in between."""

    degrees: float

    def __call__(self, x: Tensor) -> Tensor:
        """X [n, channels, height, width] → the same shape."""
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import rotate

        turned: Tensor = rotate(x, self.degrees, interpolation=InterpolationMode.BILINEAR)
        return turned


def build(samples: Samples, stream: Stream, seed: int, shape: tuple[int, ...]) -> tuple[Task, ...]:
    """The tasks of a stream, in the order of their ids t0, t1, ….

    Args:
        samples: the data set; only its labels' names, sites and origins matter here.
        stream: what makes a task.
        seed: the run's seed, for class order and permutations.
        shape: a sample's shape as the model sees it.

    Raises:
        FedclError: the data set cannot give these tasks.
    """
    if stream.kind == "class":
        return _classes(samples, stream, seed)
    if stream.kind == "domain":
        return _domains(samples, stream, seed, shape)
    return _sequence(samples) if stream.kind == "sequence" else _sites(samples)


def members(task: Task, samples: Samples) -> np.ndarray:
    """Which samples belong to a task: [N] bool. A sample may belong to several, as in domains."""
    inside: np.ndarray = np.isin(samples.y, task.classes)
    if task.site is not None and samples.site is not None:
        inside &= samples.site == task.site
    return inside


def sets(tasks: Sequence[Task]) -> dict[str, tuple[str, ...]]:
    """The record sets that each task is made of, by its id: the largest that no task splits, named by all their tasks.

    Tasks of their own classes or sites are one set each; all domains of the same samples are one set together.
    """
    cells: dict[tuple[int, int | None], list[str]] = {}
    for task in tasks:
        for label in task.classes:
            cells.setdefault((label, task.site), []).append(task.id)
    return {task.id: tuple(sorted({"+".join(ids) for ids in cells.values() if task.id in ids})) for task in tasks}


def schedule(stream: Stream, tasks: int, clients: int, seed: int) -> Schedule:
    """What each client has in each stage: [stage][client] → task indices, one or none.

    Raises:
        FedclError: a table of the wrong size or with unknown tasks, or a delay that leaves stages empty.
    """
    if stream.table and stream.schedule != "table":
        raise FedclError("stream.table is given, but stream.schedule is not 'table'; set it, or leave the table out")
    if stream.schedule == "table":
        return _table(stream.table, tasks, clients)
    if stream.schedule == "staggered":
        return _staggered(tasks, clients, stream.delay)
    share = stream.disorder if stream.schedule == "shuffled" else 0.0
    orders = [_shuffled(tasks, share, rng.stream(seed, "schedule", client)) for client in range(clients)]
    return tuple(tuple((int(order[stage]),) for order in orders) for stage in range(tasks))


def _classes(samples: Samples, stream: Stream, seed: int) -> tuple[Task, ...]:
    count = len(samples.classes)
    if stream.classes:
        groups = [list(group) for group in stream.classes]
    elif stream.tasks > count:
        raise FedclError(
            f"--tasks {stream.tasks}: the data set has {count} classes, and a task needs at least one; take "
            f"--tasks {count} or fewer, or --stream domain"
        )
    else:
        dealt = rng.stream(seed, "classes").permutation(count) if stream.order == "random" else np.arange(count)
        groups = [group.tolist() for group in np.array_split(dealt, stream.tasks)]
    for index, group in enumerate(groups):
        if not group or len(set(group)) < len(group) or min(group) < 0 or max(group) >= count:
            raise FedclError(
                f"stream.classes[{index}] = {group}: a task needs different class ids out of 0…{count - 1}, "
                "at least one"
            )
    return tuple(
        Task(f"t{index}", index, tuple(group), _listed([samples.classes[k] for k in group]))
        for index, group in enumerate(groups)
    )


def _domains(samples: Samples, stream: Stream, seed: int, shape: tuple[int, ...]) -> tuple[Task, ...]:
    every = tuple(range(len(samples.classes)))
    if stream.domain == "rotated":
        if len(shape) != 3:
            raise FedclError(
                f"stream.domain = 'rotated': only images [channels, height, width] can be turned, but the "
                f"samples have the shape {list(shape)}; take stream.domain = 'permuted'"
            )
        # 360° is 0° again: then the last step is left out, so that no two tasks are alike.
        angles = np.linspace(0, stream.max_angle, stream.tasks, endpoint=stream.max_angle < 360)
        if stream.angles == "random":
            angles = np.round(rng.stream(seed, "rotation").uniform(0, stream.max_angle, stream.tasks), 1)
        return tuple(
            Task(f"t{index}", index, every, f"rotated {angle:g}°", Rotate(float(angle)) if angle else None)
            for index, angle in enumerate(angles)
        )
    tasks = []
    for index in range(stream.tasks):
        if index == 0 and not stream.permute_first:
            tasks.append(Task("t0", 0, every, "as it is"))
            continue
        order = rng.stream(seed, "permutation", task=index).permutation(int(np.prod(shape)))
        tasks.append(Task(f"t{index}", index, every, f"permutation {index}", Permute(torch.from_numpy(order))))
    return tuple(tasks)


def _sequence(samples: Samples) -> tuple[Task, ...]:
    if samples.origin is None:
        raise FedclError(
            "--stream sequence: there is one data set only; join several, for example --dataset mnist+fashion_mnist"
        )
    tasks = []
    for index, title in enumerate(samples.origins):
        classes = np.unique(samples.y[samples.origin == index])
        tasks.append(Task(f"t{index}", index, tuple(classes.tolist()), title))
    return tuple(tasks)


def _sites(samples: Samples) -> tuple[Task, ...]:
    if samples.site is None:
        raise FedclError(
            "--stream site: the data set does not say where a sample comes from; take one with sites, for "
            "example --dataset heart"
        )
    every = tuple(range(len(samples.classes)))
    return tuple(Task(f"t{index}", index, every, title, site=index) for index, title in enumerate(samples.sites))


def _shuffled(tasks: int, share: float, generator: np.random.Generator) -> np.ndarray:
    """The tasks' order when a share of the places is permuted among itself: [tasks]."""
    order = np.arange(tasks)
    places = generator.choice(tasks, size=round(share * tasks), replace=False)
    order[places] = generator.permutation(places)
    return order


def _staggered(tasks: int, clients: int, delay: int) -> Schedule:
    if clients > 1 and delay > tasks:
        raise FedclError(
            f"stream.delay = {delay}: with {tasks} tasks there would be stages in which nobody trains; "
            f"take a delay of {tasks} or less"
        )
    stages = tasks + (clients - 1) * delay
    return tuple(
        tuple((stage - client * delay,) if 0 <= stage - client * delay < tasks else () for client in range(clients))
        for stage in range(stages)
    )


def _table(table: Sequence[Sequence[int]], tasks: int, clients: int) -> Schedule:
    if not table:
        raise FedclError("stream.table is empty; give table[stage][hospital] = a task's index, -1 for none")
    for stage, row in enumerate(table):
        if len(row) != clients:
            raise FedclError(
                f"stream.table[{stage}] has {len(row)} entries, but there are {clients} hospitals "
                "(--clients); give one for each, -1 for none"
            )
        wrong = [index for index in row if not -1 <= index < tasks]
        if wrong:
            raise FedclError(
                f"stream.table[{stage}] names task {wrong[0]}, but there are {tasks} tasks (0…{tasks - 1}; -1 is none)"
            )
        if all(index < 0 for index in row):
            raise FedclError(f"stream.table[{stage}] gives nobody a task; leave the stage out")
    return tuple(tuple((index,) if index >= 0 else () for index in row) for row in table)


def _listed(names: Sequence[str]) -> str:
    """Names in a row, shortened: "0, 1" or "a, b, c … z (26)"."""
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:3])} … {names[-1]} ({len(names)})"
