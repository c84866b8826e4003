"""Modules that stay at their hospital: they differ, nothing of them is sent, and a hospital without a task has none."""

from __future__ import annotations

import math

import torch
from safetensors.torch import load_file
from small import assert_same, model

PERSONAL = {"federation": {"merger": "personal"}}


def _modules(result, task="t0"):
    """Each hospital's own module of a task, from its store on disk."""
    found = {}
    for folder in sorted((result.path / "clients").iterdir()):
        newest = max(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        memory = load_file(newest)
        found[folder.name] = {key: v for key, v in memory.items() if key.startswith(f"own/tasks.{task}.")}
    return found


def test_modules_grow_apart_and_the_trunk_is_shared(run):
    result = run("own", method="ewc", **PERSONAL)
    assert {name for name in model(result) if not name.startswith("infer.")} == {
        name for name in model(result) if name.startswith("trunk.")
    }
    modules = list(_modules(result).values())
    assert len(modules) == 3
    assert all(modules)
    names = list(modules[0])
    assert any(not torch.equal(modules[0][name], modules[1][name]) for name in names)
    assert result.metrics["average_accuracy"] > 0.5


def test_no_value_of_a_module_is_sent(run):
    own = run("own", method="finetune", model={"infer": "entropy"}, **PERSONAL)
    merged = run("merged", method="finetune", model={"infer": "entropy"})
    assert own.bytes_up < merged.bytes_up
    trunk = sum(v.numel() for name, v in model(own).items() if name.startswith("trunk."))
    sent = 3 * 3 * 2 * 4 * trunk  # hospitals × tasks × rounds × bytes
    assert sent < own.bytes_up < sent + 3 * 3 * 2 * 8000 + 3 * 3 * 60000  # and answers' heads, and counts


def test_a_hospital_without_a_task_answers_nothing_for_it(run):
    stream = {"tasks": 2, "classes": [[0, 1, 2], [3, 4, 5]], "schedule": "table", "table": [[0, 0, -1], [-1, -1, 1]]}
    result = run("apart", method="finetune", stream=stream, **PERSONAL)
    scores = result.accuracy[-1]  # [task, hospital]
    assert math.isnan(float(scores[0, 2]))
    assert math.isnan(float(scores[1, 0]))
    assert not math.isnan(float(scores[0, 0]))


def test_where_each_is_alone_it_changes_nothing(run):
    """Averaging over one hospital is keeping one's own."""
    alone = {"kind": "local"}
    scores = [
        run(name, method="ewc", federation=alone | {"merger": name}).metrics["average_accuracy"]
        for name in ("personal", "weighted")
    ]
    assert abs(scores[0] - scores[1]) < 0.02


def test_twice_is_the_same(run):
    assert_same(run("a", **PERSONAL), run("b", **PERSONAL))
