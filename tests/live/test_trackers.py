"""Trackers get what metrics.jsonl gets, each figure once, also where a run is stopped and goes on."""

from __future__ import annotations

import json
import math
import re
import socket
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small import stop_after

from fedcl.contracts import FedclError, Tracker
from fedcl.run_dir import read_metrics
from fedcl.simulation import Interrupted
from fedcl.tracking import figure


class Diary(Tracker):
    """A tracker of somebody's own."""

    kept: list[tuple[str, int, float]] = []  # noqa: RUF012
    ends: list[tuple[str, str]] = []  # noqa: RUF012

    def __init__(self, run, breaks_at=-1):
        self.id, self._breaks_at = run.id or "first", breaks_at
        assert run.settings["train.epochs"] == "2"

    def log(self, step, figures):
        if step == self._breaks_at:
            raise ConnectionError("the server is away")
        self.kept += [(name, step, value) for name, value in figures.items()]

    def end(self, state):
        self.ends.append((self.id, state))


ROOT = Path(__file__).parents[2]
NAME = f"{__name__}:Diary"
sys.modules[__name__].Diary = Diary


@pytest.fixture(autouse=True)
def empty():
    Diary.kept.clear()
    Diary.ends.clear()


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Names that were looked up and hosts that were called, but for this machine: none."""
    made, connect, look = [], socket.socket.connect, socket.getaddrinfo

    def here(host):
        return str(host).startswith(("127.", "::1", "localhost", "/")) or not host

    def spy_connect(self, address):
        if self.family != socket.AF_UNIX and not here(address[0]):
            made.append(address)
            raise OSError("no network in the tests")
        return connect(self, address)

    def spy_look(host, *args, **options):
        if not here(host):
            made.append(host)
            raise OSError("no network in the tests")
        return look(host, *args, **options)

    monkeypatch.setattr(socket.socket, "connect", spy_connect)
    monkeypatch.setattr(socket, "getaddrinfo", spy_look)
    yield
    assert made == []


def expected(result):
    """(figure, value) of every finite record, as often as it is there."""
    records = read_metrics(result.path)
    return Counter((figure(r), r["value"]) for r in records if math.isfinite(r["value"]))


def stopped_and_gone_on(go, monkeypatch, **changes):
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Interrupted):
            go("run", **changes)
    return go("run", **changes)


def timeless(figures):
    return Counter({pair: n for pair, n in figures.items() if "seconds" not in pair[0]})


def test_every_figure_comes_once_with_steps_that_do_not_fall(run, monkeypatch):
    result = stopped_and_gone_on(run, monkeypatch, run={"track": [NAME]})
    assert Counter((name, value) for name, _, value in Diary.kept) == expected(result)
    steps = [step for _, step, _ in Diary.kept]
    assert steps == sorted(steps)
    assert [state for _, state in Diary.ends] == ["interrupted", "finished"]


def test_what_is_written_again_after_a_kill_is_not_handed_on_again(run, monkeypatch):
    """A run that is killed between checkpoints does rounds again that the tracker has already."""
    from fedcl.run_dir import RunDir

    monkeypatch.setattr(RunDir, "checkpoint", lambda self, tensors, state: None)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Interrupted):
            run("run", run={"track": [NAME]})
    monkeypatch.undo()
    assert Diary.kept
    result = run("run", run={"track": [NAME]})
    assert timeless(Counter((name, value) for name, _, value in Diary.kept)) == timeless(expected(result))


def test_a_tracker_that_comes_late_gets_the_history(run):
    run("run")
    result = run("run", run={"track": [NAME]})  # finished already
    assert Counter((name, value) for name, _, value in Diary.kept) == expected(result)
    run("run", run={"track": [NAME]})
    assert len(Diary.kept) == sum(expected(result).values())


def test_the_tracker_of_the_documentation_keeps_its_diary(run, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "live.md").read_text(), re.S)
    (tmp_path / "diary_of_the_docs.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "diary_of_the_docs:Diary"
    result = run("run", run={"track": [name]}, trackers={name: {"digits": 2}})
    lines = (result.path / "tracking" / "diary.txt").read_text().splitlines()
    assert len(lines) == sum(expected(result).values())
    assert f"5 final/average_accuracy {round(result.metrics['average_accuracy'], 2)}" in lines


def test_a_tracker_that_fails_does_not_stop_the_run_and_gets_the_rest_later(run):
    broken = run("run", run={"track": [NAME]}, trackers={NAME: {"breaks_at": 3}})
    assert not math.isnan(broken.metrics["average_accuracy"])
    assert {step for _, step, _ in Diary.kept} == {0, 1, 2}
    result = run("run", run={"track": [NAME]})
    assert Counter((name, value) for name, _, value in Diary.kept) == expected(result)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_what_is_not_installed_is_named(run, monkeypatch, name):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n, *a: None if n == name else found(n, *a))
    with pytest.raises(FedclError, match=rf"pip install 'fedcl\[{name}\]'"):
        run("run", run={"track": [name]})


def test_tensorboard_reads_the_figures_back(run, monkeypatch):
    result = stopped_and_gone_on(run, monkeypatch, run={"track": ["tensorboard"]})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(result.path / "tracking" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    kept = Counter((tag, round(e.value, 3)) for tag in events.Tags()["scalars"] for e in events.Scalars(tag))
    wanted = Counter((name, round(float(np.float32(value)), 3)) for name, value in expected(result).elements())
    assert kept == wanted  # in the file's float32
    (last,) = [e.value for e in events.Scalars("final/average_accuracy")]
    assert last == pytest.approx(result.metrics["average_accuracy"])
    assert len(events.Scalars("train/bytes_up")) == 6  # 3 stages of 2 rounds, each once


def test_mlflow_keeps_one_run_in_the_run_directory(run, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    changes = {"run": {"track": ["mlflow"]}, "trackers": {"mlflow": {"experiment": "heart"}}}
    result = stopped_and_gone_on(run, monkeypatch, **changes)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{result.path / 'tracking' / 'mlflow.db'}")
    (one,) = client.search_runs([client.get_experiment_by_name("heart").experiment_id])
    assert one.info.status == "FINISHED"
    assert one.data.params["train.epochs"] == "2"
    kept = [(m.step, m.value) for m in client.get_metric_history(one.info.run_id, "train/bytes_up")]
    wanted = [(r.round, r.value) for r in result.records if (r.phase, r.name) == ("train", "bytes_up")]
    assert kept == wanted
    assert one.data.metrics["final/average_accuracy"] == result.metrics["average_accuracy"]


def test_wandb_stays_offline(run, monkeypatch):
    pytest.importorskip("wandb")  # an extra that the tests do without
    for name in ("WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    result = run("run", run={"track": ["wandb"]}, stream={"tasks": 1, "classes": [[0, 1]]})
    (folder,) = (result.path / "tracking" / "wandb").glob("offline-run-*")
    assert folder.name.endswith((result.path / "identity").read_text())
    assert json.loads((result.path / "tracking" / "wandb.json").read_text())["round"] == 1
    assert list(folder.glob("*.wandb"))
