from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedcl.metrics import DEFINITIONS
from fedcl.results import Result, read_records

Maker = Callable[..., Path]


def append(run: Path, **record: object) -> None:
    base = {
        "stage": 0,
        "round": 3,
        "phase": "end",
        "client": None,
        "task": None,
        "name": "accuracy",
        "value": 0.0,
    }
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**base, **record}) + "\n")


def test_matrices_hold_what_the_lines_say(make_run: Maker) -> None:
    run = make_run(tasks=3, hospitals=4)
    result = Result.load(run)
    assert result.accuracy.shape == result.local.shape == result.inferred.shape == (3, 3, 4)
    assert result.pooled.shape == result.pooled_auroc.shape == (3, 3)
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        if line["phase"] != "end" or line["name"] != "accuracy_inferred":
            continue
        cell = (line["stage"], int(line["task"][1:]))
        array = result.pooled_inferred[cell] if line["client"] is None else result.inferred[(*cell, line["client"])]
        assert array == line["value"]
    assert np.isnan(result.accuracy[0, 2]).all()
    assert result.learned_at.tolist() == [0, 1, 2]
    assert result.counts.shape == (3, 4)
    assert result.counts[1, 2] == sum(json.loads((run / "federation.json").read_text())["counts"][2][1][2])


def test_metrics_are_the_summary_and_what_the_run_recorded(make_run: Maker) -> None:
    result = Result.load(make_run())
    assert set(DEFINITIONS) <= set(result.metrics)
    assert result.metrics["latency_ms"] == 0.21
    assert result.metrics["average_accuracy"] == pytest.approx(result.pooled[-1].mean())
    assert 0 < result.metrics["forgetting_just_learned"] <= result.metrics["forgetting"]
    assert result.bytes_down == 20 * 690_000
    assert result.bytes_up == 20 * 671_000


def test_staggered_schedules_and_groups(make_run: Maker) -> None:
    result = Result.load(make_run(tasks=2, hospitals=3, staggered=True))
    assert result.last.T.tolist() == [[0, 1], [1, 2], [0, 1]]
    assert result.learned_at.tolist() == [1, 2]
    run = result.path
    plan = json.loads((run / "federation.json").read_text())
    plan |= {"members": [[0, 1, 2]], "schedule": [[[0, 1]], [[]], [[1]]]}
    (run / "federation.json").write_text(json.dumps(plan))
    pooled = Result.load(run)
    assert pooled.first.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert pooled.last.tolist() == [[0, 0, 0], [2, 2, 2]]


def test_interrupted_run_counts_finished_stages_only(make_run: Maker) -> None:
    run = make_run(tasks=5, finished=2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": 2, "round": 9, "phase": "train", "cli')
    result = Result.load(run)
    assert result.accuracy.shape == (2, 5, 5)
    assert result.learned_at.tolist() == [0, 1, -1, -1, -1]
    assert result.metrics["average_accuracy"] == pytest.approx(result.pooled[-1, :2].mean())


def test_nothing_finished_yet(make_run: Maker) -> None:
    result = Result.load(make_run(finished=0))
    assert result.accuracy.shape == (0, 5, 5)
    assert np.isnan(result.metrics["average_accuracy"])


def test_null_is_nan_and_the_later_of_two_lines_wins(make_run: Maker) -> None:
    run = make_run(tasks=1, hospitals=1)
    append(run, client=0, task="t0", value=0.25)
    append(run, client=0, task="t0", name="auroc", value=None)
    result = Result.load(run)
    assert result.accuracy[0, 0, 0] == 0.25
    assert np.isnan(result.auroc[0, 0, 0])


def test_bytes_of_all_kinds_of_messages_count(make_run: Maker) -> None:
    run = make_run(tasks=1)
    before = Result.load(run).bytes_up
    append(run, phase="consolidate", name="bytes_up", value=1000)
    append(run, phase="evaluate", name="bytes_up", value=10)
    assert Result.load(run).bytes_up == before + 1010


def test_pooled_falls_back_on_the_weighted_parts(make_run: Maker) -> None:
    run = make_run(tasks=1, hospitals=2)
    path = run / "metrics.jsonl"
    kept = [line for line in path.read_text().splitlines() if '"end"' not in line or '"client": null' not in line]
    path.write_text("\n".join(kept) + "\n")
    result = Result.load(run)
    assert result.pooled[0, 0] == pytest.approx(np.average(result.accuracy[0, 0], weights=result.counts[0]))


def test_baseline_is_chance_unless_measured(make_run: Maker) -> None:
    run = make_run(tasks=3)
    assert Result.load(run).baseline.tolist() == [0.5, 0.5, 0.5]
    append(run, stage=-1, phase="start", task="t1", value=0.125)
    assert Result.load(run).baseline.tolist() == [0.5, 0.125, 0.5]


def test_damage_before_the_last_line_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = '{"stage":0,"round":0,"phase":"end","client":null,"task":null,"name":"n","value":1}'
    path.write_text(f"{good}\n{good[:20]}")
    assert len(list(read_records(path))) == 1
    path.write_text(f"{good}\n{good[:20]}\n{good}\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: not a metrics record"):
        list(read_records(path))


def test_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"federation\.json"):
        Result.load(tmp_path)
