"""One hospital of five sends garbage: robust rules hold the accuracy, plain averaging does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedcl.client import Client
from fedcl.config import Config
from fedcl.simulation import simulate

ROBUST = ["median", "trimmed-mean", "krum"]


@pytest.fixture
def accuracy(tmp_path, monkeypatch):
    """Average accuracy on digits with a rule, where the last hospital sends noise instead of its deltas."""
    honest = Client.run

    def run(self, client, job):
        update = honest(self, client, job)
        if client == 4 and job.phase == "train":
            noise = torch.Generator().manual_seed(job.round)
            arrays = {name: torch.randn(v.shape, generator=noise) for name, v in update.arrays.items()}
            update = replace(update, arrays=arrays)
        return update

    def measure(aggregator, garbage):
        monkeypatch.setattr(Client, "run", run if garbage else honest)
        changes = {
            "method": "finetune",
            "partition": {"name": "iid"},
            "stream": {"classes": [[0, 1, 2, 3, 4]], "tasks": 1},
            "train": {"rounds": 10, "epochs": 5, "lr": 0.1},
            "federation": {"aggregator": aggregator},
            "run": {"output": str(tmp_path / f"{aggregator}-{garbage}")},
        }
        return simulate(Config.model_validate(changes)).metrics["average_accuracy"]

    return measure


def test_plain_averaging_does_not_hold(accuracy):
    assert accuracy("fedavg", garbage=False) > 0.95
    assert accuracy("fedavg", garbage=True) < 0.85


@pytest.mark.parametrize("name", ROBUST)
def test_robust_rules_hold(accuracy, name):
    assert accuracy(name, garbage=True) > 0.93
