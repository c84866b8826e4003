"""Compressed updates in whole runs: the same in every runtime, the same resumed, and garbage is a fault."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from small import assert_same, model, stop_after

from fedcl import client, compression, federation, plugins, summary
from fedcl.contracts import FedclError
from fedcl.forecast import forecast
from fedcl.settings import ConfigErrors, resolve
from fedcl.simulation import Interrupted, simulate

RULES = plugins.names("compression")
KEPT = {"topk": {"keep": 0.2}}


def _with(name, **changes):
    options = {name: KEPT[name]} if name in KEPT else {}
    return {"compression": options, "federation": {"compress": name} | changes}


@pytest.mark.parametrize("rule", RULES)
def test_processes_do_what_one_process_does(run, rule):
    inline = run("inline", **_with(rule))
    assert_same(inline, run("processes", **_with(rule), run={"runtime": "processes", "workers": 2}))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rounds", [1, 4])
def test_resumed_is_uninterrupted(run, small, tmp_path, rule, rounds, monkeypatch):
    whole = run("whole", **_with(rule))
    config = small(**_with(rule), run={"output": str(tmp_path / "parts"), "checkpoint_every": 1})
    stop_after(monkeypatch, rounds)
    with pytest.raises(Interrupted):
        simulate(config)
    monkeypatch.undo()
    assert_same(whole, simulate(config))


def test_what_topk_owes_is_remembered(run, monkeypatch):
    """Without its memory it ends elsewhere: the test above would see a resume that forgets."""
    whole = model(run("whole", **_with("topk")))
    monkeypatch.setattr(compression, "RESIDUAL", "residual/lost/")
    honest = compression.shrink
    monkeypatch.setattr(
        compression, "shrink", lambda rule, deltas, memory, draws: (honest(rule, deltas, {}, draws)[0], memory)
    )
    without = model(run("without", **_with("topk")))
    assert any(not torch.equal(value, without[name]) for name, value in whole.items())


def test_sparse_is_exact_and_smaller(run):
    """A trunk of which half is frozen: not a bit of the model differs, and fewer bytes come up."""
    plain, small = run("plain", method="packnet"), run("sparse", method="packnet", **_with("sparse"))
    one, two = model(plain), model(small)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert small.bytes_up < plain.bytes_up
    assert small.bytes_down == plain.bytes_down


@pytest.mark.parametrize("rule", RULES)
def test_the_uncompressed_bytes_are_those_of_a_run_without(run, rule):
    plain, small = run("plain"), run("small", **_with(rule))
    assert small.bytes_up_raw == plain.bytes_up == plain.bytes_up_raw
    assert not [r for r in plain.records if r.name == "bytes_up_raw"]
    if rule != "sparse":
        sent, raw = ([r.value for r in small.records if r.name == name and r.phase == "train"]
                     for name in ("bytes_up", "bytes_up_raw"))  # fmt: skip
        assert all(few < 0.75 * many for few, many in zip(sent, raw, strict=True))
    text = summary.uncompressed(small)
    assert "uncompressed)" in text
    assert text.strip(" ()") in (small.path / "report.html").read_text()
    assert summary.uncompressed(plain) == ""


@pytest.mark.parametrize("method", ["packnet", "freeze"])
def test_what_a_method_froze_stays_frozen(run, method):
    """What topk still owes to the trunk of the first task does not move it later."""
    classes = [[0, 1], [2, 3]]
    short = run("short", method=method, **_with("topk"), stream={"classes": classes[:1], "tasks": 1})
    long = run("long", method=method, **_with("topk"), stream={"classes": classes, "tasks": 2})
    assert short.accuracy[0, 0].tolist() == long.accuracy[1, 0].tolist()


@pytest.mark.parametrize("changes", [{"kind": "local"}, {"merger": "personal"}, {"aggregator": "median"}])
@pytest.mark.parametrize("rule", ["int8", "topk"])
def test_beside_other_rules(run, rule, changes):
    result = run("run", **_with(rule, **changes))
    assert not [r for r in result.records if r.phase == "fault"]
    assert result.metrics["average_accuracy"] > 0.5
    assert result.bytes_up < result.bytes_up_raw


@pytest.mark.parametrize("method", ["cumulative", "scaffold", "fot", "hat"])
def test_beside_other_methods(run, method):
    result = run("run", method=method, **_with("topk"))
    assert not [r for r in result.records if r.phase == "fault"]
    assert all(value.isfinite().all() for value in model(result).values())


def _places(arrays):
    return arrays | {"places": torch.full_like(arrays["places"], 255)}


GARBAGE = {
    "noise": (lambda arrays: {name: torch.randn(v.shape) for name, v in arrays.items()}, RULES),
    "NaN": (lambda arrays: {n: v * math.nan if v.is_floating_point() else v for n, v in arrays.items()}, RULES),
    "cut short": (lambda arrays: {name: value[:-1] for name, value in arrays.items()}, RULES),
    "nothing": (lambda arrays: {}, RULES),
    "places anywhere": (_places, ["topk"]),
}


@pytest.mark.parametrize(("what", "rule"), [(what, rule) for what, (_, rules) in GARBAGE.items() for rule in rules])
def test_garbage_is_a_fault_and_the_round_goes_on(run, monkeypatch, what, rule):
    honest = client.Client.run

    def wrong(self, index, job):
        update = honest(self, index, job)
        if index == 1 and job.phase == "train" and job.round == 1:
            update = dataclasses.replace(update, arrays=GARBAGE[what][0](update.arrays))
        return update

    monkeypatch.setattr(client.Client, "run", wrong)
    result = run("run", **_with(rule))
    faults = [record for record in result.records if record.phase == "fault"]
    assert [(f.stage, f.round, f.client, f.name) for f in faults] == [(0, 1, 1, "rejected")]
    assert all(value.isfinite().all() for value in model(result).values())


@pytest.mark.parametrize(
    ("sets", "why"),
    [
        (["federation.compress=topkk"], "did you mean 'topk'?"),
        (["compression.topk.keep=0.1"], "federation.compress is 'none'"),
        (["federation.compress=topk", "compression.topk.keep=2.0"], "must be in (0, 1]"),
        (["federation.compress=topk", "compression.topk.kepe=0.1"], "did you mean 'keep'"),
        (["federation.compress=topk", "compression.topk.keep=much"], "must be a number"),
    ],
)
def test_a_mistake_is_told_before_the_run(sets, why):
    with pytest.raises(ConfigErrors) as caught:
        resolve(sets=sets)
    assert why in str(caught.value)


def test_a_mistake_from_python_is_told_too(small):
    with pytest.raises(FedclError, match=r"compression.topk: options of a rule that federation.compress = 'none'"):
        simulate(small(compression={"topk": {"keep": 0.5}}))


def test_the_forecast_counts_what_is_sent(small):
    """Without a run: no entry is zero, so that nothing is spared by `sparse`."""

    def up(**changes):
        config = small(method="finetune", **changes)
        return forecast(config, federation.build(config)).up[0]

    plain = up()
    assert up(**_with("sparse")) == plain
    assert 0.25 * plain < up(**_with("int8")) < 0.4 * plain  # rows of 8 to 16: their scales weigh
    assert up(**_with("topk")) == pytest.approx((0.2 + 1 / 32) * plain, rel=0.01)
