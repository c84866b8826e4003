"""Single training records of a federation: to look at, to leave out, to replace; all else about it stays as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor, aminmax, from_numpy

from fedcl.contracts import Batch
from fedcl.federation import _CACHE_BYTES, Cache, Federation


def held(federation: Federation, hospital: int, task: int) -> np.ndarray:
    """The rows of a hospital's training records of a task, in the order of `Federation.batch`: [n] int64."""
    low, high = federation._starts[3 * hospital : 3 * hospital + 2]
    rows: np.ndarray = np.flatnonzero(federation._inside[task, low:high]) + low
    return rows


def holders(federation: Federation, rows: np.ndarray) -> np.ndarray:
    """The client that holds each row: [n]."""
    hospitals = (np.searchsorted(federation._starts, rows, side="right") - 1) // 3
    clients = {hospital: client for client, several in enumerate(federation.members) for hospital in several}
    return np.array([clients[int(hospital)] for hospital in hospitals], np.int64)


def total(federation: Federation) -> int:
    """How many rows there are: training, validation and test records of all hospitals."""
    return int(federation._starts[-1])


def limits(federation: Federation) -> tuple[float, float]:
    """The least and the largest number of any record."""
    low, high = aminmax(federation._x)
    return float(low), float(high)


def shown(federation: Federation, rows: np.ndarray, task: int) -> Batch:
    """Records as a task shows them: x [n, *shape], global class ids y [n]."""
    index, transform = from_numpy(rows), federation.tasks[task].transform
    x = federation._x[index]
    return Batch(transform(x) if transform else x, federation._y[index])


def without(federation: Federation, rows: np.ndarray) -> Federation:
    """The federation as if it had never held some training records.

    Hospitals, schedule and normalisation stay what they were: neither the partition nor the scale tells who is missing.

    Args:
        federation: the whole one.
        rows: as `held` names them.
    """
    keep = np.ones(len(federation._y), dtype=bool)
    keep[rows] = False
    counts = federation._counts.copy()
    _count(federation, counts, rows, federation._y.numpy()[rows], -1)
    kept = from_numpy(keep)
    return replace(
        federation,
        _counts=counts,
        _x=federation._x[kept],
        _y=federation._y[kept],
        _samples=federation._samples[keep],
        _starts=np.concatenate([[0], keep.cumsum()])[federation._starts],
        _inside=federation._inside[:, keep],
        _cache=Cache(_CACHE_BYTES),
    )


def replaced(federation: Federation, rows: np.ndarray, x: Tensor, y: Tensor) -> Federation:
    """The federation with other records in the place of some.

    Args:
        federation: the whole one.
        rows: as `held` names them.
        x: [n, *shape], before a task's own transform.
        y: global class ids [n], of the tasks that the rows are of.
    """
    index, counts = from_numpy(rows), federation._counts.copy()
    _count(federation, counts, rows, federation._y.numpy()[rows], -1)
    _count(federation, counts, rows, y.numpy(), 1)
    return replace(
        federation,
        _counts=counts,
        _x=federation._x.index_copy(0, index, x),
        _y=federation._y.index_copy(0, index, y),
        _cache=Cache(_CACHE_BYTES),
    )


def _count(federation: Federation, counts: np.ndarray, rows: np.ndarray, labels: np.ndarray, step: int) -> None:
    """Add a step to the counts [hospitals, tasks, 3, classes] of these rows."""
    cell = np.repeat(np.arange(len(federation._starts) - 1), np.diff(federation._starts))[rows]
    for task, inside in enumerate(federation._inside[:, rows]):
        np.add.at(counts, (cell[inside] // 3, task, cell[inside] % 3, labels[inside]), step)
