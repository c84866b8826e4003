"""Alarms: each rings where it should, none in an ordinary run, and none changes what is learned."""

from __future__ import annotations

import html
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import model, numbers, stop_after

from fedcl import federation as federations
from fedcl.alarms import Alarms
from fedcl.client import Client
from fedcl.config import Config
from fedcl.contracts import TEST, TRAIN, Samples, Update
from fedcl.drift import Drift
from fedcl.run_dir import read_metrics
from fedcl.simulation import Interrupted, simulate

DIGITS = {
    "method": "finetune",
    "partition": {"name": "iid"},
    "stream": {"classes": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], "tasks": 2},
    "train": {"rounds": 4, "epochs": 2},
}


@pytest.fixture
def alarms(tmp_path):
    """{(name, hospital)} of a run's alarms, and those that were told as events: the same."""

    def go(samples=None, **changes):
        told = []
        config = Config.model_validate({**DIGITS, **changes, "run": {"output": str(tmp_path / "run")}})
        result = simulate(config, samples, fresh=True, notify=lambda e: told.append(e) if e.kind == "alarm" else None)
        found = [r for r in result.records if r.phase == "alarm"]
        assert [(r.name, r.client, r.note) for r in found] == [
            (e.facts["name"], e.facts["client"], e.facts["note"]) for e in told
        ]
        report = html.unescape((result.path / "report.html").read_text())
        assert all(r.note in report for r in found)
        return {(r.name, r.client) for r in found}

    return go


@pytest.fixture
def tamper(monkeypatch):
    """Let hospital 2 send something else than its deltas."""
    honest = Client.run

    def with_(change):
        def run(self, client, job):
            update = honest(self, client, job)
            if client == 2 and job.phase == "train":
                return replace(update, arrays={name: change(value) for name, value in update.arrays.items()})
            return update

        monkeypatch.setattr(Client, "run", run)

    return with_


def test_an_ordinary_run_is_quiet(alarms):
    assert alarms(method="ewc") == set()


@pytest.mark.parametrize(
    ("change", "name"),
    [(lambda v: torch.randn(v.shape), "drift"), (lambda v: -v, "opposed"), (lambda v: 20 * v, "drift")],
    ids=["noise", "turned round", "blown up"],
)
def test_a_hospital_whose_updates_drift(alarms, tamper, change, name):
    tamper(change)
    found = alarms()
    assert (name, 2) in found
    assert {client for rule, client in found if rule in ("drift", "opposed")} == {2}


def test_a_noisy_hospital_and_nobody_else(alarms):
    noisy, train = {"name": "iid", "noisy": 1}, {"rounds": 6, "epochs": 4}
    assert alarms(partition=noisy, stream={"tasks": 1, "classes": [list(range(10))]}, train=train) == {("labels", 4)}


def test_a_forgotten_task(alarms):
    found = alarms(model={"heads": "shared"}, train={"rounds": 4, "epochs": 5})
    assert ("forgetting_inferred", None) in found


def test_a_loss_that_diverges(alarms):
    found = alarms(train={"rounds": 3, "epochs": 1, "lr": 4.0, "momentum": 0.9, "lr_schedule": "constant"})
    assert {name for name, _ in found} >= {"divergence"}


def test_copies_and_gaps(alarms):
    """Hospital 0: a tenth of its samples twice with another label, a fifth of its test samples in training, a class
    that is in its test samples only.
    """
    random = np.random.default_rng(0)
    x = random.normal(size=(600, 8)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    site, split = np.arange(600) % 3, np.where(np.arange(600) < 450, TRAIN, TEST).astype(np.int8)
    own = np.flatnonzero((site == 0) & (split == TRAIN))
    test = np.flatnonzero((site == 0) & (split == TEST))
    x[own[:15]], y[own[:15]] = x[own[15:30]], 1 - y[own[15:30]]
    x[test[:10]], y[test[:10]] = x[own[100:110]], y[own[100:110]]
    y[test[10:20]] = 2
    y[np.flatnonzero(site != 0)[::10]] = 2
    samples = Samples(x, y, ("a", "b", "c"), split=split, site=site, sites=("x", "y", "z"))
    common = {"stream": {"tasks": 1, "classes": [[0, 1, 2]]}, "federation": {"clients": 3}}
    common |= {"partition": {"name": "site"}, "train": {"rounds": 1, "epochs": 1}, "data": {"val": 0.0}}
    found = alarms(samples, **common)
    assert {name for name, client in found if client == 0} == {"duplicates", "leakage", "gaps"}
    assert {client for _, client in found} == {0}
    off = {"duplicates": 0.0, "gaps": 0.0, "labels": 0.0}
    assert alarms(samples, **common, alarms=off) == set()


def test_nothing_is_learned_otherwise_with_alarms(run, tamper):
    tamper(lambda v: 20 * v)
    rounds = {"train": {"rounds": 4}}
    loud, quiet = run("loud", **rounds), run("quiet", alarms={"on": False}, **rounds)
    for name, value in model(loud).items():
        assert torch.equal(value, model(quiet)[name]), name
    own = {"drift", "labels", "alarm"}

    def learned(result):
        return [row for row in numbers(result) if row[2] not in own and "bytes" not in row[5]]

    assert learned(loud) == learned(quiet)
    assert {row[2] for row in numbers(loud)} >= own
    assert not {row[2] for row in numbers(quiet)} & own


def test_alarms_of_a_resumed_run_are_those_of_one_that_was_not_stopped(run, tamper, monkeypatch):
    tamper(lambda v: 20 * v)
    changes = {"train": {"rounds": 4}}
    whole = run("whole", **changes)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)  # of the three rounds that it takes
        with pytest.raises(Interrupted):
            run("cut", **changes)
    assert numbers(run("cut", **changes)) == numbers(whole)
    assert {r.name for r in whole.records if r.phase == "alarm"} >= {"drift"}


def test_a_loss_below_guessing_or_in_a_first_round_is_no_alarm(small):
    config = small(train={"rounds": 3})
    rules = Alarms(config, federations.build(config))

    def take(number, loss, name="loss", phase="train"):
        record = {"stage": 0, "round": number, "client": 1, "task": None, "phase": phase, "name": name, "value": loss}
        return [alarm["name"] for alarm in rules.take(record)]

    assert take(0, 50.0) == []  # a new task may begin high
    assert take(1, 5.1 * math.log(2)) == []  # it sinks
    assert take(2, 5.2 * math.log(2)) == ["divergence"]
    assert take(2, 5.2 * math.log(2)) == []  # told already
    for losses in ((0.1, 0.2, 9.0), (0.1, 9.0, 0.2), (0.1, 4.8 * math.log(2), 4.9 * math.log(2))):
        other = Alarms(config, federations.build(config))
        for number, loss in enumerate(losses):
            record = {"stage": 0, "round": number, "client": 1, "task": None, "phase": "train", "name": "loss"}
            assert other.take(record | {"value": loss}) == []


def test_drift_is_the_mean_cosine_and_the_norm_ratio():
    """By hand: two equal updates, and one three times as long at a right angle to them."""
    drift = Drift()
    for client, values in enumerate(([2.0, 0.0], [2.0, 0.0], [0.0, 6.0])):
        drift.add(Update(client, {"trunk.w": torch.tensor(values)}, 1.0, {}))
    figures = {(r["client"], r["name"]): r["value"] for r in drift.records()}
    assert figures == pytest.approx(
        {(0, "cosine"): 0.5, (1, "cosine"): 0.5, (2, "cosine"): 0, (0, "norm"): 1, (1, "norm"): 1, (2, "norm"): 3}
    )
    assert list(drift.records()) == []


def test_a_sketch_keeps_angles():
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(50_000, generator=generator)
    drift, updates = Drift(), [common + torch.randn(50_000, generator=generator) for _ in range(3)]
    for client, value in enumerate(updates):
        drift.add(Update(client, {"trunk.w": value}, 1.0, {}))
    cosines = [r["value"] for r in drift.records() if r["name"] == "cosine"]
    assert cosines == pytest.approx([0.5] * 3, abs=0.08)


def test_only_counts_leave_a_hospital(run):
    for record in read_metrics(run("run").path):
        if record["phase"] == "labels":
            assert record["value"] == int(record["value"]) >= 0
