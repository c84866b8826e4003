"""A small federation that is quick to run (3 hospitals, 3 tasks of 2 classes, 2 rounds), and how to compare runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from fedcl.contracts import TEST, TRAIN, Samples
from fedcl.plugins import split
from fedcl.results import Result
from fedcl.server import Server

BASE: dict[str, Any] = {
    "seed": 3,
    "data": {"name": "synthetic", "options": {"samples": 360, "classes": 6, "shape": [12]}},
    "partition": {"name": "dirichlet", "alpha": 1.0, "min_samples": 5},
    "stream": {"tasks": 3},
    "model": {"options": {"hidden": [16, 16]}, "expansion_units": 8},
    "train": {"rounds": 2, "epochs": 2, "batch_size": 16, "lr_schedule": "constant"},
    "federation": {"clients": 3},
}

TINY: dict[str, Any] = {  # settings of a run of a second, for what needs many
    "data": {"name": "digits"},
    "stream": {"tasks": 2},
    "federation": {"clients": 3},
    "train": {"rounds": 2, "epochs": 1},
    "model": {"options": {"hidden": [8]}},
}


LIGHT: dict[str, dict[str, Any]] = {  # of methods that take long at their defaults, what laws need not spend time on
    "target": {"steps": 3, "samples": 4, "width": 8, "size": 8, "noise": 4},
}


def light(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with the options above, where it says nothing else."""
    names = [name for name in split(config.get("method", "")) if name in LIGHT]
    return merged({"methods": {name: LIGHT[name] for name in names}}, **config) if names else config


def merged(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """`base` with nested changes."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(result.get(key, {}), **value) if isinstance(value, dict) else value
    return result


def model(result: Result) -> dict[str, torch.Tensor]:
    """The final parameters of a run; of all its models, where each hospital has its own."""
    files = sorted(result.path.glob("model*.safetensors"))
    if len(files) == 1:
        return load_file(files[0])
    return {f"{file.stem}:{name}": value for file in files for name, value in load_file(file).items()}


def numbers(result: Result) -> list[tuple[Any, ...]]:
    """Every recorded figure but times."""
    timed = {"seconds", "latency_ms", "latency_start_ms"}
    return [(*r[:6], repr(r.value)) for r in result.records if r.name not in timed]


def assert_same(one: Result, two: Result) -> None:
    """Parameters and figures equal, bit for bit."""
    first, second = model(one), model(two)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert numbers(one) == numbers(two)


def stop_after(monkeypatch: Any, saves: int) -> None:
    """Ask the server to stop where it could save for the n-th time (after a round, after a stage), as Ctrl-C does."""
    saved, count = Server._save, iter(range(1_000))

    def save(self: Server, always: bool = False) -> None:
        self._stop = lambda: next(count) + 1 == saves
        saved(self, always)

    monkeypatch.setattr(Server, "_save", save)


def digits() -> Samples:
    """Digits with 30 % of each class for testing, in the order of a plain NumPy script that others can repeat."""
    x, y = load_digits(return_X_y=True)
    random, test, train = np.random.RandomState(0), [], []
    for label in range(10):
        index = random.permutation(np.flatnonzero(y == label))
        cut = round(0.3 * len(index))
        test.append(index[:cut])
        train.append(index[cut:])
    order = random.permutation(np.concatenate(train)), random.permutation(np.concatenate(test))
    split = np.repeat(np.array([TRAIN, TEST], np.int8), [len(part) for part in order])
    rows = np.concatenate(order)
    return Samples((x[rows] / 16).astype(np.float32), y[rows].astype(np.int64), tuple("0123456789"), split=split)
