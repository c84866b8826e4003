"""Hospitals that answer wrongly or not at all: the round goes on without them, and the run says who and why."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from small import assert_same, model

from fedcl import client
from fedcl.contracts import FedclError
from fedcl.runtime.exchange import IDENTIFY
from fedcl.runtime.inline import InlineGrid


def _tamper(monkeypatch, change, victims=(1,), rounds=(1,)):
    """Let some clients' training answers of some rounds be `change(update)`."""
    honest = client.Client.run

    def run(self, index, job):
        update = honest(self, index, job)
        return change(update) if index in victims and job.phase == "train" and job.round in rounds else update

    monkeypatch.setattr(client.Client, "run", run)


def _edit(name, value):
    return lambda update: dataclasses.replace(update, arrays=update.arrays | {name: value})


def _drop(name):
    return lambda update: dataclasses.replace(
        update, arrays={key: value for key, value in update.arrays.items() if key != name}
    )


def _raise(update):
    raise RuntimeError("the power went out")


WRONG = {
    "NaN": (_edit("trunk.layers.0.bias", torch.full((16,), math.nan)), "rejected", "NaN"),
    "shape": (_edit("trunk.layers.0.bias", torch.zeros(3)), "rejected", "shape"),
    "dtype": (_edit("trunk.layers.0.bias", torch.zeros(16, dtype=torch.float64)), "rejected", "dtype"),
    "another task's module": (_edit("tasks.t2.out.bias", torch.zeros(2)), "rejected", "not asked for"),
    "too little": (_drop("trunk.layers.0.bias"), "rejected", "missing"),
    "weight": (lambda u: dataclasses.replace(u, weight=math.inf), "rejected", "weight"),
    "somebody else": (lambda u: dataclasses.replace(u, client=2), "missing", "in the name of"),
    "raises": (_raise, "missing", "the power went out"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_answer_is_left_out_and_named(run, monkeypatch, what):
    change, kind, why = WRONG[what]
    _tamper(monkeypatch, change)
    result = run("run")
    faults = [record for record in result.records if record.phase == "fault"]
    assert [(f.stage, f.round, f.client, f.name) for f in faults] == [(0, 1, 1, kind)]
    assert why in faults[0].note
    assert all(value.isfinite().all() for value in model(result).values())
    assert not math.isnan(result.metrics["average_accuracy"])
    assert why in (result.path / "report.html").read_text()


def test_the_round_is_that_of_the_others(run, monkeypatch):
    """Leaving out a NaN is the same as that client never having been asked in that round."""
    _tamper(monkeypatch, _edit("trunk.layers.0.bias", torch.full((16,), math.nan)))
    wrong = model(run("nan", method="finetune"))
    monkeypatch.undo()
    _tamper(monkeypatch, _raise)
    silent = model(run("silent", method="finetune"))
    for name, value in wrong.items():
        assert torch.equal(value, silent[name]), name


def test_without_a_quorum_the_run_ends_clearly_and_goes_on_later(run, small, monkeypatch):
    whole = model(run("whole"))
    _tamper(monkeypatch, _raise, victims=(0, 1, 2), rounds=(3,))
    with pytest.raises(FedclError, match=r"stage 2, round 2: 0 of 3 clients .* power went out"):
        run("broken", run={"checkpoint_every": 1})
    monkeypatch.undo()
    mended = model(run("broken"))
    for name, value in whole.items():
        assert torch.equal(value, mended[name]), name


def test_silence_ends_with_the_timeout(run, monkeypatch):
    pull = InlineGrid.pull_messages

    def silent(self, message_ids):
        about = {i: self._waiting[i].metadata for i in message_ids}
        loud = [i for i, m in about.items() if m.dst_node_id != 1001 or m.message_type == IDENTIFY]
        return pull(self, loud)

    monkeypatch.setattr(InlineGrid, "pull_messages", silent)
    result = run("run", federation={"timeout": 0.3}, stream={"tasks": 1, "classes": [[0, 1]]})
    faults = [record for record in result.records if record.phase == "fault"]
    assert {fault.client for fault in faults} == {1}
    assert all("no answer within 0.3 s" in fault.note for fault in faults)


def test_a_missed_consolidation_is_made_up_before_the_next_training(run, monkeypatch):
    """Client 1 is away when t0 ends; it consolidates later on that same model, and nothing else changes."""
    whole = run("whole")
    honest = client.Client.run

    def away(self, index, job):
        if index == 1 and job.phase == "consolidate" and job.stage == 0 and not served:
            served.append(job)
            raise RuntimeError("away")
        return honest(self, index, job)

    served: list[object] = []
    monkeypatch.setattr(client.Client, "run", away)
    late = run("late")
    assert len(served) == 1
    for name, value in model(whole).items():
        if not name.startswith("infer."):
            assert torch.equal(value, model(late)[name]), name


def test_who_is_late_consolidates_in_order_and_does_not_train_before(run, monkeypatch):
    """Client 1 fails at the end of t0 and in the next two attempts; it sits out until it has made up for it."""
    honest, seen, failures = client.Client.run, [], 3

    def flaky(self, index, job):
        nonlocal failures
        if index == 1 and job.phase == "consolidate" and failures:
            failures -= 1
            raise RuntimeError("away")
        if index == 1:
            seen.append((job.phase, job.stage))
        return honest(self, index, job)

    monkeypatch.setattr(client.Client, "run", flaky)
    result = run("run")
    consolidated = [stage for phase, stage in seen if phase == "consolidate"]
    assert consolidated == sorted(consolidated) == [0, 1, 2]
    first = seen.index(("consolidate", 0))
    assert ("train", 1) not in seen[:first]
    faults = [record for record in result.records if record.phase == "fault"]
    assert len(faults) == 3
    assert {(fault.client, fault.name) for fault in faults} == {(1, "missing")}


def test_who_was_late_still_begins_the_next_stage(run, monkeypatch):
    """Client 1 makes up for the end of t0 in the next stage, which it has not begun by that."""
    honest, seen, away = client.Client.run, [], []

    def late(self, index, job):
        if index == 1 and job.phase == "consolidate" and not away:
            away.append(job)
            raise RuntimeError("away")
        if index == 1 and job.phase == "train":
            seen.append((job.stage, "begin" in job.flags))
        return honest(self, index, job)

    monkeypatch.setattr(client.Client, "run", late)
    run("run")
    assert away
    assert seen == [(stage, number == 0) for stage in range(3) for number in range(2)]


EXTRAS = {
    "NaN": ({"ewc/new/trunk.layers.0.bias": torch.full((16,), math.nan)}, "NaN"),
    "shape": ({"infer/t0.sum": torch.zeros(3, 3)}, "shape"),
    "another task": ({"infer/t2.nll": torch.zeros(21)}, "shape"),
}


@pytest.mark.parametrize("what", EXTRAS)
def test_what_consolidation_sends_is_checked_too(run, monkeypatch, what):
    change, why = EXTRAS[what]
    honest = client.Client.run

    def run_client(self, index, job):
        update = honest(self, index, job)
        if index == 1 and job.phase == "consolidate" and job.stage == 0:
            return dataclasses.replace(update, extras=update.extras | change)
        return update

    monkeypatch.setattr(client.Client, "run", run_client)
    result = run("run", methods={"ewc": {"share": "sum"}})
    notes = [record.note for record in result.records if record.phase == "fault"]
    assert notes
    assert all(why in note for note in notes)
    assert result.accuracy.shape[0] == 3


def test_a_client_cannot_answer_for_another_hospital(run, monkeypatch):
    honest = client.Client.run

    def run_client(self, index, job):
        update = honest(self, index, job)
        if index == 1 and job.phase == "evaluate":
            return dataclasses.replace(update, arrays={f"0{key[1:]}": value for key, value in update.arrays.items()})
        return update

    monkeypatch.setattr(client.Client, "run", run_client)
    result = run("run")
    assert {record.client for record in result.records if record.phase == "fault"} == {1}
    assert all(math.isnan(value) for value in result.accuracy[:, :, 1].ravel())
    assert not math.isnan(result.metrics["average_accuracy"])


def test_a_shared_fisher_is_folded_once_a_stage(run, monkeypatch):
    from fedcl.methods.ewc import EWC

    folds, fold = [], EWC.server

    def counted(self, params, state, uploads):
        folds.append(sorted(weight for weight, _ in uploads))
        return fold(self, params, state, uploads)

    monkeypatch.setattr(EWC, "server", counted)
    run(
        "run",
        methods={"ewc": {"share": "sum"}},
        federation={"clients": 4, "fraction": 0.5, "consolidate_on": "local"},
        data={"options": {"samples": 480}},
    )
    assert [len(weights) for weights in folds] == [4, 4, 4]


@pytest.mark.parametrize("extra", ["the same again", "one of an older round", "one that nobody asked for"])
def test_an_answer_too_many_changes_nothing(run, monkeypatch, extra):
    honest = run("honest")
    pull, older = InlineGrid.pull_messages, []

    def generous(self, message_ids):
        replies = list(pull(self, message_ids))
        older.extend(replies)
        if extra == "one that nobody asked for" and replies:
            stranger = copy.deepcopy(replies[0])
            stranger.metadata.__dict__["_reply_to_message_id"] = "0123"
            return [stranger, *replies]
        return [*older[:1], *replies] if extra == "one of an older round" else [*replies, *replies]

    monkeypatch.setattr(InlineGrid, "pull_messages", generous)
    assert_same(honest, run("generous"))
