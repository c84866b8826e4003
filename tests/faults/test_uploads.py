"""What a method sends beside parameters, damaged by one hospital: its answer is left out, and the run goes on."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small import merged, model

from fedcl import plugins
from fedcl.client import Client
from fedcl.contracts import Method

SUM = {"share": "sum"}
UPLOADING = {
    **{name: {"method": name, "methods": {name: SUM}} for name in ("ewc", "l2", "si", "mas", "gpm")},
    **{name: {"method": name} for name in ("fot", "fedweit", "scaffold")},
    "prune": {"method": "finetune", "model": {"growth": "prune"}, "growth": {"prune": {"importance": "gradient"}}},
}
VARIANTS = {
    "a net that grows": merged(
        UPLOADING["ewc"],
        method="ewc+scaffold",
        model={"growth": "threshold"},
        growth={"threshold": {"ratio": 0.99, "window": 1, "patience": 1, "smallest": 0.0, "units": 2, "where": "both"}},
        train={"rounds": 4},
    ),
    "consolidated on the hospital's own model": merged(
        UPLOADING["ewc"], method="ewc+scaffold", federation={"consolidate_on": "local"}
    ),
    "a shared head": merged(UPLOADING["gpm"], model={"heads": "shared"}),
    "a trunk that stands still": {"method": "freeze+scaffold"},
    "noise at hospitals": merged(
        UPLOADING["prune"],
        privacy={"mechanism": "client-dp"},
        mechanisms={"client-dp": {"where": "hospital", "noise": 0.1}},
    ),
    "a stream": merged(
        UPLOADING["prune"],
        method="ewc",
        methods={"ewc": SUM},
        train={"stream": "hybrid", "rounds": 5, "consolidate_every": 2},
        data={"options": {"samples": 600}},
        federation={"fraction": 0.7},
    ),
    "modules of its own": merged(UPLOADING["mas"], federation={"merger": "personal"}),
}
ALL = UPLOADING | VARIANTS


def _longer(extras, key):
    return extras | {key: torch.cat([extras[key].reshape(-1), extras[key].reshape(-1)[:1]])}


DAMAGE = {
    "shape": _longer,
    "missing": lambda extras, key: {name: value for name, value in extras.items() if name != key},
    "extra": lambda extras, key: extras | {f"{key}2": extras[key]},
    "dtype": lambda extras, key: extras | {key: extras[key].to(torch.complex64)},
    "of another method": lambda extras, key: extras | {"other/news": extras[key]},
}


def _own(extras):
    """What methods sent, without sums for inferring the task and what a merging rule measured."""
    return sorted(key for key in extras if not key.startswith(("infer/", "merge/")))


def test_every_method_that_uploads_is_among_them():
    kinds = [(kind, name) for kind in ("methods", "growth") for name in plugins.names(kind)]
    assert {name for kind, name in kinds if plugins.load(kind, name).upload is not Method.upload} == set(UPLOADING)


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("which", ALL)
def test_a_damaged_upload_is_left_out_and_the_run_goes_on(run, monkeypatch, which, what):
    """Client 1's, twice in the first stage: of its arrays the first, then the last."""
    honest, damaged = Client.run, []

    def spoil(self, client, job):
        update = honest(self, client, job)
        if client == 1 and job.stage == 0 and len(damaged) < 2 and (own := _own(update.extras)):
            key = own[-len(damaged)]
            damaged.append(key)
            return dataclasses.replace(update, extras=DAMAGE[what](update.extras, key))
        return update

    monkeypatch.setattr(Client, "run", spoil)
    result = run("run", **merged({"stream": {"tasks": 2}}, **ALL[which]))
    faults = [(record.client, record.name) for record in result.records if record.phase == "fault"]
    assert faults == [(1, "rejected")] * len(damaged)
    assert damaged
    assert all(value.isfinite().all() for value in model(result).values())


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("which", ALL)
def test_what_is_sent_honestly_is_taken(run, monkeypatch, which, late):
    """Also where client 1 is away at the first stage's end and consolidates later, when the net may have grown."""
    honest, away = Client.run, []

    def leave(self, client, job):
        if late and client == 1 and not away and (job.phase == "consolidate" or "consolidate" in job.flags):
            away.append(job)
            raise RuntimeError("away")
        return honest(self, client, job)

    monkeypatch.setattr(Client, "run", leave)
    result = run("run", **ALL[which])
    faults = [(record.client, record.name) for record in result.records if record.phase == "fault"]
    assert faults == [(1, "missing")] * len(away)
    if which == "a net that grows":
        sizes = {name: value.shape for name, value in model(result).items()}
        assert sizes["trunk.layers.0.weight"][0] > 16


@pytest.mark.parametrize("which", ["gpm", "fot"])
def test_the_largest_numbers_do_not_end_the_run(run, monkeypatch, which):
    """What is finite at each hospital, and would not be in a sum over two."""
    honest = Client.run

    def spoil(self, client, job):
        update = honest(self, client, job)
        large = {
            key: torch.full_like(update.extras[key], torch.finfo(update.extras[key].dtype).max)
            for key in _own(update.extras)
        }
        return dataclasses.replace(update, extras=update.extras | large) if client > 0 and job.stage == 0 else update

    monkeypatch.setattr(Client, "run", spoil)
    result = run("run", **merged({"stream": {"tasks": 2}}, **UPLOADING[which]))
    assert all(value.isfinite().all() for value in model(result).values())
