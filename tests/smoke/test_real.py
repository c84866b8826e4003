"""Short runs on the real data sets, end to end; skipped where FEDCL_DATA names none."""

from __future__ import annotations

import math

import pytest

from fedcl.config import Config
from fedcl.simulation import simulate

SHORT = {"rounds": 2, "epochs": 1, "batch_size": 64}
SMALL = {"rounds": 4, "epochs": 5, "batch_size": 16}  # a few hundred patients
CASES = {
    "heart, four hospitals, one after another": {
        "data": {"name": "heart"},
        "partition": {"name": "site"},
        "stream": {"kind": "domain", "tasks": 2},
        "train": SMALL,
        "federation": {"clients": 4},
    },
    "heart, a task is a hospital's population": {
        "data": {"name": "heart"},
        "partition": {"name": "iid"},
        "stream": {"kind": "site", "tasks": 4},
        "train": SMALL,
        "federation": {"clients": 3},
    },
    "medmnist, two hospitals": {
        "data": {"name": "medmnist:breastmnist"},
        "stream": {"kind": "domain", "domain": "rotated", "tasks": 2},
        "model": {"name": "cnn"},
        "federation": {"clients": 2},
    },
    "MNIST then Fashion-MNIST, late hospitals": {
        "data": {"name": "mnist+fashion_mnist", "val": 0.9},
        "stream": {"kind": "sequence", "schedule": "staggered", "tasks": 2},
        "federation": {"clients": 3, "fraction": 0.7},
    },
    "permuted MNIST, one head": {
        "data": {"name": "mnist", "val": 0.9},
        "stream": {"kind": "domain", "tasks": 2},
        "model": {"heads": "shared", "mask": "all"},
        "train": SHORT | {"optimizer": "adam", "lr": 0.001},
    },
}


@pytest.mark.data
@pytest.mark.parametrize("case", CASES)
def test_real_data_end_to_end(case, real_data, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDCL_DATA", str(real_data))
    config = {"train": SHORT, **CASES[case], "run": {"output": str(tmp_path / "run")}}
    result = simulate(Config.model_validate(config))
    chance = 1 / max(len(task.classes) for task in result.tasks)
    assert result.metrics["average_accuracy"] > chance + 0.05
    assert not math.isnan(result.metrics["average_accuracy_inferred"])
    assert (result.path / "report.html").stat().st_size > 10_000
