"""What left a hospital in a run, who saw it, and what covered it: found in the messages themselves, not in the config.

Kinds of artefacts: `update` (deltas of training), `upload` (what a method or a merging rule sends beside them),
`statistics` (sums by which a task is inferred), `count` (of samples), `figure` (losses and accuracies), `answers` (on
test samples), `survey` (asked before the run, where hospitals hold their own data), `presence` (which tasks and classes
a hospital has, that it took part, and when).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedcl.contracts import Job, Update, role
from fedcl.infer import PREFIX
from fedcl.mechanism import is_count
from fedcl.merge import MEASURED
from fedcl.models.dynamic_net import SHARED
from fedcl.privacy import Guard

_OF_RECORDS = ("update", "upload", "statistics", "figure")  # those that training or validation records shape
_OF_HOSPITALS = ("count", "answers")  # what tells of a hospital beside them
_OWN = ("memory",)  # bytes that a method keeps: nothing of what is in them


class Audit:
    """Notes every answer of a run.

    Args:
        kept: what was noted before, of a checkpoint.
    """

    def __init__(self, kept: Mapping[str, Any] | None = None) -> None:
        self.notes: dict[str, dict[str, Any]] = {name: dict(facts) for name, facts in (kept or {}).items()}

    def note(self, job: Job, update: Update, guard: Guard, measured: Sequence[str] = ()) -> list[str]:
        """One answer to one Job; the artefacts in it that come from protected units and that no ε speaks of.

        `measured` on training records are statistics by which the samples of others are changed.
        """
        bare = []
        shaping = _OF_RECORDS + (_OF_HOSPITALS if guard.unit == "hospital" else ())
        for artefact, kind, size in (*((one, "statistics", 0) for one in measured), *_artefacts(job, update)):
            facts = self.notes.setdefault(artefact, {"kind": kind, "messages": 0, "bytes": 0, "hospitals": []})
            facts["messages"] += 1
            facts["bytes"] += size
            if update.client not in facts["hospitals"]:
                facts["hospitals"] = sorted([*facts["hospitals"], update.client])
            if kind in shaping and not guard.bounded(kind):
                bare.append(artefact)
        return bare

    def surveyed(self, clients: Sequence[int]) -> None:
        """Hospitals that hold their own data were asked for them before the first Job: no mechanism sees that."""
        facts = {"kind": "survey", "messages": len(clients), "bytes": 0, "hospitals": list(clients)}
        self.notes.setdefault("how many samples it has, by class and split, and which features it misses", facts)

    def table(self, guard: Guard) -> list[dict[str, Any]]:
        """All that left, what nothing covers first: artefact, kind, messages, bytes, hospitals, covered by, seen by."""
        rows = [
            {
                "artefact": artefact,
                "kind": facts["kind"],
                "messages": facts["messages"],
                "bytes": facts["bytes"],
                "hospitals": len(facts["hospitals"]),
                "covered": guard.covering(facts["kind"]),
                "seen": guard.seen(facts["kind"]),
            }
            for artefact, facts in self.notes.items()
        ]
        return sorted(rows, key=lambda row: (bool(row["covered"]), str(row["kind"]), str(row["artefact"])))


def _artefacts(job: Job, update: Update) -> Iterator[tuple[str, str, int]]:
    """(artefact, kind, bytes) of an answer; several arrays may be one artefact."""
    sizes: dict[tuple[str, str], int] = {("which tasks and classes it has, that it took part, and when", "presence"): 0}
    for name, value in update.arrays.items():
        key = ("right and wrong answers on test samples", "answers") if job.phase == "evaluate" else _of_update(name)
        sizes[key] = sizes.get(key, 0) + value.nbytes
    for name, value in update.extras.items():
        key = _of_extras(name)
        sizes[key] = sizes.get(key, 0) + value.nbytes
    for name in update.metrics:
        if name not in _OWN:
            key = _of_metrics(name)
            sizes[key] = sizes.get(key, 0) + 8
    if job.phase == "train" and update.weight not in (0.0, 1.0):  # 1 is everybody's where counts stay at home
        sizes["how many training samples it has", "count"] = 8
    for (artefact, kind), size in sizes.items():
        yield artefact, kind, size


def _of_update(name: str) -> tuple[str, str]:
    part = role(name)
    if not part:
        return "change of the trunk", "update"
    if part == SHARED:
        return "change of the shared head", "update"
    return ("change of a task's gate" if name.startswith("gates.") else "change of a task's module"), "update"


def _of_extras(name: str) -> tuple[str, str]:
    if name.startswith(PREFIX):
        return "sums of samples and features by class, to infer the task by", "statistics"
    if name.startswith(MEASURED):
        return "importance of a module's weights, to merge it by", "upload"
    method, _, rest = name.partition("/")
    return f"{rest.partition('/')[0]} of {method}", "upload"


def _of_metrics(name: str) -> tuple[str, str]:
    phase = name.rpartition("/")[0]
    if is_count(name):
        return "how many training samples it has", "count"
    about = {"": "training", "validate": "validation", "local": "test", "labels": "label"}.get(phase, phase)
    return f"{about} figures", "figure"
