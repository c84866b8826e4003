"""What a protected run shows beside its updates: nothing that comes from those before the noise, or counts records."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from privacy.test_runs import DP, OWN, SERVER
from small import stop_after

from fedcl import privacy
from fedcl.contracts import FedclError, Samples, Update
from fedcl.privacy.client_dp import ClientDP
from fedcl.server import Interrupted
from fedcl.simulation import simulate

NOTHING = {"privacy": {"mechanism": "none"}}


def _figures(result, phase):
    return [record for record in result.records if record.phase == phase]


@pytest.mark.parametrize(
    ("changes", "shown"),
    [(NOTHING, True), (OWN, True), (SERVER, False), ({"privacy": {"mechanism": "secagg"}}, False)],
)
def test_single_updates_are_looked_at_only_where_they_are_protected_alone(run, changes, shown):
    assert bool(_figures(run(method="finetune", **changes), "drift")) is shown


@pytest.mark.parametrize(("changes", "shown"), [(NOTHING, True), (OWN, False), (DP, False)])
def test_a_hospital_s_own_importances_are_not_in_the_report(run, changes, shown):
    path = run(method="ewc", **changes).path
    stages = json.loads((path / "distributions.json").read_text())
    assert any("importance" in told for told in stages.values()) is shown


def test_how_many_records_a_round_drew_stays_secret(run):
    """Poisson samples of q n on average are told as that: 2 epochs of ⌈n / 16⌉ steps of 16."""
    records = _figures(run(method="finetune", **DP), "train")
    told = {name: {r.client: r.value for r in records if r.name == name} for name in ("samples", "examples")}
    for client, samples in told["samples"].items():
        assert told["examples"][client] == pytest.approx(2 * math.ceil(samples / 16) * min(samples, 16))


@pytest.mark.parametrize("mechanism", ["dp-sgd", "dp-sgd+secagg", "client-dp"])
def test_a_record_s_size_does_not_decide_whether_an_update_is_merged(small, tmp_path, mechanism):
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(300, 5)).astype(np.float32), np.arange(300) % 4
    options = {name: {"noise": 1.0} for name in mechanism.split("+") if name != "secagg"}
    changes = {
        "method": "finetune",
        "privacy": {"mechanism": mechanism},
        "mechanisms": options,
        "data": {"normalize": "none"},
        "stream": {"tasks": 2},
    }

    def go(name):
        config = small(**changes, run={"output": str(tmp_path / name)})
        return simulate(config, Samples(x, y, tuple("abcd")))

    split = csv.DictReader((go("plain").path / "split.csv").read_text().splitlines())
    x[next(int(row["sample"]) for row in split if (row["split"], row["hospital"]) == ("train", "0"))] = 3e38
    assert not _figures(go("huge"), "fault")


def test_an_update_that_is_not_finite_counts_as_zeros():
    broken = Update(0, {"w": torch.tensor([math.inf, 1.0])}, 5.0, {})
    sealed = ClientDP().seal(broken, "train", {"clip": 1.0}, lambda shapes, std: {})
    assert sealed.arrays["w"].tolist() == [0.0, 0.0]
    assert sealed.weight == 1.0


def test_two_experiments_of_a_seed_do_not_share_their_noise(small):
    """The difference of what they release would have none."""

    def drawn(**changes):
        guard = privacy.build(small(method="finetune", **changes))
        return guard.draw("gradients", 1, 2)({"w": (8,)}, 1.0)["w"]

    first = drawn(**DP)
    assert drawn(**DP, run={"runtime": "processes"}).equal(first)
    for other in (DP | {"mechanisms": {"dp-sgd": {"noise": 2.0}}}, DP | {"train": {"lr": 0.3}}):
        assert not drawn(**other).equal(first)


def test_a_round_is_done_again_with_the_same_noise_whatever_waits_longer(small):
    def drawn(**changes):
        return privacy.build(small(method="finetune", **DP, **changes)).draw("gradients", 1, 2)({"w": (8,)}, 1.0)["w"]

    assert drawn(federation={"client_timeout": 7.0}).equal(drawn())
    assert not drawn(run={"precision": "bf16"}).equal(drawn())


def test_a_budget_needs_a_mechanism_that_claims_an_epsilon(run):
    for mechanism in ("none", "secagg"):
        with pytest.raises(FedclError, match="claims no ε"):
            run(method="finetune", privacy={"mechanism": mechanism, "max_epsilon": 3.0})


def test_which_updates_were_short_is_told_of_all_together(run):
    adaptive = {"client-dp": {"noise": 0.01, "adaptive": True}}
    result = run(method="finetune", privacy={"mechanism": "client-dp"}, mechanisms=adaptive)
    assert not [record for record in result.records if record.name == "within"]


def test_a_run_does_not_go_on_with_a_budget_in_other_terms(run, monkeypatch):
    changes = {"method": "finetune", "run": {"checkpoint_every": 1}}
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            run(**changes, **SERVER)
    monkeypatch.setattr(ClientDP, "neighbours", lambda self: "replace_one")
    with pytest.raises(FedclError, match="in other terms"):
        run(**changes, **SERVER)


def test_a_budget_is_about_one_unit(small):
    with pytest.raises(FedclError, match="each record and each hospital"):
        privacy.build(small(method="finetune", privacy={"mechanism": "dp-sgd+client-dp"}))


def test_real_hospitals_noise_is_not_a_seed_s(small):
    own = {"method": "finetune", "data": {"own": True, "normalize": "none"}}
    with pytest.raises(FedclError, match="secure-rng"):
        privacy.build(small(**own, **DP))
    assert privacy.build(small(**own, privacy={"mechanism": "dp-sgd", "secure_rng": True}))
    assert privacy.build(small(**own, privacy={"mechanism": "secagg"}))


@pytest.mark.parametrize("clip", [0.0, -1.0])
def test_a_clip_range_of_sums_is_a_positive_number(small, clip):
    changes = {"privacy": {"mechanism": "secagg"}, "mechanisms": {"secagg": {"clip": clip}}}
    with pytest.raises(FedclError, match=r"secagg.*clip = .* must be > 0"):
        privacy.build(small(method="finetune", **changes))
