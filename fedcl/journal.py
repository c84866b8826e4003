"""What a run writes down of each phase: one record a figure, all in the same shape; and what alarms make of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedcl import run_dir
from fedcl.alarms import Alarms
from fedcl.collect import Collection
from fedcl.config import Config
from fedcl.contracts import Event, Update
from fedcl.drift import Drift
from fedcl.federation import Federation
from fedcl.plan import Plan
from fedcl.privacy import Guard
from fedcl.run_dir import RunDir

Record = dict[str, Any]
_TRAFFIC = ("bytes_down", "bytes_up")


class Journal:
    """Records of a run, by stage and round. Alarms read those that are there already, and are where they were.

    Args:
        config: for its alarms.
        run: where they go.
        federation: for who is behind a client.
        plan: for its tasks and the counting of rounds.
        notify: told of every alarm.
        guard: says what of a hospital's answer may be looked at by itself.
    """

    def __init__(
        self,
        config: Config,
        run: RunDir,
        federation: Federation,
        plan: Plan,
        notify: Callable[[Event], None],
        guard: Guard,
    ) -> None:
        self._run, self._federation, self._plan, self._notify = run, federation, plan, notify
        self._alarms = Alarms(config, federation)
        self._guard = guard
        self._drift = Drift() if guard.apart and config.alarms.on and len(federation.groups) == 1 else None
        for record in run_dir.read_metrics(run.path):
            self._alarms.take(record)

    def log(self, stage: int, number: int, records: Sequence[Record]) -> None:
        """Write records that may leave out what is the same for all, or does not apply, and the alarms they raise."""
        blank = {
            "stage": stage,
            "round": max(self._plan.overall(stage, number), 0),
            "client": None,
            "task": None,
        }
        drift = self._drift.records() if self._drift else ()
        whole = [blank | record for record in (*drift, *records)]
        alarms = [alarm for record in whole for alarm in self._alarms.take(record)]
        self._run.log([*whole, *alarms])
        for alarm in alarms:
            facts = {name: alarm[name] for name in ("client", "task", "name", "value", "note")}
            self._notify(Event("alarm", stage, number, facts))

    def training(self, stage: int, update: Update) -> list[Record]:
        """An update's metrics: `validate/…`, `local/…` and `labels/…` are about a hospital and its task."""
        if self._drift and update.weight > 0:
            self._drift.add(update)
        tasks, hospitals = self._plan.tasks(stage, [update.client]), self._federation.members[update.client]
        about = {
            "client": hospitals[0] if len(hospitals) == 1 else None,  # pooled data are nobody's in particular
            "task": tasks[0].id if len(tasks) == 1 else None,
        }
        records = []
        for name, value in update.metrics.items():
            if not self._guard.shown(name):
                continue
            phase, _, short = name.rpartition("/")
            whose = about if phase else {"client": update.client}
            records.append({"phase": phase or "train", "name": short, "value": value, **whose})
        return records


def totals(collections: Sequence[Collection]) -> dict[str, float]:
    """Bytes of a phase, each way; where updates are compressed, also what would have come up without that."""
    names = (*_TRAFFIC, "bytes_up_raw") if any(c.compressed for c in collections) else _TRAFFIC
    return {name: sum(getattr(c, name) for c in collections) for name in names}


def named(phase: str, figures: Mapping[str, float]) -> list[Record]:
    """Figures that are about everybody."""
    return [{"phase": phase, "name": name, "value": value} for name, value in figures.items()]


def mean(records: Sequence[Record], phase: str, name: str) -> float:
    """The mean over records of a figure; NaN where there are none."""
    values = [record["value"] for record in records if (record["phase"], record["name"]) == (phase, name)]
    return sum(values) / len(values) if values else math.nan
