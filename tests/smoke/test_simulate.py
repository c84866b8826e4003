"""`fedcl simulate`, as its user sees it: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from smoke.running import TINY, Fedcl, start

from fedcl import Config, simulate


def state(run: Path) -> str:
    return str(json.loads((run / "status.json").read_text())["state"])


def rounds(run: Path) -> int:
    """How many rounds are recorded; each has one line with its seconds."""
    file = run / "metrics.jsonl"
    return file.read_text().count('"seconds"') if file.exists() else 0


def test_a_run_prints_its_stages_and_a_summary_that_names_the_report(fedcl: Fedcl) -> None:
    result = fedcl("simulate", *TINY, "--output", "here", "--metrics-compat", "fot")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line[:9] for line in lines if line.startswith("stage ")] == ["stage 1/2", "stage 2/2"]
    for words in (
        "after stage",
        "average accuracy",
        "task inferred",
        "forgetting (best before the last stage − last)",
        "backward transfer",
        "forward transfer",
        "worst hospital (hospital ",
        "B down",
        "× those of the first task's net",
        "ms a sample",
        "here/report.html",
        "As fot computes it",
    ):
        assert words in result.stdout
    assert Path("here/report.html").exists()
    assert state(Path("here")) == "finished"


def test_the_summary_shows_the_recorded_accuracies(fedcl: Fedcl, finished: Path) -> None:
    result = fedcl("simulate", "-c", finished / "config.toml")
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    last = {
        row["task"]: row["value"]
        for row in rows
        if (row["phase"], row["name"], row["client"], row["stage"]) == ("end", "accuracy", None, 1)
    }
    line = next(line.split() for line in result.stdout.splitlines() if line.split()[:1] == ["2"])
    assert line == ["2", f"{100 * last['t0']:.1f}", f"{100 * last['t1']:.1f}"]


def test_quiet_prints_the_summary_alone(fedcl: Fedcl) -> None:
    result = fedcl("simulate", *TINY, "--output", "here", "-q")
    assert "stage 1/2" not in result.stdout
    assert "average accuracy" in result.stdout


def test_a_finished_run_says_so_and_runs_nothing(fedcl: Fedcl, finished: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    result = fedcl("simulate", *TINY, "--output", finished)
    assert result.exit_code == 0
    assert f"{finished} is finished already; --fresh runs it anew" in result.stdout
    assert str(finished / "report.html") in result.stdout
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_fresh_moves_the_old_run_aside(fedcl: Fedcl, finished: Path) -> None:
    shutil.copytree(finished, "old")
    result = fedcl("simulate", *TINY, "--output", "old", "--fresh")
    assert result.exit_code == 0, result.output
    assert "finished already" not in result.stdout
    assert state(Path("old~1")) == state(Path("old")) == "finished"


def test_the_config_of_a_run_runs_again_to_the_same_numbers(fedcl: Fedcl, finished: Path) -> None:
    result = fedcl("simulate", "-c", finished / "config.toml", "--output", "again", "-q")
    assert result.exit_code == 0, result.output

    def accuracies(run: Path) -> list[str]:
        return [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"accuracy"' in line]

    assert accuracies(Path("again")) == accuracies(finished)


def test_dry_run_shows_the_plan_and_writes_nothing(fedcl: Fedcl, tmp_path: Path) -> None:
    result = fedcl("simulate", "--clients", "3", "--tasks", "2", "--schedule", "staggered", "--dry-run")
    assert result.exit_code == 0, result.output
    assert [line for line in result.stdout.splitlines() if line.startswith("  stage")] == [
        "  stage 1  t0 (0, 1, 2, 3, 4): hospital 0",
        "  stage 2  t0 (0, 1, 2, 3, 4): hospital 1",
        "  stage 2  t1 (5, 6, 7, 8, 9): hospital 0",
        "  stage 3  t0 (0, 1, 2, 3, 4): hospital 2",
        "  stage 3  t1 (5, 6, 7, 8, 9): hospital 1",
        "  stage 4  t1 (5, 6, 7, 8, 9): hospital 2",
    ]
    assert sum(line.startswith("  hospital ") for line in result.stdout.splitlines()) == 3 * 2
    assert "trunk 16.6 k, t0 2.28 k" in result.stdout  # 64·128 + 128 + 128·64 + 64; 64·32 + 32 + 32·5 + 5 + 32
    assert "an estimate" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_missing_data_exit_1_with_the_remedy(fedcl: Fedcl) -> None:
    result = fedcl("simulate", "--dataset", "mnist")
    assert result.exit_code == 1
    assert "fedcl data fetch mnist" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_that_diverges_exits_1_and_says_how_to_go_on(fedcl: Fedcl) -> None:
    result = fedcl("simulate", *TINY, "--lr", "1e30", "--output", "here")
    assert result.exit_code == 1
    assert "client 0 rejected" in result.stdout
    assert "error: stage" in result.stderr
    assert "go on with: fedcl" in result.stderr
    assert state(Path("here")) == "failed"


def test_what_nobody_expected_is_a_traceback_and_exit_1(fedcl: Fedcl, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("unheard of")

    monkeypatch.setattr("fedcl.federation.build", fail)
    result = fedcl("simulate", *TINY)
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


def test_ctrl_c_saves_and_the_same_command_goes_on(fedcl: Fedcl) -> None:
    words = ("simulate", "--rounds", "40", "--epochs", "1", "--tasks", "2", "--output", "here")
    process = start(*words, "--fresh")
    run, deadline = Path("here"), time.monotonic() + 60
    while rounds(run) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr == f"interrupted; go on with: fedcl {' '.join(words)}\n"
    assert "\x1b" not in stdout
    assert state(run) == "interrupted"
    done = rounds(run)
    assert 2 <= done < 80

    assert fedcl("evaluate", run).exit_code == 0  # the checkpoint
    assert fedcl("report", run).stdout.strip() == "here/report.html"
    again = fedcl(*words)
    assert again.exit_code == 0, again.output
    stage, number = divmod(done, 40)
    assert f"going on from stage {stage + 1}, round {number + 1}\n" in again.stdout
    assert state(run) == "finished"
    assert rounds(run) == 80


def test_two_ctrl_c_also_end_with_130(fedcl: Fedcl, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedcl.simulation.federations.build", stop)
    result = fedcl("simulate", *TINY)
    assert result.exit_code == 130
    assert "go on with" in result.stderr


def test_without_a_terminal_nothing_is_coloured(fedcl: Fedcl, finished: Path) -> None:
    process = start("simulate", "-c", finished / "config.toml")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "average accuracy" in stdout
    assert "\x1b" not in stdout + stderr


def test_tasks_of_one_class_come_with_a_word(tmp_path):
    """Two classes in two tasks: 100 % in every cell of the matrix says nothing."""
    told = []
    config = Config(stream={"classes": [[0], [1, 2]]}, train={"rounds": 1, "epochs": 1}, run={"output": str(tmp_path)})
    simulate(config, notify=told.append)
    assert ["t0 has one class" in event.facts["text"] for event in told if event.kind == "notice"] == [True]
