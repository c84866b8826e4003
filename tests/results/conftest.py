"""A run directory as `fedcl simulate` leaves it: plausible numbers, every awkward case an option."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedcl.anatomy import histograms

CONFIG = 'seed = 0\nmethod = "ewc"\n\n[data]\nname = "digits"\n\n[train]\nrounds = 4\n'


@dataclass
class Fake:
    """Writes a run in which every hospital meets task s in stage s (or later, if staggered)."""

    tasks: int = 5
    hospitals: int = 5
    rounds: int = 4
    finished: int | None = None  # stages; None is all
    staggered: bool = False
    names: list[str] = field(default_factory=list)
    nan: bool = False  # no test accuracy is defined
    brief: bool = False  # only the accuracies that a page of many hospitals grows with
    lines: list[dict[str, Any]] = field(default_factory=list)

    def write(self, run: Path) -> Path:
        (run / "checkpoint").mkdir(parents=True)
        self.rng = np.random.default_rng(7)
        stages = self.tasks + (1 if self.staggered else 0)
        done = stages if self.finished is None else self.finished
        schedule = [[self._current(s, c) for c in range(self.hospitals)] for s in range(stages)]
        for stage in range(done):
            self._stage(stage, schedule[stage])
        self._add(done - 1, "final", "latency_ms", 0.21)
        self._add(done - 1, "final", "parameters_start", 34_100)
        self._add(done - 1, "final", "parameter_growth", (33_000 + min(done, self.tasks) * 1_100) / 34_100)
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        (run / "federation.json").write_text(json.dumps(self._plan(schedule)))
        (run / "config.toml").write_text(CONFIG)
        weights = {str(stage): self._weights(stage) for stage in range(done)}
        (run / "distributions.json").write_text(json.dumps(weights))
        env = {
            "python": "3.12.1",
            "torch": "2.11.0",
            "machine": "x86_64",
            "command": "fedcl simulate -c a.toml",
        }
        (run / "env.json").write_text(json.dumps(env))
        status: dict[str, Any] = {"state": "finished" if done == stages else "interrupted", "stage": done - 1}
        status |= {"round": done * self.rounds - 1, "rounds": stages * self.rounds, "seconds": 83.4}
        (run / "status.json").write_text(json.dumps(status))
        return run

    def _weights(self, stage: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(stage)
        old, move, importance = (torch.randn(500, generator=draw) for _ in range(3))
        return histograms(old, old + 0.1 * move, importance.square() if stage else None)

    def _current(self, stage: int, client: int) -> list[int]:
        task = stage - (client % 2 if self.staggered else 0)
        return [task] if 0 <= task < self.tasks else []

    def _plan(self, schedule: list[list[list[int]]]) -> dict[str, Any]:
        names = self.names or [f"Hospital {c + 1}" for c in range(self.hospitals)]
        classes = [f"digit {k}" for k in range(2 * self.tasks)]
        counts = np.zeros((self.hospitals, self.tasks, 3, len(classes)), dtype=int)
        for t in range(self.tasks):
            draw = self.rng.gamma(0.8, 40, (self.hospitals, 2)).astype(int) + 4
            for split, share in enumerate((0.6, 0.1, 0.3)):
                counts[:, t, split, 2 * t : 2 * t + 2] = np.ceil(draw * share)
        return {
            "hospitals": names,
            "tasks": [
                {"id": f"t{t}", "title": f"{2 * t}, {2 * t + 1}", "classes": [2 * t, 2 * t + 1]}
                for t in range(self.tasks)
            ],
            "classes": classes,
            "schedule": schedule,
            "members": [[c] for c in range(self.hospitals)],
            "groups": [],
            "counts": counts.tolist(),
        }

    def _add(
        self,
        stage: int,
        phase: str,
        name: str,
        value: float,
        client: int | None = None,
        task: int | None = None,
        round_: int | None = None,
        note: str = "",
    ) -> None:
        at = (stage + 1) * self.rounds - 1 if round_ is None else round_
        record = {"stage": stage, "round": at, "phase": phase, "client": client}
        record |= {"task": None if task is None else f"t{task}", "name": name}
        record |= {"value": None if np.isnan(value) else round(float(value), 5)} | ({"note": note} if note else {})
        self.lines.append(record)

    def _accuracy(self, stage: int, task: int, boost: float = 0.0) -> float:
        if self.nan:
            return float("nan")
        age = max(stage - task, 0)
        return float(np.clip(0.97 + boost - 0.055 * age + self.rng.normal(0, 0.02), 0, 1))

    def _stage(self, stage: int, current: list[list[int]]) -> None:
        for step in range(self.rounds):
            self._round(stage, stage * self.rounds + step, step, current)
        seen = min(stage + 1, self.tasks)
        for task in range(seen):
            for client in range(self.hospitals):
                self._test(stage, task, client)
            self._test(stage, task, None)
        for client, tasks in enumerate(current):
            for task in tasks:
                self._add(stage, "local", "accuracy", self._accuracy(stage, task, 0.03), client, task)
        trunk, head = 33_000, 1_100
        self._add(stage, "model", "parameters", trunk + seen * head)
        for task in range(seen):
            self._add(stage, "model", "parameters", head, task=task)
        self.lines.append({**self.lines[-1], "task": "trunk", "value": trunk})
        for name, note, value in (("units", "layers.0", 64.0), ("units", "layers.1", 32.0 + 8 * stage)):
            self.lines.append({**self.lines[-1], "task": "trunk", "name": name, "note": note, "value": value})
        for task in sorted({task for tasks in current for task in tasks}):
            self._add(stage, "model", "use", 0.7, task=task, note="module")
            self._add(stage, "model", "units", 24, task=task, note="module")

    def _round(self, stage: int, at: int, step: int, current: list[list[int]]) -> None:
        for client, tasks in enumerate(current):
            if not tasks:
                continue
            if (at, client) in ((1, 0), (5, 2)):
                name = "missing" if at == 1 else "rejected"
                self._add(stage, "fault", name, 1, client, round_=at, note="3 values are NaN <b>&")
                continue
            self._add(stage, "train", "loss", 0.9 * 0.6**step + self.rng.uniform(0, 0.1), client, round_=at)
            self._add(stage, "train", "samples", 80, client, round_=at)
            self._add(stage, "drift", "cosine", self.rng.uniform(-0.2, 0.9), client, round_=at)
        for name, value in (
            ("seconds", 1.1),
            ("bytes_down", 690_000.0),
            ("bytes_up", 671_000.0),
            ("clients", 5),
        ):
            self._add(stage, "train", name, value, round_=at)
        for task in range(min(stage + 1, self.tasks)):
            for client in range(self.hospitals):
                accuracy = self._accuracy(stage, task, -0.3 * 0.4**step)
                self._add(stage, "validate", "accuracy", accuracy, client, task, round_=at)

    def _test(self, stage: int, task: int, client: int | None) -> None:
        accuracy = self._accuracy(stage, task)
        self._add(stage, "end", "accuracy", accuracy, client, task)
        self._add(stage, "end", "accuracy_inferred", accuracy * 0.7, client, task)
        if self.brief:
            return
        self._add(stage, "end", "n", 40, client, task)
        self._add(stage, "end", "balanced_accuracy", accuracy * 0.98, client, task)
        self._add(stage, "end", "auroc", min(accuracy * 1.02, 1), client, task)


Maker = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> Maker:
    """`make_run(tasks=…, hospitals=…)` → the directory of a fake run."""

    def make(**options: Any) -> Path:
        return Fake(**options).write(tmp_path / "run")

    return make
