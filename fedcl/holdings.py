"""Hospitals that hold their own data: what each says of them, and the federation that follows, without a sample.

hospital: describe ─► Holding (class names, shape, counts) ─► server: assemble ─► Federation without samples
hospital: build(own samples, the server's description) ─► Federation with its own samples only
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedcl import datasets, features, partition
from fedcl import federation as federations
from fedcl import tasks as streams
from fedcl.config import Config
from fedcl.contracts import FedclError, Samples
from fedcl.federation import Federation, Place


@dataclass(frozen=True)
class Holding:
    """What a hospital tells of its data: names and counts."""

    client: int
    name: str
    shape: tuple[int, ...]  # of a sample, before missing values are flagged
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]  # [train, val, test][class]
    lacking: tuple[int, ...]  # columns in which its training samples miss values

    def pack(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def unpack(cls, text: str) -> Holding:
        """The reverse of `pack`."""
        given = json.loads(text)
        given |= {key: tuple(given[key]) for key in ("shape", "classes", "lacking")}
        given["counts"] = tuple(map(tuple, given["counts"]))
        return cls(**given)


def load(config: Config, folder: str) -> Samples:
    """A hospital's own samples: `config.data.name` in its own folder.

    Raises:
        FedclError: it has none, or they would need statistics of all hospitals.
    """
    if not folder:
        raise FedclError("data.own: this hospital's hospital.toml names no `data` folder")
    if not Path(folder).is_dir():
        raise FedclError(f"data.own: there is no folder {folder}, which hospital.toml names")
    samples = datasets.load(config.data.model_copy(update={"root": folder}))
    how = config.data.normalize
    if how == "train" or (how == "auto" and samples.tabular):
        raise FedclError(
            "data.normalize: mean and deviation of all hospitals' samples are not known here; take "
            "data.normalize = 'client', 'none', or {mean, std}"
        )
    return samples


def describe(config: Config, folder: str, client: int, name: str) -> Holding:
    """What a hospital says of its samples."""
    samples = load(config, folder)
    parts = partition.split(samples, np.zeros(len(samples.y), np.int64), config.data, config.seed)
    size = len(samples.classes)
    counts = np.bincount(parts * size + samples.y, minlength=3 * size).reshape(3, size)
    lacking = np.flatnonzero(np.isnan(samples.x[parts == 0]).any(0)) if samples.missing else ()
    return Holding(
        client, name, samples.x.shape[1:], samples.classes, tuple(map(tuple, counts.tolist())), tuple(map(int, lacking))
    )


def assemble(config: Config, holdings: Sequence[Holding]) -> Federation:
    """The federation of these hospitals, by client, with everything but samples.

    Raises:
        FedclError: their samples have different shapes, or cannot give these tasks.
    """
    holdings = sorted(holdings, key=lambda holding: holding.client)
    if len({holding.shape for holding in holdings}) > 1:
        shapes = ", ".join(f"{holding.name} {list(holding.shape)}" for holding in holdings)
        raise FedclError(f"the hospitals' samples have different shapes: {shapes}")
    classes = _union([holding.classes for holding in holdings])
    rows = [
        (classes.index(name), holding.client, part, count)
        for holding in holdings
        for part, row in enumerate(holding.counts)
        for name, count in zip(holding.classes, row, strict=True)
        if count
    ]
    y, site, part, count = np.array(rows, np.int64).reshape(-1, 4).T
    names = tuple(holding.name for holding in holdings)
    every = Samples(np.zeros((0, *holdings[0].shape), np.float32), y, classes, site=site, sites=names)
    partition.check(np.repeat(site, count), np.repeat(part, count), config.partition, len(holdings))
    flagged = tuple(sorted({column for holding in holdings for column in holding.lacking}))
    shape = (*holdings[0].shape[:-1], holdings[0].shape[-1] + len(flagged))
    tasks = streams.build(every, config.stream, config.seed, shape)
    counts = np.zeros((len(holdings), len(tasks), 3, len(classes)), np.int64)
    for task in tasks:
        mine = streams.members(task, every)
        np.add.at(counts, (site[mine], task.index, part[mine], y[mine]), count[mine])
    members, groups = federations.who(config.federation.kind, len(holdings))
    how = features.method(config.data, tabular=False)
    return Federation(
        tasks=tasks,
        shape=shape,
        classes=classes,
        names=names,
        members=members,
        groups=groups,
        schedule=federations.schedule(config, tasks, members, counts),
        flagged=flagged,
        _counts=counts,
        _x=torch.zeros(0, *shape),
        _y=torch.zeros(0, dtype=torch.int64),
        _samples=np.zeros(0, np.int64),
        _starts=np.zeros(len(holdings) * 3 + 1, np.int64),
        _inside=np.zeros((len(tasks), 0), bool),
        scaling={"how": "given" if isinstance(how, dict) else how} | ({"imputed": True} if flagged else {}),
    )


def told(federation: Federation) -> dict[str, Any]:
    """What each hospital has to know of the others: names, who has which task when, and no counts."""
    described = federation.describe()
    return {name: described[name] for name in ("hospitals", "classes", "flagged", "schedule")}


def build(config: Config, folder: str, client: int, described: dict[str, Any]) -> Federation:
    """A hospital's own samples in the federation that the server describes, see `told`."""
    samples = load(config, folder)
    classes, names = tuple(described["classes"]), tuple(described["hospitals"])
    ids = np.array([classes.index(name) for name in samples.classes])
    schedule = tuple(tuple(tuple(now) for now in stage) for stage in described["schedule"])
    place = Place(client, names, schedule, tuple(described["flagged"]))
    return federations.build(config, replace(samples, y=ids[samples.y], classes=classes), place)


def _union(lists: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """All class names: in the first one's order where all agree, else numbers by size and names by letter."""
    if len(set(lists)) == 1:
        return lists[0]
    every = {name for names in lists for name in names}
    return tuple(sorted(every, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name)))
