"""A small federation that is quick to run (3 hospitals, 3 tasks of 2 classes, 2 rounds), and how to compare runs."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file

from fedcl.results import Result

BASE: dict[str, Any] = {
    "seed": 3,
    "data": {"name": "synthetic", "options": {"samples": 360, "classes": 6, "shape": [12]}},
    "partition": {"name": "dirichlet", "alpha": 1.0, "min_samples": 5},
    "stream": {"tasks": 3},
    "model": {"options": {"hidden": [16, 16]}, "expansion_units": 8},
    "train": {"rounds": 2, "epochs": 2, "batch_size": 16},
    "federation": {"clients": 3},
}


def merged(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """`base` with nested changes."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(result.get(key, {}), **value) if isinstance(value, dict) else value
    return result


def model(result: Result) -> dict[str, torch.Tensor]:
    """The final parameters of a run."""
    return load_file(result.path / "model.safetensors")


def numbers(result: Result) -> list[tuple[Any, ...]]:
    """Every recorded figure but times."""
    timed = {"seconds", "latency_ms"}
    return [(*r[:6], repr(r.value)) for r in result.records if r.name not in timed]


def assert_same(one: Result, two: Result) -> None:
    """Parameters and figures equal, bit for bit."""
    first, second = model(one), model(two)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert numbers(one) == numbers(two)
