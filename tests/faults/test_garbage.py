"""One hospital of five sends garbage: robust rules hold the accuracy, plain averaging does not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from fedcl.client import Client
from fedcl.config import Config
from fedcl.merge import MEASURED
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


def _without(extras):
    return {name: value for name, value in extras.items() if not name.startswith(MEASURED)}


def _instead(extras, make):
    name = max(name for name in extras if name.startswith(MEASURED))
    return extras | {name: make(extras[name])}


MEASURES = {
    "is missing": _without,
    "is not what was to be measured": partial(_instead, make=lambda value: torch.ones(3, 5, 7)),
    "is not what was": partial(_instead, make=lambda value: value > 0),
    "was not asked for": lambda extras: extras | {MEASURED + "trunk.layers.0.bias": torch.ones(16)},
    "holds NaN": partial(_instead, make=lambda value: value * torch.nan),
}


@pytest.mark.parametrize("method", ["finetune", "lwf"])
@pytest.mark.parametrize("why", MEASURES)
def test_one_wrong_measure_is_one_answer_less(run, monkeypatch, why, method):
    """Also where modules of earlier tasks come along, of which nothing is measured."""
    honest = Client.run

    def tamper(self, client, job):
        update = honest(self, client, job)
        wrong = client == 1 and job.phase == "train" and job.stage == 1
        return replace(update, extras=MEASURES[why](update.extras)) if wrong else update

    monkeypatch.setattr(Client, "run", tamper)
    result = run("run", method=method, federation={"merger": "fisher"})
    faults = [record for record in result.records if record.phase == "fault"]
    assert {(r.client, r.stage) for r in faults} == {(1, 1)}
    assert len(faults) == 2  # rounds
    assert all(why in str(record.note) for record in faults)
    assert result.metrics["average_accuracy"] == result.metrics["average_accuracy"]


@pytest.mark.parametrize(("stages", "few"), [([0] * 5, []), ([0, 0, 0, 1, 1], ["t0 3, t1 2"])])
def test_a_run_says_before_where_its_rule_has_too_few_answers(small, tmp_path, stages, few):
    stream = {"tasks": 2, "classes": [[0, 1, 2], [3, 4, 5]], "schedule": "table", "table": [stages]}
    federation, told = {"clients": 5, "aggregator": "krum"}, []
    more = {"partition": {"name": "iid"}, "train": {"rounds": 1}, "run": {"output": str(tmp_path)}}
    simulate(small(method="finetune", stream=stream, federation=federation, **more), notify=told.append)
    said = [event.facts["text"] for event in told if event.kind == "notice"]
    assert len(said) == len(few)
    assert all(f"of {which}. " in text for which, text in zip(few, said, strict=True))
