"""Runs side by side: one process for each slot of this machine, each with one run at a time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

from fedcl.comparison.work import INTERRUPTED
from fedcl.config import Config
from fedcl.contracts import FedclError
from fedcl.runtime import placement
from fedcl.runtime.placement import Slot
from fedcl.runtime.worker import Outcome, Worker

_LOOK = 0.5  # seconds between two looks at whether to stop
_STARTS = 3  # attempts to start a process, before the comparison gives up on its slot
_PROGRAM = "fedcl.comparison.work"


class Ended(NamedTuple):
    """What came of a run."""

    number: int  # in the list of configs
    error: str  # "" where it finished
    seconds: float

    @property
    def interrupted(self) -> bool:
        """Whether it was asked to stop, and saved."""
        return self.error == INTERRUPTED


def slots(config: Config, runs: int, jobs: int = 0) -> list[Slot]:
    """Room for runs on this machine: the CPU's cores over `run.threads`, or every GPU where the device is `cuda`.

    A run that has workers of its own (`run.runtime` is not inline) has the machine for itself.

    Args:
        config: of any of the runs.
        runs: how many there are.
        jobs: runs at a time, instead; on the CPU and on each GPU.

    Raises:
        FedclError: the device is not there.
    """
    own, there = config.run, placement.present()
    devices = "auto" if own.device == "cuda" else own.device
    if own.runtime != "inline":
        devices, jobs = "cpu", jobs or 1
    asked = {"devices": devices, "workers": jobs, "clients_per_device": jobs or own.clients_per_device}
    found = placement.place(own.model_copy(update=asked), [1.0] * runs, there).slots[:runs]
    # A device that has a number keeps it, and a run with workers of its own hands devices out itself.
    all_seen = own.runtime != "inline" or own.device.startswith("cuda:")
    return [replace(slot, environment={}) if all_seen else slot for slot in found]


def run(
    configs: Iterable[Config],
    places: Sequence[Slot],
    logs: Path,
    stop: Callable[[], bool] = lambda: False,
    begun: Callable[[int], None] = lambda index: None,
    program: str = _PROGRAM,
) -> Iterator[Ended]:
    """Run these, in order, as slots become free; yields each as it ends. No process outlives the iterator.

    Args:
        configs: each with a directory of its own; the next one is asked for when a slot is free.
        places: the slots.
        logs: folder for what the processes print.
        stop: asked now and then; then no further run begins, and those that go on end their round and save.
        begun: told of each run that begins.
        program: what a process runs, a module like `comparison.work`.

    Raises:
        FedclError: a process does not start.
    """
    source, at_work, failures = _Source(configs), dict[int, tuple[int, float]](), [0] * len(places)

    def start(place: int) -> Worker:
        return Worker(None, places[place].environment, logs / f"{places[place].index}.log", program)

    def again(place: int, worker: Worker) -> str:
        """Replace a process that has ended, and say how it ended."""
        why = worker.obituary()
        worker.kill()
        failures[place] += not worker.ready
        if failures[place] == _STARTS:
            raise FedclError(f"a process on {places[place].device} does not start: {why}; it wrote {worker.log}")
        workers[place] = start(place)
        return why

    workers = [start(place) for place in range(len(places))]
    try:
        while at_work or not (source.empty or stop()):
            if stop():
                _interrupt([workers[place] for place in at_work])
            for place, worker in enumerate(workers):
                if worker.ready and place not in at_work and not stop() and (config := source.next()):
                    at_work[place] = (source.given - 1, time.monotonic())
                    begun(source.given - 1)
                    worker.ask("run", config.model_dump_json())
            heard = wait([worker.connection for worker in workers], timeout=_LOOK)
            for place, worker in enumerate(workers):
                if worker.connection not in heard:
                    continue
                try:
                    outcome = worker.receive()
                except (EOFError, OSError):
                    outcome = Outcome(None, None, again(place, worker))
                if isinstance(outcome, Outcome) and place in at_work:
                    index, since = at_work.pop(place)
                    yield Ended(index, outcome.error, time.monotonic() - since)
    finally:
        for worker in workers:
            worker.kill()


class _Source:
    """Configs one by one, and whether there are more: known once the end was met."""

    def __init__(self, configs: Iterable[Config]) -> None:
        self._configs = iter(configs)
        self.given = 0
        self.empty = False

    def next(self) -> Config | None:
        """The next one, or None."""
        config = next(self._configs, None)
        self.given += config is not None
        self.empty = self.empty or config is None
        return config


def _interrupt(workers: Sequence[Worker]) -> None:
    """Ask for an end; more than once does no harm, and a run that is only loading its data does not hear the first."""
    for worker in workers:
        os.kill(worker.process.pid, signal.SIGINT)
