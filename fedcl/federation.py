"""Hospitals × tasks × {train, val, test}: who holds what, who trains when, and who averages with whom."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedcl import datasets, features, partition
from fedcl import tasks as streams
from fedcl.config import Config
from fedcl.contracts import SPLITS, TEST, TRAIN, VAL, Batch, FedclError, Samples, Task

_CACHE_BYTES = 1 << 30  # for batches that are not simply a piece of the data: transformed or pooled ones


class Cache:
    """Batches by key; those unused for longest go when there are too many bytes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._batches: OrderedDict[tuple[object, ...], Batch] = OrderedDict()

    def __reduce__(self) -> tuple[type[Cache], tuple[int]]:
        return Cache, (self._limit,)  # another process starts with an empty one

    def get(self, key: tuple[object, ...], make: Callable[[], Batch]) -> Batch:
        """The batch of that key, made if it is not there."""
        if key in self._batches:
            self._batches.move_to_end(key)
            return self._batches[key]
        batch = make()
        self._batches[key] = batch
        self._bytes += batch.x.nbytes
        while self._bytes > self._limit and len(self._batches) > 1:
            self._bytes -= self._batches.popitem(last=False)[1].x.nbytes
        return batch


@dataclass(frozen=True)
class Place:
    """Where a hospital that holds its own data stands among the others, as the server says."""

    client: int
    names: tuple[str, ...]  # of all hospitals
    schedule: streams.Schedule
    flagged: tuple[int, ...]  # columns in which some hospital misses values


@dataclass(frozen=True, eq=False)
class Federation:
    """All data of a run in one tensor, sorted by hospital and split: most batches are views into it."""

    tasks: tuple[Task, ...]
    shape: tuple[int, ...]  # of a sample
    classes: tuple[str, ...]  # names, by global class id
    names: tuple[str, ...]  # of the hospitals
    members: tuple[tuple[int, ...], ...]  # client → the hospitals whose data it holds; all where data are pooled
    groups: tuple[tuple[int, ...], ...]  # the clients that average together
    schedule: streams.Schedule  # [stage][client] → tasks to train; () also where the client has no samples of it
    flagged: tuple[int, ...]  # columns whose missing values the last features flag
    _counts: np.ndarray  # [hospitals, tasks, 3, classes] int64
    _x: Tensor  # [N, *shape] float32
    _y: Tensor  # [N] int64
    _samples: np.ndarray  # [N], a row's place in the data set
    _starts: np.ndarray  # [3 hospitals + 1], the first row of each (hospital, split)
    _inside: np.ndarray  # [tasks, N] bool, whether a row belongs to a task
    scaling: dict[str, Any] = field(default_factory=dict)  # how x was normalised, see `features.normalize`
    _cache: Cache = field(default_factory=lambda: Cache(_CACHE_BYTES))

    def counts(self) -> np.ndarray:
        """How many samples: [hospitals, tasks, 3 splits, classes] int64. Tasks may share samples."""
        return self._counts

    def count(self, hospital: int, task: int, split: str) -> int:
        """How many samples of a task a hospital holds in `train`, `val` or `test`."""
        return int(self._counts[hospital, task, SPLITS[split]].sum())

    def records(self) -> int:
        """How many training samples there are, each once, however many tasks share it."""
        counts: np.ndarray = self._counts[:, :, TRAIN]
        own = any(task.site is not None for task in self.tasks)  # a sample has one site; its class may be in more tasks
        return int((counts.sum(1) if own else counts.max(1)).sum())

    def batch(self, hospital: int, task: int, split: str) -> Batch:
        """A hospital's samples of a task, in the data set's order. Maybe a view: do not change it in place.

        Returns:
            x [n, *shape] float32 contiguous, y [n] int64 global class ids.
        """
        first = hospital * 3 + SPLITS[split]
        low, high = self._starts[first], self._starts[first + 1]
        rows = np.flatnonzero(self._inside[task, low:high]) + low
        whole = len(rows) == 0 or rows[-1] - rows[0] + 1 == len(rows)
        transform = self.tasks[task].transform

        def make() -> Batch:
            index: Any = slice(rows[0], rows[-1] + 1) if whole and len(rows) else torch.from_numpy(rows)
            x = self._x[index]
            return Batch((transform(x) if transform else x).contiguous(), self._y[index])

        return make() if whole and not transform else self._cache.get((hospital, task, split), make)

    def train_data(self, client: int, task: int, split: str = "train") -> Batch:
        """All that a client holds of a task: its hospitals' batches, one after another."""
        members = self.members[client]
        if len(members) == 1:
            return self.batch(members[0], task, split)

        def pool() -> Batch:
            parts = [self.batch(hospital, task, split) for hospital in members]
            return Batch(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts]))

        return self._cache.get(("pool", client, task, split), pool)

    def outputs(self, heads: str) -> int:
        """Of a head that tasks share: all classes, or those of the largest task (`model.heads = "domain"`)."""
        return max(len(task.classes) for task in self.tasks) if heads == "domain" else len(self.classes)

    def describe(self) -> dict[str, Any]:
        """The federation as JSON-able lists: who has what, when."""
        return {
            "hospitals": list(self.names),
            "tasks": [{"id": task.id, "title": task.title, "classes": list(task.classes)} for task in self.tasks],
            "classes": list(self.classes),
            "shape": list(self.shape),
            "members": [list(hospitals) for hospitals in self.members],
            "groups": [list(clients) for clients in self.groups],
            "flagged": list(self.flagged),
            "normalize": self.scaling,
            "schedule": [[list(now) for now in stage] for stage in self.schedule],
            "counts": self._counts.tolist(),
        }

    def rows(self) -> Iterator[tuple[int, int, str, str]]:
        """(sample, hospital, split, class name) for every sample, in the data set's order."""
        cell = np.repeat(np.arange(len(self._starts) - 1), np.diff(self._starts))
        order = np.argsort(self._samples)
        hospitals, parts = np.divmod(cell[order], len(SPLITS))
        splits = map(list(SPLITS).__getitem__, parts.tolist())
        classes = map(self.classes.__getitem__, self._y.numpy()[order].tolist())
        return zip(self._samples[order].tolist(), hospitals.tolist(), splits, classes, strict=True)


def build(config: Config, samples: Samples | None = None, place: Place | None = None) -> Federation:
    """Load, partition, split, impute, normalise, and deal out the tasks.

    Args:
        config: the whole experiment.
        samples: the data, where they are not to be loaded from `config.data`.
        place: of the one hospital whose own samples these are, with class ids that all agree on.

    Raises:
        FedclError: the data are missing or damaged, or cannot give this partition or these tasks.
    """
    samples = datasets.load(config.data) if samples is None else samples
    hospitals, seed = config.federation.clients, config.seed
    owner = (
        np.full(len(samples.y), place.client) if place else partition.assign(samples, config.partition, hospitals, seed)
    )
    parts = partition.split(samples, owner, config.data, seed)
    rows = np.arange(len(parts))
    if config.data.blind:
        rows, parts = _blind(parts)
        samples, owner = _taken(samples, rows), owner[rows]
    if place:
        samples = replace(samples, site=owner, sites=place.names)
    else:
        partition.check(owner, parts, config.partition, hospitals)
    if config.partition.noisy:
        samples = replace(samples, y=partition.mislabel(samples, owner, parts, config.partition, hospitals, seed))
    drafts = streams.build(samples, config.stream, seed, samples.x.shape[1:])
    inside = np.stack([streams.members(task, samples) for task in drafts])
    first = np.where(inside.any(0), inside.argmax(0), len(drafts))
    order = np.lexsort((first, parts, owner))  # stable; a task's samples lie together
    starts = np.searchsorted((owner * 3 + parts)[order], np.arange(hospitals * 3 + 1))
    x, flagged, scaling = _features(samples, order, starts, config, place.flagged if place else None)
    shape = tuple(x.shape[1:])
    # Flags of missing values are features too: a permutation has to know of them.
    tasks = drafts if shape == samples.x.shape[1:] else streams.build(samples, config.stream, seed, shape)
    counts = _count(
        inside, (owner * 3 + parts) * len(samples.classes) + samples.y, (hospitals, 3, len(samples.classes))
    )
    members, groups = who(config.federation.kind, hospitals)
    names = samples.sites if config.partition.name == "site" else tuple(f"hospital {k}" for k in range(hospitals))
    return Federation(
        tasks=tasks,
        shape=shape,
        classes=samples.classes,
        names=place.names if place else names,
        members=members,
        groups=groups,
        schedule=place.schedule if place else schedule(config, tasks, members, counts),
        flagged=flagged,
        _counts=counts,
        _x=x,
        _y=torch.from_numpy(samples.y[order]),
        _samples=rows[order],
        _starts=starts,
        _inside=inside[:, order],
        scaling=scaling,
    )


def _blind(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows without test samples, the validation samples twice: (rows, their parts), the second time as tests."""
    held = np.flatnonzero(parts == VAL)
    if not len(held):
        raise FedclError("data.blind tests on validation samples, but there are none; set data.val")
    rows = np.concatenate([np.flatnonzero(parts != TEST), held])
    return rows, np.concatenate([parts[rows[: -len(held)]], np.full(len(held), TEST, parts.dtype)])


def _taken(samples: Samples, rows: np.ndarray) -> Samples:
    """These rows of a data set."""
    fields = {name: getattr(samples, name) for name in ("x", "y", "site", "split", "origin")}
    return replace(samples, **{name: value[rows] for name, value in fields.items() if value is not None})


def _features(
    samples: Samples, order: np.ndarray, starts: np.ndarray, config: Config, flagged: tuple[int, ...] | None
) -> tuple[Tensor, tuple[int, ...], dict[str, Any]]:
    """The samples in order, as the model sees them, [N, *shape] float32, the columns with flags, the normalisation."""
    x = torch.from_numpy(samples.x[order])
    # A copy by torch, which puts arrays at multiples of 64 bytes: where they lie decides how some products are rounded.
    x = x.float().div_(255) if x.dtype == torch.uint8 else x.clone()
    there = [k for k in range(0, len(starts) - 1, 3) if starts[k + 3] > starts[k]]  # not so elsewhere
    hospitals = [slice(starts[k], starts[k + 3]) for k in there]
    training = [slice(starts[k], starts[k + 1]) for k in there]
    if flagged is None:
        flagged = features.lacking(x, training) if samples.missing else ()
    gaps = bool(samples.missing) and any(bool(x[rows].isnan().any()) for rows in training)
    flags = features.impute(x, hospitals, training, flagged) if samples.missing or flagged else None
    scaling = features.normalize(x, hospitals, training, features.method(config.data, samples.tabular))
    scaling |= {"imputed": True} if gaps else {}
    return (x if flags is None else torch.cat([x.nan_to_num_(0.0), flags], dim=1)), flagged, scaling


def _count(inside: np.ndarray, cells: np.ndarray, sizes: tuple[int, int, int]) -> np.ndarray:
    """Samples of each task in each cell (hospital, split, class): [hospitals, tasks, 3, classes]."""
    total = int(np.prod(sizes))
    return np.stack([np.bincount(cells[mask], minlength=total).reshape(sizes) for mask in inside], axis=1)


def who(kind: str, hospitals: int) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Client → hospitals, and the groups of clients that average together."""
    every = tuple(range(hospitals))
    alone = tuple((hospital,) for hospital in every)
    if kind in ("central", "joint"):
        return (every,), ((0,),)
    return alone, alone if kind == "local" else (every,)


def schedule(
    config: Config, tasks: tuple[Task, ...], members: tuple[tuple[int, ...], ...], counts: np.ndarray
) -> streams.Schedule:
    """The stream's schedule, without the tasks that a client has no training samples of."""
    known = counts[:, :, TRAIN].sum(-1) > 0  # [hospitals, tasks]
    for task in tasks:
        if not known[:, task.index].any():
            raise FedclError(f"task {task.id} ({task.title}) has no training samples in any hospital; leave it out")
    kind = config.federation.kind
    if kind == "joint":
        return ((tuple(range(len(tasks))),),)
    # Pooled data belong to nobody in particular, so that hospitals' own orders have no meaning there.
    stream = config.stream.model_copy(update={"schedule": "same", "table": []}) if kind == "central" else config.stream
    plan = streams.schedule(stream, len(tasks), len(members), config.seed)
    return tuple(
        tuple(
            tuple(task for task in now if known[list(members[client]), task].any()) for client, now in enumerate(stage)
        )
        for stage in plan
    )
