"""Runs under privacy mechanisms: what is learned and what is booked, also after a resume, and in other runtimes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from small import assert_same, model, stop_after

from fedcl import private
from fedcl.accounting.accountant import Mechanism, epsilon
from fedcl.accounting.gaussian import gaussian_epsilon
from fedcl.contracts import FedclError, Samples
from fedcl.server import Interrupted
from fedcl.simulation import simulate

DP = {"privacy": {"mechanism": "dp-sgd"}, "mechanisms": {"dp-sgd": {"noise": 1.0}}}
FTRL = {"privacy": {"mechanism": "dp-ftrl"}, "mechanisms": {"dp-ftrl": {"noise": 1.0}}}
SERVER = {"privacy": {"mechanism": "client-dp"}, "mechanisms": {"client-dp": {"noise": 0.01}}}
OWN = {"privacy": {"mechanism": "client-dp"}, "mechanisms": {"client-dp": {"noise": 0.01, "where": "hospital"}}}
ADAPTIVE = {"privacy": {"mechanism": "client-dp"}, "mechanisms": {"client-dp": {"noise": 0.01, "adaptive": True}}}
SUMS = {"privacy": {"mechanism": "secagg"}}
BOTH = {"privacy": {"mechanism": "dp-sgd+secagg+not-sending"}, "mechanisms": {"dp-sgd": {"noise": 1.0}}}
RAW = {"normalize": "none"}
KEPT = {"method": "replay", "methods": {"replay": {"keep": "independent", "share": 0.5}}}
TWO = {"privacy": {"mechanism": "dp-sgd+dp-ftrl"}, "mechanisms": DP["mechanisms"] | FTRL["mechanisms"]}
CASES = {
    "dp-sgd": DP,
    "dp-sgd with EWC": DP | {"method": "ewc"},
    "dp-sgd with replay": DP | KEPT,
    "dp-ftrl": FTRL,
    "noise at the server": SERVER,
    "noise at each hospital": OWN,
    "adaptive clipping": ADAPTIVE,
    "sums": SUMS,
    "records in sums": BOTH,
}


def told(result):
    return json.loads((result.path / "privacy.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_resumed_is_uninterrupted(run, monkeypatch, case):
    """Noise is a function of the seed and the round, so that a round that is done again is the same release."""
    changes = {"method": "finetune"} | CASES[case] | {"run": {"checkpoint_every": 1}}
    whole = run("whole", **changes)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            run("parts", **changes)
    parts = run("parts", **changes)
    assert_same(whole, parts)
    assert told(whole) == told(parts)


@pytest.mark.parametrize("case", ["dp-sgd with EWC", "dp-ftrl", "adaptive clipping", "records in sums"])
def test_processes_do_what_one_process_does(run, case):
    changes = {"method": "finetune", "stream": {"tasks": 2}} | CASES[case]
    assert_same(run("inline", **changes), run("workers", **changes, run={"runtime": "processes", "workers": 2}))


def test_without_noise_and_without_a_bound_it_is_training_on_all_samples(run):
    """q = 1, C = 10⁶, σ → 0: a step is one of plain gradient descent on the whole of a hospital's samples."""
    train = {"batch_size": 1000, "epochs": 2}
    plain = run("plain", method="finetune", train=train)
    options = {"clip": 1e6, "noise": 1e-12}
    private = run("private", method="finetune", train=train, privacy=DP["privacy"], mechanisms={"dp-sgd": options})
    first, second = model(plain), model(private)
    assert all(torch.allclose(first[name], value, atol=1e-5) for name, value in second.items())
    assert told(private)["overall"]["epsilon"] > 1e6


@pytest.mark.parametrize("mechanism", ["secagg", "not-sending"])
def test_what_is_kept_does_not_count_samples_for_the_server(run, mechanism):
    """Bytes of a buffer that keeps every record are a count of them."""
    changes = {"method": "replay", "methods": {"replay": {"keep": "independent", "share": 1.0}}}
    found = run("run", **changes, privacy={"mechanism": mechanism})
    assert not [record for record in found.records if record.name == "memory"]
    assert [record for record in run("open", **changes).records if record.name == "memory"]


def test_statistics_that_change_others_records_are_named(small, tmp_path):
    """A value that is missing becomes the median of the hospital's others, which clipping does not bound."""
    hidden = {"privacy": {"mechanism": "dp-sgd+not-sending"}, "mechanisms": DP["mechanisms"], "method": "finetune"}
    x = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    x[::7, 2] = np.nan
    samples = Samples(x, np.arange(300) % 4, tuple("abcd"), missing=True)
    config = small(**hidden, data=RAW, stream={"tasks": 2}, run={"output": str(tmp_path / "run")})
    text = told(simulate(config, samples))["overall"]["text"]
    assert "medians of features" in text


def test_epsilon_by_hand(run, small):
    """One hospital, one task: T steps at q = B / n."""
    result = run("run", method="finetune", federation={"clients": 1}, stream={"tasks": 1}, **DP)
    samples = int(result.split[0, 0, 0].sum())
    steps = 2 * 2 * math.ceil(samples / 16)
    expected = epsilon([Mechanism(1.0, 16 / samples, steps)], 1e-5).pld
    assert told(result)["overall"]["epsilon"] == pytest.approx(expected, rel=1e-6)
    assert f"{steps} steps" in told(result)["overall"]["text"]


def test_hospitals_and_tasks_of_their_own_do_not_add_up(run):
    facts = told(run("run", method="finetune", **DP))
    tasks, hospitals = facts["tasks"], facts["hospitals"]
    assert facts["overall"]["epsilon"] == max(each["epsilon"] for each in tasks.values())
    assert facts["overall"]["epsilon"] == max(each["epsilon"] for each in hospitals)
    assert len({each["epsilon"] for each in hospitals}) > 1


@pytest.mark.parametrize("classes", [[[0, 1], [2, 3]], [[0, 1], [1, 2]]])
def test_tasks_that_share_records_add_up(run, classes):
    """Class 1 of the second stream is in both tasks: T steps in each. By hand, for the one hospital there is."""
    result = run("run", method="finetune", federation={"clients": 1}, stream={"tasks": 2, "classes": classes}, **DP)
    counts = result.split[0, :, 0].sum(-1)
    once = [Mechanism(1.0, 16 / n, 2 * 2 * math.ceil(n / 16)) for n in counts.tolist()]
    paid = [once] if classes[1][0] == 1 else [[one] for one in once]
    expected = max(epsilon(each, 1e-5).pld for each in paid)
    assert told(result)["overall"]["epsilon"] == pytest.approx(expected, rel=1e-6)


def test_domains_of_the_same_records_add_up(run, tmp_path):
    changes = {"method": "finetune", "federation": {"clients": 1}, "model": {"heads": "domain"}, **DP}
    facts = told(run("run", stream={"kind": "domain", "tasks": 3}, **changes))
    one = told(run("one", stream={"kind": "domain", "tasks": 1}, **changes))["overall"]["epsilon"]
    assert facts["overall"]["epsilon"] > 1.3 * one
    assert len({each["epsilon"] for each in facts["tasks"].values()}) == 1  # the same records, whichever task is asked
    assert facts["stages"][0]["epsilon"] == pytest.approx(one)


def test_a_step_draws_what_is_kept(run, monkeypatch):
    """What pays for its place in a step is in it."""
    drawn = []
    plain = private.clipped_sum

    def clipped_sum(net, names, losses, rows, clip):
        drawn.append(len(set(rows[2].tolist())))
        return plain(net, names, losses, rows, clip)

    monkeypatch.setattr(private, "clipped_sum", clipped_sum)
    run("run", **KEPT, **DP)
    assert max(drawn) > 1


def test_what_is_kept_pays_again_and_a_fisher_costs(run):
    plain = told(run("plain", method="finetune", **DP))["tasks"]
    kept = told(run("kept", **KEPT, **DP))["tasks"]
    held = told(run("held", method="ewc", **DP))["tasks"]
    first, *_, last = plain
    assert kept[first]["epsilon"] > plain[first]["epsilon"] * 1.2
    assert kept[last]["epsilon"] == pytest.approx(plain[last]["epsilon"])
    assert all(held[task]["epsilon"] > plain[task]["epsilon"] for task in plain)


def test_a_hospital_is_in_every_task(run):
    """Client level: T rounds at σ, exact Gaussian."""
    facts = told(run("run", method="finetune", **OWN))
    assert facts["overall"]["epsilon"] == pytest.approx(gaussian_epsilon(math.sqrt(6) / 0.01, 1e-5), rel=1e-6)
    assert "per hospital" in facts["overall"]["text"]


def test_noise_is_chosen_for_a_target(run):
    options = {"dp-sgd": {"epsilon": 4.0}}
    facts = told(run("run", method="ewc", privacy=DP["privacy"], mechanisms=options))
    assert 3.95 < facts["overall"]["epsilon"] <= 4.0


def test_more_than_the_budget_is_refused_before_anything_runs(run, tmp_path):
    limited = {"privacy": DP["privacy"] | {"max_epsilon": 0.5}, "mechanisms": DP["mechanisms"]}
    with pytest.raises(FedclError, match=r"max_epsilon = 0\.5: as planned the run would cost ε"):
        run("run", method="finetune", **limited)
    assert not (tmp_path / "run").exists()


def test_a_round_beyond_the_budget_is_not_sent(run, monkeypatch):
    """The plan is only a plan: what was really spent decides."""
    from fedcl import protect

    monkeypatch.setattr(protect.Protection, "planned", lambda self: None)
    limited = {"privacy": DP["privacy"] | {"max_epsilon": 5.0}, "mechanisms": DP["mechanisms"]}
    with pytest.raises(FedclError, match=r"max_epsilon = 5: stage \d, round \d was not sent"):
        run("run", method="finetune", **limited)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (DP | {"method": "gpm"}, "cannot cover method 'gpm'"),
        (DP | {"method": "replay"}, "cannot cover method 'replay'"),
        (DP | {"method": "lwf"}, "cannot cover method 'lwf'"),
        (DP | {"method": "cumulative"}, "one task at a time|cannot cover"),
        (DP | {"model": {"infer": "prototypes"}}, "take 'entropy' or 'energy'"),
        (FTRL | KEPT, "visits each record once"),
        (DP | KEPT | {"stream": {"kind": "domain"}, "model": {"heads": "domain"}}, "other tasks of the stream have"),
        (SUMS | {"model": {"growth": "threshold"}, "train": {"rounds": 6}}, "growth is decided by the validation loss"),
        (
            {"privacy": {"mechanism": "client-dp+secagg"}, "mechanisms": ADAPTIVE["mechanisms"]},
            "learns its clip norm from a figure that 'secagg' takes away",
        ),
        (SUMS | {"federation": {"clients": 4, "fraction": 0.5}}, "only 2 of them train a task"),
        (SERVER | {"method": "scaffold"}, "reads uploads one by one"),
        (OWN | {"method": "scaffold"}, "breaks what 'scaffold' promises"),
        (SERVER | {"method": "packnet"}, "breaks what 'packnet' promises"),
        (OWN | {"method": "hat"}, "breaks what 'hat' promises"),
        (SERVER | {"federation": {"aggregator": "median"}}, "works on sums"),
        (SUMS | {"federation": {"compress": "int8"}}, "compress = 'none'"),
        (
            {"privacy": {"mechanism": "dp-sgd+dp-ftrl"}, "mechanisms": DP["mechanisms"] | FTRL["mechanisms"]},
            "both make",
        ),
        ({"privacy": {"mechanism": "dp-sgd", "delta": 0.1}, "mechanisms": DP["mechanisms"]}, "privacy.delta"),
        (DP | {"mechanisms": {"dp-sgd": {"epsilon": 0.0}}}, r"mechanisms\.dp-sgd: .*epsilon = 0"),
        (DP | {"mechanisms": {"dp-sgd": {"clip": -1.0}}}, "clip = -1"),
        (DP | {"mechanisms": {"dp-sgd": {"epsilon": 1e-6}}}, "cannot be kept"),
        ({"privacy": {"mechanism": "not-sending"}, "method": "gpm", "methods": {"gpm": {"share": "sum"}}}, "uploads"),
    ],
)
def test_what_would_protect_nothing_is_refused(run, changes, message):
    with pytest.raises(FedclError, match=message):
        run("run", **{"method": "finetune"} | changes)


def test_the_audit_lists_what_nothing_covers(run):
    open_ = {row["artefact"]: row["covered"] for row in told(run("open", method="finetune"))["audit"]}
    assert set(map(tuple, open_.values())) == {()}
    rows = {row["artefact"]: row for row in told(run("both", method="finetune", data=RAW, **BOTH))["audit"]}
    assert rows["change of the trunk"]["covered"] == ["dp-sgd", "secagg"]
    assert "the sum" in rows["change of the trunk"]["seen"]
    answers, presence = "right and wrong answers on test samples", "which tasks and classes it has"
    bare = [name for name, row in rows.items() if not row["covered"]]
    assert [name.startswith(presence) for name in bare] == [True]
    one_by_one = BOTH["mechanisms"] | {"secagg": {"answers": "open"}}
    rows = told(run("one by one", method="finetune", data=RAW, **BOTH | {"mechanisms": one_by_one}))["audit"]
    assert {row["artefact"] for row in rows if not row["covered"]} == {answers, *bare}


def test_a_statement_says_what_it_does_not_speak_of(run):
    text = told(run("run", method="finetune", **DP))["overall"]["text"]
    assert "says nothing about" in text
    assert "training figures" in text
    summed = {"privacy": {"mechanism": "dp-sgd+secagg"}, "mechanisms": DP["mechanisms"]}
    assert "training figures" in told(run("summed", method="finetune", data=RAW, **summed))["overall"]["text"]
    assert "answers on test samples" in told(run("whole", method="finetune", **SERVER))["overall"]["text"]
    hidden = {"privacy": {"mechanism": "dp-sgd+not-sending"}, "mechanisms": DP["mechanisms"]}
    assert "says nothing about" not in told(run("hidden", method="finetune", data=RAW, **hidden))["overall"]["text"]


def test_a_secret_source_is_never_the_same_and_a_round_done_again_pays_again(run, monkeypatch):
    secret = {"privacy": DP["privacy"] | {"secure_rng": True}, "mechanisms": DP["mechanisms"]}
    changes = {"method": "finetune", "stream": {"tasks": 1}} | secret
    first, second = run("first", **changes), run("second", **changes)
    assert any(not torch.equal(value, model(second)[name]) for name, value in model(first).items())
    with monkeypatch.context() as patch:
        patch.setattr("fedcl.run_dir.RunDir.checkpoint", lambda *arguments: None)  # lost, as by a crash
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            run("again", **changes)
    assert told(run("again", **changes))["overall"]["epsilon"] > told(first)["overall"]["epsilon"] * 1.1


def test_scaling_by_what_was_measured_is_not_covered(run):
    scaled = run("scaled", method="finetune", data={"normalize": "train"}, **DP)
    assert "means and deviations" in told(scaled)["overall"]["text"]
