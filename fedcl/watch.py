"""A run seen from outside: its directory's files, read as they grow, become the events that the run itself tells.

Only metrics.jsonl, status.json and federation.json are read (of a comparison, grid.json too); nothing is written, and
no lock is taken.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

from fedcl.contracts import Event
from fedcl.run_dir import read_status

_PROOF = 512  # bytes before a position: others there mean that the file was cut back and has grown again
_DEPTH = 3  # folders from a folder of runs down to them

Lines = list[dict[str, Any]]
Change = Literal["", "cut", "new"]


def runs(folder: Path) -> list[Path]:
    """The run directories of a comparison, also those to come, or of any folder; the folder itself where it is one."""
    if any((folder / name).exists() for name in ("metrics.jsonl", "status.json", "federation.json")):
        return [folder]
    try:
        grid = json.loads((folder / "grid.json").read_text(encoding="utf-8"))
        return [folder / run["path"] for run in grid["runs"] if not run["error"] or (folder / run["path"]).exists()]
    except (OSError, ValueError, KeyError, TypeError):
        found = [path.parent for depth in range(1, _DEPTH + 1) for path in folder.glob("*/" * depth + "status.json")]
        return sorted(found)


class Tail:
    """The lines of a file that another process writes, as they come. It may not be there yet, be cut back, or replaced.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place: tuple[int, int] | None = None  # device and inode
        self._end, self._proof = 0, b""

    def read(self) -> tuple[Change, Lines]:
        """(what happened to the file, new whole lines: all there are, where it was cut back or is a new one)."""
        try:
            with self._path.open("rb") as file:
                return self._read(file)
        except FileNotFoundError:
            begun = self._end > 0
            self.rewind()
            return "new" if begun else "", []

    def rewind(self) -> None:
        """Read all of it again."""
        self._end, self._proof = 0, b""

    def _read(self, file: IO[bytes]) -> tuple[Change, Lines]:
        stat = os.fstat(file.fileno())
        place = stat.st_dev, stat.st_ino
        file.seek(self._end - len(self._proof))
        change: Change = ""
        if self._end > 0 and (place != self._place or file.read(len(self._proof)) != self._proof):
            change = "cut" if place == self._place else "new"
            self.rewind()
        self._place = place
        file.seek(self._end)
        new = file.read()
        new = new[: new.rfind(b"\n") + 1]  # the last line may be half written
        self._end += len(new)
        self._proof = (self._proof + new)[-_PROOF:]
        return change, [json.loads(line) for line in new.splitlines()]


class Watcher:
    """One run, polled.

    Args:
        run: its directory, which need not be there yet.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.state = ""  # as status.json says; "" has not begun
        self.story = Story()
        self._tail = Tail(run / "metrics.jsonl")

    @property
    def over(self) -> bool:
        """Whether the run has come to its end."""
        return self.state in ("finished", "failed")

    def poll(self) -> Iterator[Event]:
        """What is new since the last time. "start" again where a run goes on; "end" with the state where it stops."""
        status = read_status(self.run)  # before the records: once it says finished, all of them are there
        goes_on = self.state in ("interrupted", "failed") and status.get("state") == "running"
        first = not self.story.stages
        if first:
            self.story = self._begin(status)
        if self.story.stages:
            yield from self._records(status, first or goes_on)
        before, self.state = self.state, status.get("state", "")
        if self.state != before and self.state in ("finished", "failed", "interrupted"):
            facts = {"state": self.state, "error": status.get("error", ""), "seconds": status.get("seconds", math.nan)}
            yield Event("end", self.story.stage, self.story.round, facts)

    def _records(self, status: Mapping[str, Any], start: bool) -> Iterator[Event]:
        change, lines = self._tail.read()
        told = self.story.stage, self.story.round
        if change:  # a run that goes on from its checkpoint, or one that was started anew
            self.story = self._begin(status)
            if not self.story.stages:  # there is no plan of it yet
                self._tail.rewind()
                return
            start = True
        place = told if change == "cut" else (self.story.stage, self.story.round)
        for line in lines:
            events = list(self.story.take(line))
            if change != "cut" or (self.story.stage, self.story.round) > told:
                if start:
                    yield Event("start", *place, {"stages": self.story.stages, "rounds": self.story.rounds})
                start = False
                yield from events
        if start:
            yield self.story.start()

    def _begin(self, status: Mapping[str, Any]) -> Story:
        """A new story, as long as the plan says; empty where there is no plan yet."""
        try:
            stages = len(json.loads((self.run / "federation.json").read_text(encoding="utf-8"))["schedule"])
        except (OSError, ValueError):
            return Story()
        return Story(stages, status["rounds"] // stages) if "rounds" in status else Story()


class Story:
    """What records tell, as events.

    Args:
        stages: of the run; 0 is not known yet.
        rounds: of a stage.
    """

    def __init__(self, stages: int = 0, rounds: int = 1) -> None:
        self.stages, self.rounds = stages, rounds
        self.stage = self.round = 0  # what comes next
        self.loss = self.accuracy = math.nan  # of the last round; of the last stage, mean over tasks, the task known
        self.alarms = self.faults = 0
        self._told: dict[str, list[float]] = {"loss": [], "accuracy": []}  # by hospitals, in this round
        self._facts: dict[str, float] = {}
        self._pooled: dict[tuple[str, str], float] = {}

    def start(self) -> Event:
        """Where it stands."""
        return Event("start", self.stage, self.round, {"stages": self.stages, "rounds": self.rounds})

    def take(self, record: Mapping[str, Any]) -> Iterator[Event]:
        """The events that end with this record."""
        stage, phase, name, client = (record[key] for key in ("stage", "phase", "name", "client"))
        number = record["round"] - max(stage, 0) * self.rounds
        value = math.nan if record["value"] is None else record["value"]
        if phase == "fault":
            self.faults += 1
            yield Event("fault", stage, number, {"client": client, "what": name, "why": record.get("note", "")})
        elif phase == "alarm":
            self.alarms += 1
            facts = {key: record.get(key) for key in ("client", "task", "name", "note")}
            yield Event("alarm", stage, number, facts | {"value": value})
        elif (phase, name) in (("train", "loss"), ("validate", "accuracy")):
            self._told[name].append(value)
        elif phase == "train" and client is None:
            self._facts[name] = value
            if name == "seconds":  # the last of a round
                yield self._round(stage, number)
        elif phase in ("start", "end") and client is None:
            self._pooled[record["task"], name] = value
        elif (phase, name, record["task"]) == ("model", "parameters", None):  # of an evaluation
            yield self._close(stage, number)

    def _round(self, stage: int, number: int) -> Event:
        means = {name: sum(told) / len(told) if told else math.nan for name, told in self._told.items()}
        event = Event("round", stage, number, self._facts | means)
        self.stage, self.round, self.loss = stage, number + 1, means["loss"]
        self._told, self._facts = {"loss": [], "accuracy": []}, {}
        return event

    def _close(self, stage: int, number: int) -> Event:
        event = Event("stage", stage, number + 1 if stage >= 0 else number, {"pooled": self._pooled})
        known = [value for (_, name), value in self._pooled.items() if name == "accuracy"]
        if stage >= 0:
            self.stage, self.round, self.accuracy = stage + 1, 0, sum(known) / len(known) if known else math.nan
        self._pooled = {}
        return event
