"""Retraining from scratch, and the compute that everything else saves against it."""

from __future__ import annotations

import torch
from small import model


def test_the_last_stage_is_joint_training_from_the_first_weights(run):
    """With one client: the same as a run that has all tasks in its only stage, but for the order of its batches."""
    short = run("short", method="cumulative", stream={"classes": [[0, 1]], "tasks": 1})
    plain = run("plain", method="finetune", stream={"classes": [[0, 1]], "tasks": 1})
    for name, value in model(plain).items():
        assert torch.equal(value, model(short)[name]), name


def test_each_stage_trains_on_all_tasks_so_far(run):
    result = run("cumulative", method="cumulative")
    counts = result.split[:, :, 0].sum(-1).tolist()
    for stage in range(3):
        seen = {
            r.client: r.value
            for r in result.records
            if (r.phase, r.name, r.stage) == ("train", "samples", stage)
        }  # fmt: skip
        assert seen == {client: sum(row[: stage + 1]) for client, row in enumerate(counts)}
    assert result.metrics["forgetting"] < 0.2


def test_what_it_would_cost_is_a_figure_of_every_run(run):
    """Three equal stages: 1 + 2 + 3 of what the stream itself takes, 3."""
    for method in ("finetune", "cumulative"):
        result = run(method, method=method, federation={"kind": "central"})
        counts = result.split[:, :, 0].sum((0, 2)).tolist()
        whole = 3 * counts[0] + 2 * counts[1] + counts[2]
        epochs = 2 * 2
        own = whole if method == "cumulative" else sum(counts)
        assert result.metrics["training_examples"] == own * epochs
        assert result.metrics["cumulative_compute"] == whole / own
