"""Training the models of an attack: side by side, each an ordinary run directory, what is finished is not run again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedcl.comparison import pool
from fedcl.comparison.pool import Ended
from fedcl.config import Config
from fedcl.contracts import FedclError
from fedcl.leaks import plan
from fedcl.leaks.plan import SHADOWS, Models
from fedcl.leaks.records import without
from fedcl.run_dir import is_finished
from fedcl.simulation import simulate

_PROGRAM = "fedcl.leaks.work"


class Progress(NamedTuple):
    """Said when a model is trained."""

    done: int
    total: int
    seconds: float  # that it took


def train(
    models: Models,
    jobs: int = 0,
    notify: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train the models that are missing; False where it was asked to stop before all were done.

    Args:
        models: which.
        jobs: at a time, each in a process; 0 is as many as the machine has room for, 1 is here.
        notify: told of each that is finished.
        stop: asked now and then.

    Raises:
        FedclError: one cannot be trained.
    """
    plan.write(models)
    numbers = range(models.asked.models)
    configs = [_cleared(models.config(number)) for number in numbers]
    todo = [number for number in numbers if not is_finished(configs[number].directory(), configs[number])]
    chosen = [configs[number] for number in todo]
    ends = _here(models, chosen, stop) if jobs == 1 else _beside(models, chosen, jobs, stop)
    for done, end in enumerate(ends, start=len(configs) - len(todo) + 1):
        if end.error and not end.interrupted:
            raise FedclError(f"{chosen[end.number].directory()}: {end.error}")
        notify(Progress(done, len(configs), end.seconds))
    return all(is_finished(config.directory(), config) for config in configs)


def one(config: Config) -> None:
    """Train one model in a process of its own; where it lies tells which one of which run."""
    path = config.directory()
    _train(plan.read(path.parents[2]), config)


def _train(models: Models, config: Config) -> None:
    simulate(config, federation=without(models.target.federation, _out(models, config.directory())))


def _out(models: Models, path: Path) -> np.ndarray:
    return models.out(int(path.name))


def _cleared(config: Config) -> Config:
    """The same; a model of another plan that lies at its place is removed: it can be made again."""
    try:
        is_finished(config.directory(), config)
    except FedclError:
        if config.directory().parent.name == SHADOWS:
            shutil.rmtree(config.directory())
    return config


def _here(models: Models, configs: list[Config], stop: Callable[[], bool]) -> Iterator[Ended]:
    for index, config in enumerate(configs):
        if stop():
            return
        since = time.monotonic()
        _train(models, config)
        yield Ended(index, "", time.monotonic() - since)


def _beside(models: Models, configs: list[Config], jobs: int, stop: Callable[[], bool]) -> Iterator[Ended]:
    if not configs:
        return iter(())
    places = pool.slots(configs[0], len(configs), jobs)
    return pool.run(configs, places, models.target.folder / "logs", stop, program=_PROGRAM)
