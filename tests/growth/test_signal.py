"""The loss that growth is decided on: the hospitals' mean, or their median where they are not taken at their word."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from fedcl import growing
from fedcl.aggregators.fedavg import FedAvg
from fedcl.aggregators.krum import Krum
from fedcl.aggregators.median import Median
from fedcl.aggregators.trimmed_mean import TrimmedMean
from fedcl.client import Client
from fedcl.mergers.fisher import Fisher
from fedcl.mergers.ties import Ties

LINEAR, ROBUST = FedAvg(), Median()


def _told(*values):
    task = SimpleNamespace(id="t0")
    return [((task,), {"validate/loss": loss, "validate/n": float(n)}) for loss, n in values]


def test_the_mean_is_by_samples():
    assert growing.losses(_told((1.0, 30), (3.0, 10))) == {"t0": 1.5}
    assert growing.losses([*_told((1.0, 30)), ((SimpleNamespace(id="t1"),), {})]) == {"t0": 1.0}


@pytest.mark.parametrize("merger", [Fisher(), Ties(), TrimmedMean(cut=0.0)])
def test_rules_that_are_not_linear_and_hold_against_nothing_leave_the_mean(merger):
    assert growing.losses(_told((1.0, 30), (3.0, 10), (3.0, 0.001)), (LINEAR, merger))["t0"] == pytest.approx(
        1.5, abs=1e-3
    )


@pytest.mark.parametrize("rules", [(ROBUST, ROBUST), (LINEAR, Krum()), (ROBUST, LINEAR)])
def test_one_hospital_cannot_steer_growth_where_rules_are_robust(rules):
    """Four say 0.5 to 0.8, one a million of a million samples."""
    told = _told((0.5, 10), (0.6, 10), (0.7, 10), (0.8, 10), (1e6, 1e6))
    assert growing.losses(told, rules) == {"t0": 0.7}
    assert growing.losses(told, (LINEAR, LINEAR))["t0"] > 9e5


@pytest.mark.parametrize(
    ("metrics", "fits"),
    [
        ({}, True),
        ({"validate/loss": 0.0, "validate/n": 1.0}, True),
        ({"validate/loss": -0.1, "validate/n": 1.0}, False),
        ({"validate/loss": 0.1, "validate/n": 0.0}, False),
        ({"validate/loss": 0.1, "validate/n": -4.0}, False),
        ({"validate/loss": 0.1}, False),
    ],
)
def test_what_cannot_be_a_loss_is_said(metrics, fits):
    assert (growing.misfit(metrics) == "") == fits


def test_a_loss_of_no_samples_is_rejected_and_the_run_goes_on(run, monkeypatch):
    honest = Client.run

    def without(self, client, job):
        update = honest(self, client, job)
        told = {"validate/n": 0.0} if client == 1 and job.phase == "train" else {}
        return replace(update, metrics=update.metrics | told)

    monkeypatch.setattr(Client, "run", without)
    options = {"window": 1, "patience": 2}
    result = run(
        method="finetune",
        data={"val": 0.2},
        model={"growth": "threshold"},
        growth={"threshold": options},
        train={"rounds": 4},
        federation={"quorum": 0.3},
    )
    faults = [r for r in result.records if r.phase == "fault"]
    assert len(faults) == 4 * len(result.schedule)  # one a round
    assert all((r.client, r.name) == (1, "rejected") and "on 0.0 samples" in r.note for r in faults)
