"""`fedcl attack` end to end on digits: its files, its resumption, and that it finds what is there and no more."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import merged
from smoke.running import run_here

from fedcl import leaks
from fedcl.anatomy import seen_file, stage_file
from fedcl.comparison import leakage
from fedcl.config import Config
from fedcl.contracts import FedclError
from fedcl.leaks import buffers, membership, plan, records, shadows
from fedcl.leaks.plan import Asked, Models
from fedcl.leaks.reconstruction import Budget
from fedcl.privacy.dp_sgd import DPSGD
from fedcl.simulation import simulate

SMALL: dict[str, Any] = {
    "method": "finetune",
    "data": {"name": "digits"},
    "partition": {"name": "iid"},
    "stream": {"tasks": 2},
    "federation": {"clients": 2},
    "train": {"rounds": 1, "epochs": 1, "lr_schedule": "constant", "momentum": 0.0},
    "model": {"options": {"hidden": [32]}, "expansion_units": 16},
}
EFFORT = leaks.Effort(Asked(models=4, candidates=60), Budget(steps=150, single=2, eight=1))


def run(path: Path, **changes: Any) -> Path:
    simulate(Config.model_validate(merged(SMALL, **merged(changes, run={"output": str(path), "keep_stages": True}))))
    return path


def row(found: leaks.Found, **wanted: Any) -> dict[str, Any]:
    wanted = {"observer": membership.MODEL} | wanted
    rows = [one for one in found["membership"]["rows"] if all(one[key] == value for key, value in wanted.items())]
    return dict(rows[0])


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("attacked") / "run"
    return run(path, method="replay", methods={"replay": {"size": 40}})


@pytest.fixture(scope="module")
def attacked(replayed: Path) -> leaks.Found:
    return leaks.attack(replayed, effort=EFFORT, jobs=1)


def test_the_results_have_every_stage_and_past_task(attacked: leaks.Found, replayed: Path) -> None:
    told = attacked["membership"]
    seen = {(one["stage"], one["task"]) for one in told["rows"]}
    assert seen == {(0, "t0"), (1, "t0"), (1, "t1")}
    for one in told["rows"]:
        assert one["members"] + one["others"] == 4 * 60
        for figure in (one["auc"], one["tpr@0.01"], one["tpr@0.001"]):
            assert figure[1] <= figure[0] <= figure[2]
    assert {one["observer"] for one in told["rows"]} == {membership.MODEL, membership.SERVER, "all stage models"}
    assert {one["members_are"] for one in told["buffers"] if one["task"] == "t0"} == {"buffered", "not buffered"}
    assert attacked == json.loads((replayed / "attacks" / "results.json").read_text())
    final = sum(row(attacked, stage=1, score="LiRA", task=task)["auc"][0] for task in ("t0", "t1"))
    assert leakage.read(replayed)[leakage.FIGURE] == pytest.approx(final / 2)  # what a comparison shows of it
    page = (replayed / "attacks" / "report.html").read_text()
    assert page.count("<svg") >= 5
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_same_command_trains_nothing_again(
    attacked: leaks.Found, replayed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadows, "_train", lambda *given: pytest.fail("a finished model was trained again"))
    again = leaks.attack(replayed, ("membership",), EFFORT, jobs=1)
    assert again == attacked


def test_more_models_keep_those_that_are_there(attacked: leaks.Found, replayed: Path) -> None:
    target, told = plan.target(replayed), list[shadows.Progress]()
    few, more = (Models(target, Asked(models=n, candidates=60)) for n in (4, 5))
    assert [few.config(k).digest() for k in range(4)] == [more.config(k).digest() for k in range(4)]
    assert shadows.train(more, 1, told.append)
    assert [(one.done, one.total) for one in told] == [(5, 5)]


def test_models_beside_each_other_are_the_same(replayed: Path, tmp_path: Path) -> None:
    """A process trains the model that this one would."""
    models = Models(plan.target(run(tmp_path / "beside")), Asked(models=3, candidates=60))
    assert shadows.train(models, 2)
    for number in range(3):
        config = models.config(number)
        kept = json.loads((config.directory() / "federation.json").read_text())["counts"]
        whole = records.without(models.target.federation, models.out(number))
        assert kept == whole.counts().tolist()


def test_a_federation_without_records_is_otherwise_the_same(replayed: Path) -> None:
    federation = plan.target(replayed).federation
    rows = records.held(federation, 1, 0)
    assert len(rows) == federation.count(1, 0, "train")
    less = records.without(federation, rows[::2])
    assert less.batch(1, 0, "train").x.equal(federation.batch(1, 0, "train").x[1::2])
    for hospital, task, split in ((0, 0, "train"), (1, 1, "train"), (1, 0, "test"), (1, 0, "val")):
        assert less.batch(hospital, task, split).x.equal(federation.batch(hospital, task, split).x)
        assert less.count(hospital, task, split) == federation.count(hospital, task, split)
    assert less.count(1, 0, "train") == len(less.batch(1, 0, "train").y)
    other = records.replaced(federation, rows[:2], torch.zeros(2, *federation.shape), torch.tensor([1, 2]))
    assert other.batch(1, 0, "train").y[:2].tolist() == [1, 2]
    assert other.count(1, 0, "train") == len(rows)


def test_the_server_sees_each_clients_own_model(tmp_path: Path) -> None:
    """Of one client that is the merged one; of two, of as many records each, the merged one is their mean."""
    for clients in (1, 2):
        path = run(tmp_path / str(clients), federation={"clients": clients}, run={"keep_updates": True})
        federation = plan.target(path).federation
        shares = [federation.count(client, 0, "train") for client in range(clients)]
        merged_one = load_file(path / stage_file(0))
        seen = [load_file(path / seen_file(0, client)) for client in range(clients)]
        for name, value in merged_one.items():
            mean = sum(share * own[name] for share, own in zip(shares, seen, strict=True)) / sum(shares)
            torch.testing.assert_close(mean, value, atol=1e-5, rtol=0)
        for client in range(clients):
            assert set(records.holders(federation, records.held(federation, client, 1))) == {client}
        moved = max(float((value - seen[0][name]).abs().max()) for name, value in merged_one.items())
        assert (moved > 1e-3) is (clients == 2)


def test_coins_are_fair_and_each_models_own(replayed: Path) -> None:
    models = Models(plan.target(replayed), Asked(models=8, candidates=200))
    member = models.member(0)
    assert abs(member.mean() - 0.5) < 0.05
    assert len({coins.tobytes() for coins in member}) == 8
    assert not np.isin(models.out(0), models.rows(0)[member[0]]).any()


def test_what_a_buffer_keeps_is_found(attacked: leaks.Found, replayed: Path) -> None:
    federation = plan.target(replayed).federation
    kept = buffers.read(replayed)
    x = torch.cat([federation.batch(hospital, 0, "train").x for hospital in range(2)])
    held = [sum(task == index for task, _ in kept) for index in range(2)]
    assert sum(held) == 80
    assert int(buffers.has(kept, 0, x).sum()) == held[0] > 0
    assert not bool(buffers.has(kept, 1, x).any())


@pytest.fixture(scope="module")
def overfit(tmp_path_factory: pytest.TempPathFactory) -> leaks.Found:
    path = tmp_path_factory.mktemp("overfit") / "run"
    train = {"epochs": 40, "optimizer": "adam", "lr": 3e-3}
    wrong = {"noisy": 1, "noise": 0.4}  # labels that can only be learned by heart
    run(path, train=train, partition=wrong, federation={"clients": 1}, model={"options": {"hidden": [128]}})
    return leaks.attack(path, ("membership",), leaks.Effort(Asked(models=6, candidates=600)), jobs=1)


def test_an_overfit_run_tells_who_was_in(overfit: leaks.Found) -> None:
    for task in ("t0", "t1"):
        assert row(overfit, task=task, score="LiRA", stage=1)["auc"][1] > 0.5
        assert row(overfit, task=task, score="LiRA", stage=1, observer=membership.SERVER)["auc"][1] > 0.5


def test_with_much_noise_nobody_is_told(tmp_path: Path) -> None:
    path = run(tmp_path / "noisy", privacy={"mechanism": "dp-sgd"}, mechanisms={"dp-sgd": {"noise": 20.0}})
    found = leaks.attack(path, effort=EFFORT, jobs=1)
    for score in ("threshold", "LiRA", "calibrated"):
        low, high = row(found, task="t0", stage=0, score=score)["auc"][1:]
        assert low <= 0.5 <= high
    for told in found["reconstruction"]["rows"]:
        if "psnr" in told:
            assert told["psnr"][0] < told["baseline"] + 3


def test_without_protection_a_record_is_read_off(attacked: leaks.Found) -> None:
    rows = {(told["attack"], told["batch"]): told for told in attacked["reconstruction"]["rows"]}
    assert rows["first layer", 1]["psnr"][1] > 80
    assert rows["Fisher diagonal", 1]["psnr"][1] > 80
    assert rows["label", 1]["right"] == 2
    assert rows["label counts", 8]["right"] >= 6
    assert rows["iDLG", 1]["psnr"][1] > rows["iDLG", 1]["baseline"]
    assert rows["DLG", 8]["knows"] == "nothing"


def test_secure_aggregation_shows_a_sum(tmp_path: Path) -> None:
    path = run(tmp_path / "summed", federation={"clients": 3}, privacy={"mechanism": "secagg"})
    told = leaks.attack(path, ("reconstruction",), EFFORT)["reconstruction"]
    rows = {(one["attack"], one["batch"]): one for one in told["rows"]}
    assert told["sees"] == "the sum of 3 hospitals"
    assert rows["inverting gradients", 1]["records"] == 3 * 2


def test_an_unfinished_run_says_what_to_do(tmp_path: Path) -> None:
    path = run(tmp_path / "run")
    (path / "status.json").write_text('{"state": "interrupted"}')
    done = run_here("attack", str(path))
    assert done.exit_code == 1
    assert "needs a finished run" in done.output + done.stderr


def test_a_run_without_epsilon_has_nothing_to_audit(replayed: Path) -> None:
    with pytest.raises(FedclError, match="claims no ε"):
        leaks.attack(replayed, ("audit",))


def test_the_command_prints_tables(attacked: leaks.Found, replayed: Path) -> None:
    done = run_here("attack", str(replayed), "--models", "4", "--candidates", "60", "--jobs", "1", "--quiet")
    assert done.exit_code == 0, done.output
    assert "PSNR" in done.output
    assert "LiRA" in done.output


@pytest.mark.parametrize(("factor", "caught"), [(1.0, False), (0.1, True)])
def test_noise_that_is_less_than_the_ledger_was_told_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, caught: bool
) -> None:
    path = run(tmp_path / "claimed", privacy={"mechanism": "dp-sgd"}, mechanisms={"dp-sgd": {"noise": 5.0}})
    honest = DPSGD.noised
    monkeypatch.setattr(
        DPSGD, "noised", lambda self, *given: honest(dataclasses.replace(self, noise=factor * self.noise), *given)
    )
    told = leaks.attack(path, ("audit",), leaks.Effort(trials=300))["audit"]
    assert told["claimed"] == pytest.approx(0.77, abs=0.3)  # μ = 1 / 5 at δ = 1e-5
    assert told["caught"] is caught
    assert (told["found"] > told["claimed"]) is caught
