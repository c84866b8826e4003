"""Whose answers count for a task's module: those that train the task now, or else those that had it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from small import model

from fedcl.client import Client
from fedcl.contracts import FedclError, role
from fedcl.merge import Merge

# t0 comes back to hospital 1 alone, when 0 had it too and 2 never; t1 is new to 0 and 2; t2 was that of 2 alone.
BACK = [[0, 1, 2], [1, 0, 1]]
SENT = [{"": {0, 1, 2}, "t0": {0}, "t1": {1}, "t2": {2}}, {"": {0, 1, 2}, "t0": {1}, "t1": {0, 2}, "t2": {2}}]
PARTIAL = {"train": {"rounds": 1}, "stream": {"schedule": "table", "table": BACK}, "run": {"keep_stages": True}}


@pytest.fixture
def seen(monkeypatch):
    """(stage, client, the Job's arrays, the update) of each training Job of a run."""
    found, honest = [], Client.run

    def run(self, client, job):
        update = honest(self, client, job)
        if job.phase == "train":
            start = {name: value.clone() for name, value in job.arrays.items()}
            found.append(
                (job, update.client, start, {name: d.clone() for name, d in update.arrays.items()}, update.weight)
            )
        return update

    monkeypatch.setattr(Client, "run", run)
    return found


@pytest.mark.parametrize("merger", ["weighted", "median"])
@pytest.mark.parametrize("method", ["finetune", "lwf", "replay", "derpp", "agem", "retain"])
def test_a_module_is_merged_over_those_that_own_its_task_now(run, seen, method, merger):
    result = run("run", method=method, federation={"merger": merger}, **PARTIAL)
    assert not [record for record in result.records if record.phase == "fault"]
    along = method != "finetune"
    for stage in (0, 1):
        merged = load_file(result.path / f"stages/{stage}.safetensors")
        jobs = [each for each in seen if each[0].stage == stage]
        for part in ("t0", "t1", "t2"):
            owners = {c: (d, w) for _, c, _, d, w in jobs if part in {role(name) for name in d}}
            assert set(owners) == (SENT[stage][part] if along or stage == 0 or part != "t2" else set())
            for name in {name for d, _ in owners.values() for name in d if role(name) == part}:
                before = next(start[name] for _, c, start, _, _ in jobs if c in owners)
                deltas = torch.stack([d[name] for d, _ in owners.values()])
                weights = torch.tensor([w for _, w in owners.values()]).view(-1, *[1] * before.dim())
                step = (deltas * weights).sum(0) / weights.sum() if merger == "weighted" else deltas.mean(0)
                torch.testing.assert_close(merged[name], before + step)


def test_others_still_ask_the_module_and_do_not_move_it(run, seen):
    run("run", method="lwf", **PARTIAL)
    asked = {client: job for job, client, *_ in seen if job.stage == 1}
    assert {client: (job.past, job.held) for client, job in asked.items()} == {
        0: (("t0", "t2"), ("t0", "t2")),
        1: (("t1", "t2"), ("t1", "t2")),
        2: (("t0", "t2"), ("t0",)),
    }
    assert all({role(name) for name in start} == {"", "t0", "t1", "t2"} for job, _, start, *_ in seen if job.stage == 1)


def test_own_modules_train_along_whoever_else_has_the_task(run, seen):
    run("run", method="replay", **(PARTIAL | {"federation": {"merger": "personal"}}))
    assert all(job.held == () for job, *_ in seen)


def test_the_same_task_later_goes_on_from_what_the_earlier_hospital_left(run, seen):
    table = [[0, -1, 1], [1, 0, -1]]
    changes = PARTIAL | {"stream": {"tasks": 2, "classes": [[0, 1, 2], [3, 4, 5]], "schedule": "table", "table": table}}
    result = run("run", method="finetune", **changes)
    left, end = load_file(result.path / "stages/0.safetensors"), model(result)
    ((_, _, start, deltas, _),) = [each for each in seen if each[0].stage == 1 and each[1] == 1]
    mine = [name for name in deltas if role(name) == "t0"]
    assert mine
    assert all(torch.equal(start[name], left[name]) for name in start if role(name) in ("", "t0"))
    assert all(torch.equal(end[name], left[name] + deltas[name]) for name in mine)
    assert not all(torch.equal(end[name], left[name]) for name in mine)


@pytest.mark.parametrize(("reset", "carried"), [("round", False), ("task", False), ("never", True)])
def test_what_a_rule_remembers_of_an_earlier_stage(run, monkeypatch, reset, carried):
    found, apply = [], Merge.apply

    def spy(self, params, states, *args):
        found.append(set(states))
        return apply(self, params, states, *args)

    monkeypatch.setattr(Merge, "apply", spy)
    run("run", method="finetune", train={"reset": reset}, federation={"aggregator": "fedavgm", "merger": "fedadam"})
    assert found[:2] == [set(), {"", "t0"}]
    assert found[2] == ({"", "t0"} if carried else set())
    assert found[3] == ({"", "t0", "t1"} if carried else {"", "t1"})


def test_modules_of_earlier_tasks_are_not_merged_across(run):
    """One task at a time: attention has nothing to listen to, though others train along."""
    changes = {"method": "replay", "train": {"rounds": 1}}
    plain, mixed = (model(run(name, federation={"merger": name}, **changes)) for name in ("weighted", "attention"))
    assert all(torch.equal(plain[name], mixed[name]) for name in plain)


def test_masked_sums_know_before_what_they_would_refuse(run):
    """Of t0's hospitals too few are there later, or all but one of the trunk's; else the sum is the plain server's."""
    sums = {"privacy": {"mechanism": "secagg"}}

    def go(name, table, method="lwf", **more):
        clients = {"federation": {"clients": len(table[0])}, "partition": {"name": "iid"}}
        stream = {"tasks": 2, "classes": [[0, 1, 2], [3, 4, 5]], "schedule": "table", "table": table}
        return run(name, method=method, stream=stream, **clients, **more)

    few = [[0, 0, 0, -1, -1], [-1, 1, 1, 1, 1]]
    one = [[0, 0, 0, -1], [1, 1, 1, 1]]
    with pytest.raises(FedclError, match="only 2 of them"):
        go("few", few, **sums)
    with pytest.raises(FedclError, match="stage 2: part 't0' has 3 hospitals, and less another"):
        go("one", one, **sums)
    go("none along", one, method="finetune", **sums)
    two = [[0, 0, 0, -1, -1], [1, 1, 1, 1, 1]]
    plain, hidden = go("plain", two), go("hidden", two, **sums)
    assert not [record for record in hidden.records if record.phase == "fault"]
    first, second = model(plain), model(hidden)
    assert all(torch.allclose(first[name], value, atol=1e-5) for name, value in second.items())
