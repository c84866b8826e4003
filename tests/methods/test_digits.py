"""Bands that independent implementations reach on digits, class-incremental: 5 tasks, one client, mean of 3 seeds.

MLP 64-100-100, Adam 0.001, batch 32, 20 epochs a task, one head over ten classes, the split of the parity test.
"""

from __future__ import annotations

import numpy as np
import pytest
from small import digits

from fedcl.config import Config
from fedcl.simulation import simulate

BANDS = {
    "naive": ("finetune", {}, {}, 18.0, 20.0),
    "replay, 100 samples": ("replay", {"size": 100}, {}, 89.0, 93.0),
    "GPM": ("gpm", {"threshold": [0.97], "growth": 0.003}, {}, 75.0, 92.0),
    # As published: the gradient only, on a tenth of the memory; projecting the update as well gives far more.
    "A-GEM, gradient": ("agem", {"size": 100, "on": "gradient", "batch": 10}, {}, 32.0, 44.0),
    "A-GEM": ("agem", {"size": 100}, {}, 85.0, 93.0),
    "joint": ("finetune", {}, {"kind": "joint"}, 96.3, 98.3),  # as many passes as five stages have
}


@pytest.mark.parametrize("case", BANDS)
def test_class_incremental_accuracy(case, tmp_path):
    method, options, federation, low, high = BANDS[case]
    data, reached = digits(), []
    for seed in range(3):
        config = Config.model_validate({
            "seed": seed,
            "method": method,
            "methods": {method: options} if options else {},
            "data": {"val": 0},
            "partition": {"name": "iid"},
            "model": {"heads": "shared", "mask": "all", "options": {"hidden": [100, 100]}},
            "train": {
                "rounds": 1, "epochs": 100 if federation else 20, "optimizer": "adam", "lr": 1e-3, "reset": "task",
                "lr_schedule": "constant",
            },
            "federation": {"clients": 1, **federation},
            "run": {"output": str(tmp_path / str(seed))},
        })  # fmt: skip
        reached.append(100 * simulate(config, data).pooled_inferred[-1].mean())
    assert low <= np.mean(reached) <= high, reached


@pytest.mark.parametrize("method", ["lwf", "retain"])
def test_what_is_added_to_the_loss_is_not_too_much_by_default(tmp_path, method):
    """A penalty that outweighs the new task, or diverges, would leave later tasks at chance."""
    scores = []
    for name in ("finetune", method):
        config = {"method": name, "train": {"rounds": 5}, "run": {"output": str(tmp_path / name)}}
        scores.append(simulate(Config.model_validate(config)).metrics["average_accuracy"])
    assert scores[1] > scores[0]
