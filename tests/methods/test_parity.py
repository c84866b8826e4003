"""Avalanche 0.6.0's numbers on five tasks of digits, reproduced through the whole federation with one client.

Frozen accuracies (10-way, mean over tasks after the last): its naive strategy and its EWC, separate and online. Its
λ has no ½ and its online loss no second γ, hence the factors.
"""

from __future__ import annotations

import pytest
import torch
from small import digits

from fedcl import rng
from fedcl.config import Config
from fedcl.simulation import simulate

BATCHED = "batched:BatchedEWC"
EWC = {"step": "explicit", "form": "separate"}
CASES = {
    "naive": ("finetune", {}, 10.00),
    "separate 100": (BATCHED, EWC | {"strength": 2 * 100.0}, 11.48),
    "separate 1e4": (BATCHED, EWC | {"strength": 2 * 1e4}, 31.84),
    "online 1e4": (BATCHED, EWC | {"form": "online", "gamma": 0.9, "strength": 2 * 1e4 / 0.9}, 29.48),
}


@pytest.mark.parametrize("case", CASES)
def test_frozen_accuracies(case, tmp_path, monkeypatch):
    method, options, expected = CASES[case]
    monkeypatch.syspath_prepend(str(__import__("pathlib").Path(__file__).parent))
    stream = rng.torch_stream

    def seeded_as_there(seed, purpose, client=-1, task=-1, round=-1):
        return torch.Generator().manual_seed(0) if purpose == "init" else stream(seed, purpose, client, task, round)

    monkeypatch.setattr(rng, "torch_stream", seeded_as_there)
    config = Config.model_validate({
        "method": method,
        "methods": {method: options} if options else {},
        "data": {"val": 0},
        "partition": {"name": "iid"},
        "model": {"heads": "shared", "mask": "all", "options": {"hidden": [100, 100]}},
        "train": {"rounds": 1, "epochs": 5, "optimizer": "adam", "lr": 1e-3, "reset": "never", "order": "arrival"},
        "federation": {"clients": 1},
        "run": {"output": str(tmp_path / "run")},
    })  # fmt: skip
    result = simulate(config, digits())
    assert 100 * result.pooled_inferred[-1].mean() == pytest.approx(expected, abs=0.005)
