"""What is shown while a run goes on, and its summary, from events and records made by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fedcl import units
from fedcl.contracts import Event
from fedcl.view import View


def events(rounds: int) -> list[Event]:
    facts = {"clients": 3, "bytes_down": 1000, "bytes_up": 500, "seconds": 0.1}
    pooled = {("t1", "accuracy"): 0.8, ("t0", "accuracy"): 0.6, ("t2", "accuracy"): 0.0}
    pooled |= {("t1", "accuracy_inferred"): 0.5, ("t0", "accuracy_inferred"): 0.3, ("t1", "n"): 9}
    made = [Event("stage", -1, rounds, {"pooled": {}}), Event("start", 1, 0, {"stages": 2, "rounds": rounds})]
    made += [Event("round", 1, n, {**facts, "loss": 0.25, "accuracy": float("nan")}) for n in range(rounds)]
    fault = Event("fault", 1, 0, {"client": 2, "what": "rejected", "why": "NaN"})
    return [*made, fault, fault, Event("stage", 1, rounds, {"pooled": pooled}), Event("novelty", 1, 0, {})]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    tasks = [{"id": f"t{t}", "title": f"digit {t}"} for t in range(3)]
    plan = {"tasks": tasks, "schedule": [[[0]], [[1]], [[2]]]}
    (tmp_path / "federation.json").write_text(json.dumps(plan))
    return tmp_path


def shown(run: Path, rounds: int, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    with View(run, console) as view:
        for event in events(rounds):
            view(event)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_one_for_each_stage_and_fault(run: Path) -> None:
    text = shown(run, 1000, terminal=False)
    assert text.splitlines() == [
        "going on from stage 2, round 1",
        "stage 2, round 1: client 2 rejected: NaN",
        "stage 2/2 (digit 1): accuracy 70.0 % known, 40.0 % inferred (by task 60.0, 80.0); loss 0.25; "
        "1 MB down, 500 kB up in this stage's training; 2 faults",
    ]


def test_a_heartbeat_where_a_stage_is_long(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcl.view._HEARTBEAT", -1.0)
    lines = shown(run, 3, terminal=False).splitlines()
    assert lines[1].startswith("stage 2/2 (digit 1), round 1/3: 3 answered, loss 0.25")
    assert lines[2].endswith(" left")


def test_live_in_a_terminal(run: Path) -> None:
    text = shown(run, 3, terminal=True)
    assert "round 3/3" in text
    assert "\x1b[2K" in text  # the live line is wiped
    assert text.count("client 2 rejected") == 1


def test_without_a_plan_it_still_shows(tmp_path: Path) -> None:
    assert "stage 2/2: accuracy" in shown(tmp_path, 1, terminal=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.percent(0.97312), "97.3"),
        (units.percent(-0.0001), "0.0"),
        (units.percent(-0.5), "-50.0"),
        (units.percent(float("nan")), "–"),
        (units.size(0), "0 B"),
        (units.size(999), "999 B"),
        (units.size(219_489), "219 kB"),
        (units.size(999_600), "1 MB"),
        (units.size(4.4e9), "4.4 GB"),
        (units.count(33_162), "33.2 k"),
        (units.count(12), "12"),
        (units.duration(12.34), "12.3 s"),
        (units.duration(192), "3:12 min"),
        (units.duration(7300), "2:01 h"),
        (units.duration(float("nan")), "–"),
    ],
)
def test_units(text: str, expected: str) -> None:
    assert text == expected
