"""`fedcl watch` and `--log`: a run seen from its directory tells what the run itself tells."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from small import stop_after
from smoke.running import TINY, run_here, start

from fedcl.contracts import Event
from fedcl.run_dir import RunDir
from fedcl.simulation import Interrupted, simulate
from fedcl.view import Lines
from fedcl.watch import Tail, Watcher, runs


def told(events):
    """Events as JSON lines, without when they were told."""
    out = io.StringIO()
    for event in events:
        Lines(out)(event)
    return [json.loads(line) | {"time": 0} for line in out.getvalue().splitlines()]


def test_a_tail_sees_lines_as_they_come_and_files_that_are_cut_or_replaced(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == ("", [])
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert tail.read() == ("", [{"a": 1}, {"a": 2}])
    with path.open("a") as file:
        file.write(": 3}\n")
    assert tail.read() == ("", [{"a": 3}])
    assert tail.read() == ("", [])
    with path.open("r+") as file:  # cut back, and grown again beyond where it was
        file.truncate(9)
        file.seek(9)
        file.write('{"a": 7}\n{"a": 8}\n{"a": 9}\n')
    assert tail.read() == ("cut", [{"a": 1}, {"a": 7}, {"a": 8}, {"a": 9}])
    path.rename(tmp_path / "old")
    assert tail.read() == ("new", [])
    path.write_text('{"a": 5}\n')
    assert tail.read() == ("", [{"a": 5}])


def test_the_directory_tells_what_the_run_tells_also_where_it_is_stopped_and_goes_on(small, tmp_path, monkeypatch):
    """The watcher looks after every record, is there before the run is, and sees it interrupted and resumed."""
    path, own, seen = tmp_path / "run", [], []
    config = small(train={"rounds": 3}, alarms={"labels": 0.001}, run={"output": str(path)})
    watcher, log = Watcher(path), RunDir.log
    assert list(watcher.poll()) == []

    def look(self, records):
        log(self, records)
        seen.extend(watcher.poll())

    monkeypatch.setattr(RunDir, "log", look)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            simulate(config, notify=own.append)
    seen.extend(watcher.poll())
    assert seen[-1].facts["state"] == "interrupted"
    assert not watcher.over
    simulate(config, notify=own.append)
    seen.extend(watcher.poll())
    assert watcher.over
    ends = [event.facts["state"] for event in seen if event.kind == "end"]
    assert ends == ["interrupted", "finished"]
    assert [e for e in told(seen) if e["event"] != "end"] == told(own)
    assert {event.kind for event in own} >= {"start", "round", "stage"}


def test_rounds_that_are_done_again_after_a_kill_are_told_from_where_it_goes_on(small, tmp_path, monkeypatch):
    path, seen = tmp_path / "run", []
    config = small(run={"output": str(path)})
    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "checkpoint", lambda self, tensors, state: None)
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            simulate(config)
    watcher = Watcher(path)
    list(watcher.poll())
    assert (watcher.story.stage, watcher.story.round) == (1, 0)
    log = RunDir.log

    def look(self, records):
        log(self, records)
        seen.extend(watcher.poll())

    monkeypatch.setattr(RunDir, "log", look)
    simulate(config)
    assert [(e.stage, e.round) for e in seen if e.kind == "start"] == [(0, 1)]
    assert [(e.stage, e.round) for e in seen if e.kind == "round"] == [(s, r) for s in range(3) for r in range(2)][1:]


def test_watch_once_says_where_a_run_stands(tmp_path, small, monkeypatch):
    assert "has not begun" in run_here("watch", tmp_path / "run", "--once").stdout
    config = small(run={"output": str(tmp_path / "run")})
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            simulate(config)
    shown = run_here("watch", tmp_path / "run", "--once")
    assert shown.exit_code == 0
    assert "is interrupted" in shown.stdout
    assert "stage 1/3" in shown.stdout
    assert "round 2/2" in shown.stdout
    simulate(config)
    shown = run_here("watch", tmp_path / "run")  # ends by itself
    assert shown.exit_code == 0
    assert [line[:9] for line in shown.stdout.splitlines() if line.startswith("stage ")] == [
        "stage 1/3",
        "stage 2/3",
        "stage 3/3",
    ]
    assert "is finished" in shown.stdout
    assert "average accuracy" in shown.stdout
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    (tmp_path / "run" / "status.json").write_text(json.dumps(status | {"state": "failed", "error": "no power"}))
    failed = run_here("watch", tmp_path / "run")
    assert failed.exit_code == 1
    assert "is failed: no power" in failed.stdout


def test_watch_shows_the_runs_of_a_comparison_also_those_to_come(tmp_path, small):
    done = tmp_path / "all" / "method=ewc" / "seed-0"
    simulate(small(run={"output": str(done)}))
    shutil.copytree(done, tmp_path / "all" / "method=ewc" / "seed-1")
    assert runs(tmp_path / "all") == [done, done.with_name("seed-1")]
    grid = [{"path": f"method=ewc/seed-{seed}", "error": ""} for seed in (0, 1, 2)]
    (tmp_path / "all" / "grid.json").write_text(json.dumps({"runs": grid}))
    rows = [line.split() for line in run_here("watch", tmp_path / "all", "--once").stdout.splitlines()]
    states = {row[0]: row[1:3] for row in rows if row and row[0].startswith("method")}
    assert states["method=ewc/seed-0"] == states["method=ewc/seed-1"] == ["finished", "3/3"]
    assert states["method=ewc/seed-2"] == ["to", "come"]
    lines = run_here("watch", tmp_path / "all", "--once", "--log", "json").stdout.splitlines()
    assert {json.loads(line)["run"] for line in lines} == {"method=ewc/seed-0", "method=ewc/seed-1"}


def test_a_watch_from_another_terminal_ends_with_the_run(tmp_path):
    watching = start("watch", tmp_path / "run", "--log", "json")
    run = start("simulate", *TINY, "--output", tmp_path / "run", "--log", "json")
    lines, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    seen, errors = watching.communicate(timeout=60)
    assert watching.returncode == 0, errors
    one, other = ([json.loads(line) for line in text.splitlines()] for text in (lines, seen))
    assert [line["event"] for line in one] == ["start", "round", "stage", "round", "stage", "end"]
    assert [line["facts"] for line in one[:-1]] == [line["facts"] for line in other[:-1]]
    assert one[-1]["facts"]["metrics"]["average_accuracy"] > 0.2
    assert other[-1]["facts"]["state"] == "finished"


def test_json_lines_end_with_what_went_wrong(tmp_path):
    done = run_here("simulate", *TINY, "--lr", "1e30", "--output", tmp_path / "run", "--log", "json")
    assert done.exit_code == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["event"] for line in lines} == {"start", "fault", "end"}
    assert lines[-1]["facts"]["state"] == "failed"
    assert "client 0" in lines[-1]["facts"]["error"]
    assert "error:" in done.stderr


def test_plain_lines_in_a_terminal(monkeypatch, tmp_path):
    from rich.console import Console

    from fedcl.view import View

    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=100)
    with View(Path(tmp_path), console, live=False) as view:
        view(Event("start", 0, 0, {"stages": 1, "rounds": 1}))
        alarm = {"client": 3, "task": "t0", "name": "labels", "value": 0.4, "note": "look at it"}
        view(Event("alarm", 0, 0, alarm))
    assert console.file.getvalue() == "stage 1, round 1: ALARM labels, client 3, task t0: look at it\n"
