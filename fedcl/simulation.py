"""One experiment from config to results: the whole story on one page."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fedcl import defaults, finish, infer, methods, plugins, report, run_dir
from fedcl import federation as federations
from fedcl.client import Client
from fedcl.config import Config
from fedcl.contracts import Ask, Event, FedclError, Samples
from fedcl.federation import Federation
from fedcl.results import Result
from fedcl.run_dir import RunDir
from fedcl.server import Interrupted, Server
from fedcl.state import State
from fedcl.store import Store

__all__ = ["Interrupted", "simulate"]


def simulate(
    config: Config,
    samples: Samples | None = None,
    *,
    fresh: bool = False,
    notify: Callable[[Event], None] = lambda event: None,
) -> Result:
    """Run an experiment in its directory, or go on with it there; a finished one is only read.

    Args:
        config: the experiment.
        samples: its data, where they are not to be loaded from `config.data`.
        fresh: move a run that is there already aside, and start anew.
        notify: told of every round and stage.

    Returns:
        The accuracy matrices and the metrics.

    Raises:
        FedclError: something that the user can mend; what was done until then is saved.
        Interrupted: Ctrl-C; the round was finished and saved, and the same call goes on from there.
    """
    check(config)
    config = defaults.fill(config)
    if not fresh and run_dir.is_finished(config.directory(), config):
        return Result.load(config.directory())
    federation = federations.build(config, samples)  # before anything is written
    run = RunDir(config.directory(), config, fresh)
    try:
        with _threads(config.run.threads), _polite_interrupt(notify) as stop:
            _run(config, federation, run, notify, stop)
        return Result.load(run.path)
    finally:
        run.close()


def check(config: Config) -> None:
    """Raise FedclError for what the config's own types cannot see: plug-ins' names and options."""
    methods.build(config)
    for kind, name in (("aggregators", config.federation.aggregator), ("mergers", config.federation.merger)):
        plugins.load(kind, name)
    infer.resolve(config.model.infer)


def _run(
    config: Config,
    federation: Federation,
    run: RunDir,
    notify: Callable[[Event], None],
    stop: Callable[[], bool],
) -> None:
    method = methods.build(config)
    store = Store(run.path / "clients")
    store.forget()
    client = Client(config, federation, method, store)
    saved = run.restore(usable=lambda state: _has_memories(store, State.unpack({}, state)))
    state = State.unpack(*saved) if saved else None
    if state is None:
        run.describe(config, federation.describe() | {"method": method.conventions()}, federation.rows())
    before = state.seconds if state else 0.0
    clients = len(federation.members)

    def serve(ask: Ask) -> None:
        server = Server(config, federation, method, ask, run, notify, store.flush, stop)
        facts: dict[str, Any] = {"rounds": config.train.rounds * len(federation.schedule), "before": before}
        run.status("running", **facts)
        try:
            server.run(state)
        except BaseException as end:
            facts |= {"stage": server.state.stage, "round": server.state.round, "error": str(end)}
            stopped = isinstance(end, Interrupted | KeyboardInterrupt)
            run.status("interrupted" if stopped else "failed", **facts)
            if isinstance(end, Interrupted | FedclError):
                report.write(run.path)  # of what there is
            raise
        finish.write(config, federation, server.state, run)
        run.status("finished", **facts)
        report.write(run.path)

    from fedcl.runtime import apps, inline

    inline.run(apps.server_app(clients, serve), apps.client_app(client), clients)


def _has_memories(store: Store, state: State) -> bool:
    """Whether every client memory that a checkpoint refers to is there and whole."""
    try:
        for client, version in state.versions.items():
            store.load(client, version)
    except FedclError:
        return False
    return True


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Many small products run faster on one thread than on two that wait for each other."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _polite_interrupt(notify: Callable[[Event], None]) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C lets the round end and saves; the second is the usual one."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def on_signal(number: int, frame: object) -> None:
        asked.set()
        notify(Event("stop", -1, -1, {}))
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
