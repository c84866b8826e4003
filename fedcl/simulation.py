"""One experiment from config to results: the whole story on one page."""

from __future__ import annotations

import hashlib
import importlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fedcl import (
    augment,
    compression,
    defaults,
    finish,
    holdings,
    infer,
    merge,
    methods,
    partition,
    plugins,
    privacy,
    protect,
    report,
    rng,
    run_dir,
    tracking,
)
from fedcl import federation as federations
from fedcl.config import Config
from fedcl.contracts import VAL, Ask, Event, FedclError, Samples
from fedcl.federation import Federation
from fedcl.models import dynamic_net
from fedcl.plan import Plan
from fedcl.results import Result
from fedcl.run_dir import RunDir
from fedcl.server import Interrupted, Server
from fedcl.state import State
from fedcl.store import Store
from fedcl.tracking import Tracking

__all__ = ["Interrupted", "simulate"]


def simulate(
    config: Config,
    samples: Samples | None = None,
    *,
    federation: Federation | None = None,
    fresh: bool = False,
    notify: Callable[[Event], None] = lambda event: None,
) -> Result:
    """Run an experiment in its directory, or go on with it there; a finished one is only read.

    Args:
        config: the experiment.
        samples: its data, where they are not to be loaded from `config.data`.
        federation: who holds what, where that is not to be dealt out anew; `config.data.fingerprint` then names it.
        fresh: move a run that is there already aside, and start anew.
        notify: told of every round and stage.

    Returns:
        The accuracy matrices and the metrics.

    Raises:
        FedclError: something that the user can mend; what was done until then is saved.
        Interrupted: Ctrl-C; the round was finished and saved, and the same call goes on from there.
    """
    if samples is not None:
        config = _identified(config, samples)
    elif config.data.fingerprint and federation is None:
        raise FedclError("data.fingerprint: this run's data were handed in from Python; hand them in again")
    check(config)
    config = defaults.fill(config)
    if not fresh and run_dir.is_finished(config.directory(), config):
        _track_finished(config)
        return Result.load(config.directory())
    federation = federation or meet(config, samples)
    told = probe(config, federation)  # all before anything is written
    run = RunDir(config.directory(), config, fresh)
    try:
        with _threads(config.run.threads), polite_interrupt(notify) as stop:
            _run(config, federation, run, notify, stop, told)
        return Result.load(run.path)
    finally:
        run.close()


def meet(config: Config, samples: Samples | None = None) -> Federation:
    """Who has what, when: from the data at hand, or from what hospitals say of their own."""
    if not config.data.own:
        return federations.build(config, samples)
    from fedcl.runtime import superlink

    return holdings.assemble(config, superlink.survey(config))


def check(config: Config) -> None:
    """Raise FedclError for what the config's own types cannot see: plug-ins' names and options."""
    try:
        methods.build(config)
        merge.rules(config)
        compression.build(config)
        privacy.build(defaults.fill(config))
        plugins.check("models", config.model.name)
    except plugins.UnknownPlugin as error:
        raise FedclError(str(error)) from error
    infer.resolve(config.model.infer)
    tracking.check(config)


def probe(config: Config, federation: Federation) -> list[str]:
    """Build once what clients and server will build, so that a bad option ends the run before it begins.

    Returns what the user is to know before, in plain words.

    Raises:
        FedclError: an option, or what goes together, cannot work with these data.
    """
    augment.build(config.data.augment)
    with rng.torch_global(config.start, "init"):
        net = dynamic_net.build(config.model, federation.shape, federation.outputs(config.model.heads))
    method = methods.build(config)
    if method.watches and not federation.counts()[:, :, VAL].any():
        raise FedclError(
            f"model.growth = {config.model.growth!r} (--growth) goes by the loss on validation samples, and with "
            f"data.val = {config.data.val:g} there are none; take data.val = 0.1"
        )
    plan = Plan(config, federation, method, net.owner)
    protect.build(config, federation, plan, net)
    if config.model.weights:
        dynamic_net.load_weights(net, config.model.weights)
    wrong = [federation.names[k] for k in sorted(partition.noisy(config.partition, len(federation.names), config.seed))]
    said = f"note: {100 * config.partition.noise:g} % of the labels to train on are wrong in {', '.join(wrong)}"
    return ([f"{said} (partition.noisy)"] if wrong else []) + merge.cautions(config, plan.fewest())


def _identified(config: Config, samples: Samples) -> Config:
    """The config with a fingerprint of the data, so that other data are another run."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (samples.x, samples.y, samples.site, samples.split):
        if part is not None:
            digest.update(np.ascontiguousarray(part).tobytes())
    return config.model_copy(update={"data": config.data.model_copy(update={"fingerprint": digest.hexdigest()})})


def _run(
    config: Config,
    federation: Federation,
    run: RunDir,
    notify: Callable[[Event], None],
    stop: Callable[[], bool],
    told: Sequence[str],
) -> None:
    method = methods.build(config)
    store = Store(run.path / "clients")
    store.forget()
    saved = run.restore(usable=lambda state: _has_memories(store, State.unpack({}, state)))
    state = State.unpack(*saved) if saved else None
    if run.lost:
        notify(
            Event("notice", 0, 0, {"text": f"no checkpoint of {run.path} is whole: the run starts from its beginning"})
        )
    if state is None:
        about = federation.describe() | {"method": method.conventions(), "hooks": sorted(method.hooks())}
        about["noisy"] = sorted(partition.noisy(config.partition, len(federation.names), config.seed))
        run.describe(config, about, federation.rows())
        if single := [task.id for task in federation.tasks if len(task.classes) == 1]:
            text = f"{single[0]} has one class, and is always right where the task is known: read the task inferred"
            notify(Event("notice", 0, 0, {"text": text}))
        for text in told:
            notify(Event("notice", 0, 0, {"text": text}))
    before = state.seconds if state else 0.0
    inline = config.run.runtime == "inline"

    def serve(ask: Ask) -> None:
        server = Server(config, federation, method, ask, run, notify, store if inline else None, stop)
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

    from fedcl.runtime.apps import Launch

    runtime = importlib.import_module(f"fedcl.runtime.{config.run.runtime}")
    with Tracking(config, run.path, run.identity(), notify) as tracks:
        run.listeners.append(tracks.take)
        runtime.run(Launch(config, federation, store, run, notify, serve))


def _track_finished(config: Config) -> None:
    """Hand a finished run's figures to trackers that do not have them yet."""
    if config.run.track:
        path = config.directory()
        with Tracking(config, path, (path / "identity").read_text(encoding="utf-8")):
            return


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
def polite_interrupt(notify: Callable[[Event], None]) -> Iterator[Callable[[], bool]]:
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
