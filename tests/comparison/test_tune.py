"""Choosing settings: on validation data only, the same way again, and better than it began."""

import json
import math

import numpy as np
import pytest
from small import TINY
from typer.testing import CliRunner

from fedcl import Config, federation, simulate
from fedcl.cli import app
from fedcl.contracts import FedclError
from fedcl.tuning import Choice, Range, space, study, tune

SMALL = TINY | {"method": "finetune"}


def test_ranges_and_choices_are_told_apart():
    assert space.parse("train.lr=0.001:0.1:log") == ("train.lr", Range(0.001, 0.1, log=True))
    assert space.parse("train.epochs=1:5") == ("train.epochs", Range(1, 5, whole=True))
    assert space.parse("method=ewc,l2") == ("method", Choice(("ewc", "l2")))
    for text in ("train.lr=1:0.1", "train.lr=0:1:log", "train.lr=a:b", "train.lr=1:2:3", "train.lr"):
        with pytest.raises(ValueError, match="--"):
            space.parse(text)


def test_usual_searches_surround_the_settings():
    found = space.usual(Config(method="ewc"))
    assert set(found) == {"train.lr", "methods.ewc.strength"}
    assert found["train.lr"].low < Config().train.lr < found["train.lr"].high
    assert set(space.usual(Config(method="finetune"))) == {"train.lr"}


def test_a_method_of_ones_own_is_a_key_in_quotes(tmp_path, monkeypatch):
    assert CliRunner().invoke(app, ["new", "method", "mine", "--output", str(tmp_path)]).exit_code == 0
    monkeypatch.syspath_prepend(tmp_path)
    found = space.usual(Config(method="mine:Mine"))
    assert set(found) == {"train.lr", 'methods."mine:Mine".strength'}


def test_a_blind_run_holds_no_test_sample_and_tests_on_the_validation_samples():
    seeing, blind = (federation.build(Config.model_validate({"data": {"blind": b}})) for b in (False, True))
    tests = {sample for sample, _, split, _ in seeing.rows() if split == "test"}
    assert tests
    assert tests.isdisjoint(sample for sample, *_ in blind.rows())
    for hospital in range(len(seeing.names)):
        for task in range(len(seeing.tasks)):
            held, stands_in = seeing.batch(hospital, task, "val"), blind.batch(hospital, task, "test")
            np.testing.assert_array_equal(held.x, stands_in.x)
            np.testing.assert_array_equal(held.y, stands_in.y)
            np.testing.assert_array_equal(
                seeing.batch(hospital, task, "train").x, blind.batch(hospital, task, "train").x
            )


def test_a_blind_run_without_validation_samples_is_refused(tmp_path):
    tree = SMALL | {"data": {"val": 0.0, "blind": True}, "run": {"output": str(tmp_path / "run")}}
    with pytest.raises(FedclError, match=r"data\.val"):
        simulate(Config.model_validate(tree))


def test_a_search_finds_the_learning_rate_that_learns_and_goes_on_where_it_stopped(tmp_path):
    wanted = {"train.lr": Choice(("1e-6", "0.3"))}
    told = []
    few = tune(SMALL, wanted, tmp_path / "s", trials=2, jobs=1, notify=lambda t, total: told.append(t))
    assert len(told) == 2
    found = tune(SMALL, wanted, tmp_path / "s", trials=6, jobs=1, notify=lambda t, total: told.append(t))
    assert len(told) == 6
    assert found.trials[:2] == few.trials
    assert found.best.chosen == {"train.lr": "0.3"}
    assert found.settings["train"]["lr"] == 0.3
    assert "blind" not in found.settings["data"]
    configs = list((tmp_path / "s" / "trials").glob("*/*/config.toml"))
    assert configs
    assert all("blind = true" in path.read_text() for path in configs)
    made = study.final(SMALL, found, (0, 1))
    assert [(c.labels, c.seed, c.config.train.lr, c.config.data.blind) for c in made.cells] == [
        (("as given",), 0, Config().train.lr, False),
        (("as given",), 1, Config().train.lr, False),
        (("tuned",), 0, 0.3, False),
        (("tuned",), 1, 0.3, False),
    ]
    with pytest.raises(FedclError, match="another search"):
        tune(SMALL, wanted, tmp_path / "s", trials=6, metric="forgetting")


def test_failed_trials_are_told_and_do_not_win(tmp_path):
    wanted = {"data.name": Choice(("digits", f"npz:{tmp_path}/none.npz"))}
    found = tune(SMALL, wanted, tmp_path / "s", trials=4, jobs=1)
    errors = [trial for trial in found.trials if math.isnan(trial.value)]
    assert all("none.npz" in trial.error for trial in errors)
    assert found.best.chosen == {"data.name": "digits"}


def test_the_command_tunes_and_then_tests(tmp_path):
    words = "--method finetune --tasks 2 --clients 3 --rounds 1 --epochs 1 --trials 2 --seeds 1 --search lr=0.01,0.1"
    folder = tmp_path / "made"
    done = CliRunner().invoke(app, ["tune", *words.split(), "--jobs", "1", "--output", str(folder)])
    assert done.exit_code == 0, done.output
    assert "first time" in done.stdout
    assert (folder / "best.toml").exists()
    assert (folder / "report.html").exists()
    assert {tuple(run["labels"]) for run in json.loads((folder / "final" / "grid.json").read_text())["runs"]} == {
        ("as given",),
        ("tuned",),
    }
