"""Trackers, fed with what is written to metrics.jsonl, each figure once, over all sittings of a run.

What a tracker has is noted in RUN/tracking/<tracker>.json as a place in that file: a round, and how many of its lines.
A run that goes on from a checkpoint writes lines after it again; those that a tracker has are passed over.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fedcl import plugins
from fedcl.config import Config
from fedcl.contracts import Event, FedclError, Tracked, Tracker
from fedcl.run_dir import read_metrics, read_status

FOLDER = "tracking"
_CLIENTS = ("train", "consolidate", "drift", "fault")  # phases whose `client` is one; elsewhere it is a hospital


def check(config: Config) -> None:
    """Raise FedclError where a tracker is not there, or what it needs is not installed."""
    for name in config.run.track:
        try:
            needs = getattr(plugins.load("trackers", name), "needs", "")
        except plugins.UnknownPlugin as error:
            raise FedclError(f"run.track: {error}") from error
        if needs and importlib.util.find_spec(needs) is None:
            raise FedclError(f"run.track: {name} needs the package {needs}; pip install 'fedcl[{needs}]'")


class Tracking:
    """The trackers of one sitting of a run, in a `with` block. They first get what they miss of the run so far.

    A tracker that fails on the way is left out, with a notice; the same command hands it the rest later.

    Args:
        config: names them, with their options.
        path: the run directory.
        identity: of the run.
        notify: told of a tracker that failed.

    Raises:
        FedclError: a tracker cannot be started.
    """

    def __init__(
        self, config: Config, path: Path, identity: str, notify: Callable[[Event], None] = lambda event: None
    ) -> None:
        check(config)
        self._path, self._notify = path, notify
        self._step, self._line = 0, 0  # of the last record
        self._tracks: list[_Track] = []
        for name in config.run.track:
            try:
                self._tracks.append(_Track(name, config, path, identity))
            except Exception as error:
                self.close("failed")
                raise FedclError(f"run.track: {name} cannot be started: {error}") from error
        if self._tracks:
            self.take(read_metrics(path))

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(str(read_status(self._path).get("state", "failed")))

    def take(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Hand on records as they are written."""
        placed = list(self._place(records)) if self._tracks else []
        for track in list(self._tracks):
            self._safely(track, lambda track=track: track.take(placed))  # type: ignore[misc]

    def close(self, state: str) -> None:
        """The sitting is over; the run is `finished`, `interrupted` or `failed`."""
        for track in list(self._tracks):
            self._safely(track, lambda track=track: track.tracker.end(state))  # type: ignore[misc]
        self._tracks = []

    def _place(self, records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
        """(round, line of the round, record): a consolidation that is made up for counts with the round it came in."""
        for record in records:
            if record["round"] > self._step:
                self._step, self._line = record["round"], 0
            self._line += 1
            yield self._step, self._line, record

    def _safely(self, track: _Track, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever a tracker's own library raises: the run matters more
            self._tracks.remove(track)
            text = f"tracker {track.name} stopped, the run goes on: {type(error).__name__}: {error}"
            self._notify(Event("notice", 0, 0, {"text": text}))


class _Track:
    """One tracker, and how far it has come."""

    def __init__(self, name: str, config: Config, path: Path, identity: str) -> None:
        self.name = name
        folder = path / FOLDER
        folder.mkdir(exist_ok=True)
        self._file = folder / f"{name.replace(':', '.')}.json"
        try:
            mark = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            mark = {"id": "", "round": 0, "line": 0}
        self._done = mark["round"], mark["line"]
        told = Tracked(path.resolve().name, folder, identity, dict(_flat(config.model_dump(), "")), mark["id"])
        plugin = plugins.load("trackers", name)
        self.tracker: Tracker = plugin(told, **config.trackers.get(name, {}))
        self._note()

    def take(self, placed: Iterable[tuple[int, int, Mapping[str, Any]]]) -> None:
        """Hand on what it does not have yet, round by round."""
        figures: dict[int, dict[str, float]] = {}
        done = self._done
        for step, line, record in placed:
            if (step, line) > self._done:
                done = step, line
                if record["value"] is not None and math.isfinite(record["value"]):
                    figures.setdefault(step, {})[figure(record)] = float(record["value"])
        for step, named in figures.items():
            self.tracker.log(step, named)
        if done != self._done:
            self._done = done
            self._note()

    def _note(self) -> None:
        draft = self._file.with_suffix(".tmp")
        draft.write_text(json.dumps({"id": self.tracker.id, "round": self._done[0], "line": self._done[1]}))
        os.replace(draft, self._file)


def figure(record: Mapping[str, Any]) -> str:
    """The name of a record's figure: `end/accuracy/t0/hospital_3`."""
    parts = [record["phase"], record["name"]]
    parts += [record["task"]] if record["task"] is not None else []
    parts += [record["note"]] if record["phase"] == "model" and record.get("note") else []  # of a layer
    if record["client"] is not None:
        parts.append(f"{'client' if record['phase'] in _CLIENTS else 'hospital'}_{record['client']}")
    return "/".join(parts)


def _flat(tree: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Settings by dotted key, as JSON writes them but for text."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value if isinstance(value, str) else json.dumps(value)
