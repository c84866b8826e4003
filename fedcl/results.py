"""A run directory, read back: its records as matrices, and the metrics computed from them.

`metrics.jsonl` is the only source of every number, one JSON object a line: {"stage", "round", "phase",
"client", "task", "name", "value", "note"}. `federation.json` says who had what, when.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedcl.metrics import Floats, Ints, Scores, summary


class Record(NamedTuple):
    """One line of metrics.jsonl."""

    stage: int
    round: int  # counted over the whole run
    phase: str  # train, validate, local, end, fault, model, final
    client: int | None  # a client (train, fault) or a hospital (the others); None is all of them
    task: str | None
    name: str
    value: float  # NaN where the file says null
    note: str = ""


class TaskInfo(NamedTuple):
    """A task as federation.json describes it."""

    id: str
    title: str
    classes: tuple[int, ...]  # global class ids


def small(run: Path, name: str) -> dict[str, Any]:
    """A small JSON file of a run directory; empty if it is not there or cut short."""
    try:
        content = json.loads((run / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_records(path: Path) -> Iterator[Record]:
    """The lines of a metrics.jsonl, of which the last may be cut short by an interruption.

    A run that is resumed cuts the file back to its checkpoint, so that no figure is there twice.

    Raises:
        ValueError: a line before the last is no record.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            yield _record(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise ValueError(f"{path}:{number}: not a metrics record ({error}); restore the file") from error


def _record(line: dict[str, Any]) -> Record:
    value = line["value"]
    return Record(
        int(line["stage"]),
        int(line["round"]),
        line["phase"],
        line["client"],
        line["task"],
        line["name"],
        float("nan") if value is None else float(value),
        line.get("note", ""),
    )


PRIVACY = "privacy.json"  # in a run directory: what left the hospitals, what covers it, and what it cost


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """All that a run says: S finished stages, T tasks, C hospitals. Accuracies are fractions or NaN."""

    path: Path
    hospitals: tuple[str, ...]
    tasks: tuple[TaskInfo, ...]
    classes: tuple[str, ...]
    schedule: tuple[tuple[tuple[int, ...], ...], ...]  # [stage][client] → task indices, of the whole plan
    members: tuple[tuple[int, ...], ...]  # [client] → hospitals
    split: Ints  # [C, T, 3, classes] samples in train, validation and test
    records: tuple[Record, ...]  # as they were written
    accuracy: Floats  # [S, T, C] the task known
    inferred: Floats  # [S, T, C] the task inferred
    balanced: Floats  # [S, T, C] mean of the classes' recalls, the task known
    auroc: Floats  # [S, T, C] macro, one versus rest, the task known
    local: Floats  # [S, T, C] the hospital's own model before the merge, the task known
    pooled: Floats  # [S, T] like accuracy, on the test samples of all hospitals together
    pooled_inferred: Floats  # [S, T]
    pooled_balanced: Floats  # [S, T]
    pooled_auroc: Floats  # [S, T]
    counts: Ints  # [T, C] test samples
    first: Ints  # [T, C] stage in which a hospital first trained a task, -1 never (so far)
    last: Ints  # [T, C] stage in which it last did
    learned_at: Ints  # [T] stage in which anyone last did
    baseline: Floats  # [T] an untrained model's accuracy: measured at stage −1, or else 1 / classes
    metrics: dict[str, float]  # metrics.summary, and what the run itself recorded as final
    bytes_down: float  # server to clients, whole run, all kinds of messages
    bytes_up: float
    bytes_up_raw: float  # what bytes_up would be if updates were not compressed

    def __repr__(self) -> str:
        """The figures that matter most; the arrays would fill pages."""
        most = ("average_accuracy", "forgetting", "average_accuracy_inferred", "worst_hospital_accuracy")
        figures = ", ".join(f"{name} {self.metrics[name]:.4f}" for name in most if name in self.metrics)
        return f"Result({str(self.path)!r}: {len(self.hospitals)} hospitals, {len(self.tasks)} tasks; {figures})"

    @property
    def known(self) -> Scores:
        """What the metrics read, the task known."""
        return Scores(self.accuracy, self.pooled, self.counts, self.first, self.last, self.local, self.baseline)

    @property
    def unknown(self) -> Scores:
        """The same, the task inferred."""
        chance = np.full(len(self.tasks), 1 / max(len(self.classes), 1))
        return Scores(self.inferred, self.pooled_inferred, self.counts, self.first, self.last, None, chance)

    def until(self, stage: int) -> Result:
        """The matrices as they were after an earlier stage; metrics, records and bytes stay those of the whole run."""
        end = stage + 1
        first, last = _training_stages(self.schedule[:end], self.members, self.last.shape)
        arrays = ["accuracy", "inferred", "balanced", "auroc", "local"]
        arrays += ["pooled", "pooled_inferred", "pooled_balanced", "pooled_auroc"]
        cut = {name: getattr(self, name)[:end] for name in arrays}
        return replace(self, **cut, first=first, last=last, learned_at=last.max(axis=1, initial=-1))

    @classmethod
    def load(cls, run: Path) -> Result:
        """Read a run directory, finished or not.

        Raises:
            FileNotFoundError: it is not a run directory.
            ValueError: its metrics.jsonl is damaged before the last line.
        """
        for name in ("federation.json", "metrics.jsonl"):
            if not (run / name).is_file():
                raise FileNotFoundError(f"{run} has no {name}: give the directory that `fedcl simulate` wrote")
        plan = json.loads((run / "federation.json").read_text(encoding="utf-8"))
        return cls(**_fields(run, plan, tuple(read_records(run / "metrics.jsonl"))))


def _fields(run: Path, plan: dict[str, Any], records: tuple[Record, ...]) -> dict[str, Any]:
    tasks = tuple(TaskInfo(t["id"], t.get("title") or t["id"], tuple(t["classes"])) for t in plan["tasks"])
    hospitals, classes = tuple(plan["hospitals"]), tuple(plan["classes"])
    split = np.asarray(plan["counts"], dtype=np.int64).reshape(len(hospitals), len(tasks), 3, len(classes))
    stages = 1 + max((r.stage for r in records if r.phase == "end"), default=-1)
    shape = (stages, len(tasks), len(hospitals))
    schedule = tuple(tuple(tuple(client) for client in stage) for stage in plan["schedule"])
    members = tuple(tuple(hospitals) for hospitals in plan["members"])
    first, last = _training_stages(schedule[:stages], members, shape[1:])
    counts = split[:, :, 2].sum(axis=2).T
    order = {task.id: index for index, task in enumerate(tasks)}
    fields: dict[str, Any] = {"path": run, "hospitals": hospitals, "tasks": tasks, "classes": classes}
    fields |= {"schedule": schedule, "members": members, "split": split, "records": records}
    fields |= {"counts": counts, "first": first, "last": last, "learned_at": last.max(axis=1, initial=-1)}
    fields |= _matrices(records, shape, order, counts)
    fields["baseline"] = _baseline(records, tasks, order)
    for name in ("bytes_down", "bytes_up"):
        sums = [r.value for r in records if r.name == name and r.client is None]
        fields[name] = float(np.nansum(sums))
    raw = [r.value for r in records if r.name == "bytes_up_raw"]
    fields["bytes_up_raw"] = float(np.nansum(raw)) if raw else fields["bytes_up"]
    final = {r.name: r.value for r in records if r.phase == "final" and r.client is None and r.task is None}
    draft = Result(**fields, metrics={})
    fields["metrics"] = final | summary(draft.known, draft.unknown)
    return fields


def _select(records: Iterable[Record], phase: str, name: str) -> list[Record]:
    return [r for r in records if r.phase == phase and r.name == name]


def _training_stages(
    schedule: Sequence[Sequence[Sequence[int]]], members: Sequence[Sequence[int]], shape: tuple[int, ...]
) -> tuple[Ints, Ints]:
    """[T, C] first and last stage in which each hospital trained each task, -1 never."""
    trained = np.zeros((len(schedule), *shape), dtype=bool)
    for stage, clients in enumerate(schedule):
        for current, hospitals in zip(clients, members, strict=True):
            for task in current:
                trained[stage, task, list(hospitals)] = True
    ever = trained.any(axis=0)
    first = np.where(ever, trained.argmax(axis=0) if len(trained) else 0, -1)
    last = np.where(ever, len(trained) - 1 - trained[::-1].argmax(axis=0) if len(trained) else 0, -1)
    return first, last


def _matrices(
    records: Sequence[Record], shape: tuple[int, ...], order: dict[str, int], counts: Ints
) -> dict[str, Floats]:
    names = {
        ("end", "accuracy"): "accuracy",
        ("end", "accuracy_inferred"): "inferred",
        ("end", "balanced_accuracy"): "balanced",
        ("end", "auroc"): "auroc",
        ("local", "accuracy"): "local",
    }
    arrays = {name: np.full(shape, np.nan) for name in names.values()}
    pooled = {name: np.full(shape[:2], np.nan) for name in ("accuracy", "inferred", "balanced", "auroc")}
    for r in records:
        name = names.get((r.phase, r.name))
        if name is None or r.task not in order or not 0 <= r.stage < shape[0]:
            continue
        if r.client is not None:
            arrays[name][r.stage, order[r.task], r.client] = r.value
        elif name in pooled:
            pooled[name][r.stage, order[r.task]] = r.value
    for name in ("accuracy", "inferred"):  # a mean of correct answers: the pooled one follows from the parts
        pooled[name] = np.where(np.isnan(pooled[name]), _weighted(arrays[name], counts), pooled[name])
    renamed = {f"pooled_{name}": value for name, value in pooled.items() if name != "accuracy"}
    return {**arrays, "pooled": pooled["accuracy"], **renamed}


def _weighted(values: Floats, counts: Ints) -> Floats:
    """[S, T, C] → [S, T], weighted by samples; NaN where no hospital has any."""
    weights = np.where(np.isnan(values), 0, counts)
    total = weights.sum(axis=2)
    return np.where(total > 0, (np.nan_to_num(values) * weights).sum(axis=2) / np.maximum(total, 1), np.nan)


def _baseline(records: Sequence[Record], tasks: Sequence[TaskInfo], order: dict[str, int]) -> Floats:
    chance = np.array([1 / max(len(task.classes), 1) for task in tasks], dtype=np.float64)
    for r in _select(records, "start", "accuracy"):
        if r.client is None and r.task in order:
            chance[order[r.task]] = r.value
    return chance
