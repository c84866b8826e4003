"""A run as it goes: live in a terminal, in plain lines for each stage and now and then a heartbeat, or as JSON."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedcl import units
from fedcl.contracts import Event

_HEARTBEAT = 60.0  # seconds without a line, where nothing is live
_REFRESH = 4  # a second; between refreshes an event only changes a few fields


class _Stage(NamedTuple):
    title: str  # of its tasks
    met: list[str]  # ids of the tasks that somebody has met by its end


class View:
    """An observer for `simulate(notify=…)`, to be used in a `with` block.

    Args:
        run: the run directory, whose federation.json names the tasks.
        console: where to print.
        live: whether the last line is rewritten as the run goes; None: if the console is a terminal.
    """

    def __init__(self, run: Path, console: Console, live: bool | None = None) -> None:
        self._run, self._console = run, console
        self._wanted = console.is_terminal if live is None else live
        self._live: Live | None = None
        self.note = ""  # more for the live line
        self._plan: list[_Stage] = []
        self._rounds = self._stage = self._number = self._stages = self._done = self._hospitals = 0
        self._loss = self._accuracy = math.nan
        self._bytes = {"down": 0.0, "up": 0.0}
        self._faults: dict[tuple[int, Any, Any], int] = {}
        self._alarms = 0
        self._paced = 0  # rounds since the clock was started
        self._begin = self._spoke = time.monotonic()

    def __enter__(self) -> View:
        if self._wanted:
            self._live = Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=_REFRESH,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        known = {"start": self._start, "round": self._round, "stage": self._close, "fault": self._fault}
        known |= {"stop": self._stop, "notice": self._notice, "growth": self._grow, "alarm": self._alarm}
        known |= {"end": self._end}
        if event.kind in known:
            known[event.kind](event)

    def tell(self) -> None:
        """A line that says where the run stands."""
        self._say(f"{self._where()}, {self._step()}: {self._state()}" if self._stages else "it has not begun")

    def start_clock(self) -> None:
        """Measure the pace from now on: what was shown so far may be long past."""
        self._paced = 0

    # ── events ──

    def _start(self, event: Event) -> None:
        self._stages, self._rounds = event.facts["stages"], event.facts["rounds"]
        self._stage, self._number = event.stage, event.round
        self._plan = _read(self._run)
        self._spoke = time.monotonic()
        if event.stage or event.round:
            self._say(f"going on from stage {event.stage + 1}, round {event.round + 1}")

    def _round(self, event: Event) -> None:
        facts = event.facts
        if not self._paced:  # the first round warms up, and is no measure for the others
            self._begin = time.monotonic()
        self._stage, self._number = event.stage, event.round + 1
        self._done, self._paced = self._done + 1, self._paced + 1
        self._hospitals, self._loss = facts["clients"], facts["loss"]
        if math.isfinite(facts["accuracy"]):  # only every so many rounds
            self._accuracy = facts["accuracy"]
        for way in self._bytes:
            self._bytes[way] += facts[f"bytes_{way}"]
        if not self._live and time.monotonic() - self._spoke > _HEARTBEAT:
            self._say(f"{self._where()}, {self._step()}: {self._state()}{self._left()}")

    def _close(self, event: Event) -> None:
        if event.stage < 0:  # the untrained net
            return
        pooled: Mapping[tuple[str, str], float] = event.facts["pooled"]
        met = self._plan[event.stage].met if self._plan else list(dict.fromkeys(task for task, _ in pooled))
        known, inferred = (
            [pooled[task, name] for task in met if (task, name) in pooled] for name in ("accuracy", "accuracy_inferred")
        )
        text = f"accuracy {_mean(known)} % known, {_mean(inferred)} % inferred"
        if 1 < len(known) <= 20:
            text += f" (by task {', '.join(units.percent(value) for value in known)})"
        text += f"; loss {self._loss:.3g}; {self._traffic()}"
        faults = sum(count for (stage, _, _), count in self._faults.items() if stage == event.stage)
        text += f"; {faults} fault{'s' if faults > 1 else ''}" if faults else ""
        self._accuracy = math.nan
        self._bytes = dict.fromkeys(self._bytes, 0.0)
        self._say(f"{self._where()}: {text}{self._left()}")

    def _grow(self, event: Event) -> None:
        sizes = ", ".join(f"{part} {old:,} → {new:,}" for part, (old, new) in event.facts["parameters"].items())
        self._say(f"stage {event.stage + 1}, round {event.round + 1}: parameters of {sizes}")

    def _notice(self, event: Event) -> None:
        self._say(event.facts["text"])

    def _stop(self, event: Event) -> None:
        self._say("stopping: the round ends, then all is saved; Ctrl-C again stops at once")

    def _end(self, event: Event) -> None:
        """Told by who watches from outside."""
        state, error = event.facts["state"], event.facts["error"]
        more = "the same command goes on" if state == "interrupted" else error
        self._say(f"{self._run} is {state}{f': {more}' if more else ''}")

    def _alarm(self, event: Event) -> None:
        client, task = event.facts.get("client"), event.facts.get("task")
        about = [f"client {client}"] if client is not None else []
        about += [f"task {task}"] if task is not None else []
        self._alarms += 1
        where = f"stage {event.stage + 1}, round {event.round + 1}"
        self._say(f"{where}: ALARM {', '.join([event.facts['name'], *about])}: {event.facts['note']}")

    def _fault(self, event: Event) -> None:
        """Told once for each client, kind and stage; the stage's line counts them all."""
        client, what = event.facts.get("client"), event.facts.get("what")
        key = (event.stage, client, what)
        self._faults[key] = self._faults.get(key, 0) + 1
        if self._faults[key] == 1:
            self._say(
                f"stage {event.stage + 1}, round {event.round + 1}: client {client} {what}: {event.facts.get('why')}"
            )

    # ── words ──

    def _say(self, text: str) -> None:
        self._spoke = time.monotonic()
        self._console.print(Text(text), soft_wrap=True)

    def _render(self) -> RenderableType:
        """The live line: called by the refreshing thread."""
        if not self._stages:
            return Text("reading the data …")
        bar = Table.grid(padding=(0, 1))
        done = self._stage * self._rounds + self._number
        bar.add_row(
            self._where(),
            ProgressBar(total=self._stages * self._rounds, completed=done, width=24),
            self._step() + self._left(),
        )
        return Group(bar, Text(self._state() + self.note))

    def _where(self) -> str:
        title = self._plan[self._stage].title if self._stage < len(self._plan) else ""
        return f"stage {self._stage + 1}/{self._stages}" + (f" ({title})" if title else "")

    def _step(self) -> str:
        return f"round {self._number}/{self._rounds}"

    def _state(self) -> str:
        """What the last round brought."""
        if not self._done:
            return "first round …"
        parts = [f"{self._hospitals} answered", f"loss {self._loss:.3g}"]
        if math.isfinite(self._accuracy):
            parts.append(f"validation {units.percent(self._accuracy)} %")
        if self._alarms:
            parts.append(f"{self._alarms} alarm{'s' if self._alarms > 1 else ''}")
        return ", ".join([*parts, self._traffic()])

    def _traffic(self) -> str:
        return f"{units.size(self._bytes['down'])} down, {units.size(self._bytes['up'])} up in this stage's training"

    def _left(self) -> str:
        """`; 3.1 s left` at the pace of this sitting, evaluation included."""
        if self._paced < 2 or (self._stage + 1 == self._stages and self._number == self._rounds):
            return ""
        rounds = (self._stages - self._stage) * self._rounds - self._number
        pace = (time.monotonic() - self._begin) / (self._paced - 1)
        return f"; {units.duration(pace * rounds)} left"


class Lines:
    """An observer that writes one JSON object a line, for machines: event, time, stage, round, facts.

    Stages and rounds count from 0; stage −1 is the untrained net. `time` is in seconds since 1970; NaN is null.

    Args:
        out: where to write; each line is flushed.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __call__(self, event: Event, **more: str) -> None:
        """Write an event, and what else is to be said of it."""
        facts = dict(event.facts)
        if "pooled" in facts:  # (task, figure) → value
            facts["tasks"] = {}
            for (task, name), value in facts.pop("pooled").items():
                facts["tasks"].setdefault(task, {})[name] = value
        line = {"event": event.kind, "time": round(time.time(), 3), **more, "stage": event.stage, "round": event.round}
        self._out.write(json.dumps(line | {"facts": _plain(facts)}, allow_nan=False) + "\n")
        self._out.flush()


def _plain(value: Any) -> Any:
    """As JSON knows it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(run: Path) -> list[_Stage]:
    """The stages of a run directory's federation.json."""
    try:
        plan = json.loads((run / "federation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    tasks, met, stages = plan["tasks"], set[int](), []
    for stage in plan["schedule"]:
        current = sorted({task for now in stage for task in now})
        met.update(current)
        names = [tasks[task]["title"] or tasks[task]["id"] for task in current]
        title = "; ".join(names) if len(names) <= 3 else f"{len(names)} tasks"
        stages.append(_Stage(title, [tasks[task]["id"] for task in sorted(met)]))
    return stages


def _mean(values: list[float]) -> str:
    return units.percent(sum(values) / len(values) if values else math.nan)
