"""Clients in Ray actors, on this machine or on a Ray cluster: Flower's own simulation.

Flower calls `run_simulation` deprecated in favour of `flwr run`, which fedcl reaches as `--runtime superlink`; its
only use is here. The server stays in the thread that calls, as in every way to run, so that Ctrl-C and errors go their
usual way; Flower's half runs in a thread of its own, and lends its Grid.

A client that raises, runs out of memory or takes too long is an error for that client alone. An actor that is killed is
started again by Ray and given its message once more: no sample counts twice, since a Job names the memory that it
starts from. A message that ends its actor a second time is an error. An actor that stands still as a whole (SIGSTOP)
answers nothing until the run ends: its hospital is missing, and there is one actor less.

A Ray that is started here listens on the loopback address only, wants a password, and ends with the run. A cluster
(`run.address`) must have the run's directory, where the data and the clients' memories lie, under the same path on all
nodes; Flower fills all of it with actors, so `run.workers` has no say.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import logging
import os
import queue
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedcl.config import Run
from fedcl.contracts import FedclError
from fedcl.runtime import apps, compat, local, placement, shared, work
from fedcl.runtime.apps import Launch
from fedcl.runtime.worker import Outcome, Setup

_POLL = 0.02  # seconds between two looks for replies; Flower hands out messages every 0.1 s
_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or else Ray warns that this will be its default
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what Ray prints when an actor ends: the run's faults say it
}
_OFFLINE = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # or else Ray asks which cloud this is
_PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on any system: no other machine joins, all ports are the loopback's
    "RAY_AUTH_MODE": "token",  # nor do other users of this machine
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}

# ── in the actors ────────────────────────────────────────────────────────────────────────────────────────────────────

_app = functools.lru_cache(maxsize=1)(lambda setup, written: work.build(setup))
_hand = ThreadPoolExecutor(max_workers=1)
_spent = threading.Event()  # this process is of no further use


def client_app(setup: Setup, patience: float) -> ClientApp:
    """A ClientApp that leaves the work to the one that its process keeps; small, it travels with every message."""
    app = ClientApp()
    act = functools.partial(answer, setup, patience)
    for register in (app.train(), app.evaluate(), app.query("consolidate"), app.query("mask"), app.query("identify")):
        register(act)
    return app


def answer(setup: Setup, patience: float, message: Message, context: Context) -> Message:
    """The reply to a message within so many seconds, or an error."""
    if _spent.is_set():
        os._exit(1)  # Ray starts another in its place, and hands it this message
    try:
        app = _app(setup, os.stat(str(setup.data)).st_mtime_ns)  # never another run's
        outcome = _hand.submit(work.answer, app, message, context).result(patience)
    except TimeoutError:
        outcome = Outcome(None, None, f"no answer within {patience:g} s (federation.client_timeout)", fatal=True)
    except Exception as error:
        outcome = Outcome(None, None, f"{type(error).__name__}: {error}")
    if outcome.fatal:
        _spent.set()
    return outcome.reply or compat.failure(message, outcome.error)


# ── in the driver ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Plan:
    """How Ray is started or joined, and what an actor gets of it."""

    device: str
    threads: int
    actor: dict[str, float]  # Ray's options
    init: dict[str, Any]  # of `ray.init`
    environment: dict[str, str]  # meanwhile


def plan(run: Run, clients: int, there: Sequence[str]) -> Plan:
    """What the config says, for so many clients and the devices of this machine (`placement.present`).

    Raises:
        FedclError: a device is not there, or the CPU is to work beside GPUs.
    """
    paths = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}  # what we import, actors can
    if run.address:
        device, threads = "cuda:0" if "cuda" in (run.devices or run.device) else "cpu", max(run.threads, 1)
        theirs = {name: value for name, value in os.environ.items() if name.startswith(("FLWR_", "HF_"))}
        theirs |= paths | {"OMP_NUM_THREADS": str(threads)}
        init: dict[str, Any] = {"address": run.address, "runtime_env": {"env_vars": theirs}}
        environment = _QUIET
    else:
        slots = placement.place(run, [1.0] * clients, there).slots
        device, threads = slots[0].inner, slots[0].threads
        gpus = {s.device: s.environment["CUDA_VISIBLE_DEVICES"] for s in slots if s.device.startswith("cuda:")}
        if len({slot.device for slot in slots}) > max(len(gpus), 1):
            raise FedclError(f"run.devices: {run.devices!r}: Ray takes GPUs or the CPU, not both")
        init = {"address": "local", "num_cpus": threads * len(slots), "num_gpus": len(gpus), "include_dashboard": False}
        # Actors inherit ours: they start faster so than with an environment from Ray.
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus.values())}
        environment = {**slots[0].environment, **visible, **paths, **_QUIET, **_OFFLINE}
    # Ray counts in ten-thousandths: rounded down, so that all fit. A killed actor, and its message, get another try.
    gpu = 10_000 // run.clients_per_device / 10_000 if device.startswith("cuda") else 0
    actor = {"num_cpus": threads, "num_gpus": gpu, "max_restarts": -1, "max_task_retries": 1}
    return Plan(device, threads, actor, init, environment)


def run(launch: Launch) -> None:
    """Start Ray or join it, let Flower make its actors, and serve them from here; nothing of Ray outlives this call."""
    config, limits = launch.config, launch.config.federation
    planned = plan(config.run, launch.clients, placement.present())
    # The first puts back what was there, the second replaces Ray's own.
    with _terminable(), _ray(planned, launch.tell) as ray, _terminable(), _data(launch) as data:
        there = ray.cluster_resources()
        needs = {"CPU": planned.actor["num_cpus"], "GPU": planned.actor["num_gpus"]}
        actors = int(min(there.get(kind, 0) / need for kind, need in needs.items() if need))
        where = f" of the cluster {config.run.address}" if config.run.address else ""
        if not actors:
            raise FedclError(f"there is no room{where} for a client, which needs {needs}; there is {there}")
        launch.tell(f"placement: {actors} Ray actors{where} on {planned.device}, each for any hospital")
        launch.run.write("placement.json", json.dumps({"actors": actors, "each": planned.actor}, indent=2))
        store = str(launch.run.path.absolute() / "clients")
        setup = Setup(config.model_dump_json(), data, store, planned.device, planned.threads)
        app = client_app(setup, limits.client_timeout or limits.timeout)  # after the latter, nobody waits for it
        with _grid(ray, app, launch.clients, planned.actor) as grid:
            local.serve(apps.server_app(launch.clients, launch.serve, _POLL), grid, grid.run.run_id)


@contextmanager
def _ray(planned: Plan, tell: Callable[[str], None]) -> Iterator[Any]:
    """Ray, begun here or joined."""
    address, changes = planned.init["address"], planned.environment
    if address == "local" and _first():
        changes = changes | _PRIVATE
    elif address == "local":
        tell("Ray was imported before the run: it listens on all interfaces, and wants no password")
    before = {name: os.environ[name] for name in changes if name in os.environ}
    os.environ.update(changes)
    try:
        ray = importlib.import_module("ray")
        if ray.is_initialized():
            raise FedclError("Ray runs in this process already; ray.shutdown() ends it")
        host, colon, port = address.rpartition(":")
        if colon:
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself tries for many minutes
        ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **planned.init)
    except ImportError as error:
        raise FedclError("--runtime ray needs Ray; pip install 'fedcl[ray]'") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise FedclError(f"Ray at {address!r}: {error}") from error
    finally:
        for name in changes:
            os.environ.pop(name, None)
        os.environ.update(before)
    try:
        yield ray
    finally:
        ray.shutdown()


@functools.cache
def _first() -> bool:
    """Whether Ray reads our switches: it does so once, when it is imported."""
    return "ray" not in sys.modules


def _terminable() -> AbstractContextManager[None]:
    """SIGTERM unwinds, so that Ray ends and the data are deleted."""
    return _handled(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


@contextmanager
def _handled(number: signal.Signals, handler: Any) -> Iterator[None]:
    """A signal has this handler in the block, if this thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def _data(launch: Launch) -> Iterator[str]:
    """The federation in a file that only this user can read."""
    path = launch.run.path.absolute() / ".federation"
    path.unlink(missing_ok=True)  # of a run that was killed
    try:
        with open(path, "xb", opener=functools.partial(os.open, mode=0o600)) as file:
            shared.write(launch.federation, file)
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _grid(ray: Any, app: ClientApp, clients: int, actor: dict[str, float]) -> Iterator[Grid]:
    """The Grid of Flower's simulation, which runs in a thread until the block ends."""
    try:
        from flwr.simulation import run_simulation
    except ImportError as error:
        raise FedclError("this Flower has no run_simulation; take --runtime processes or superlink") from error
    door: queue.SimpleQueue[Grid | BaseException] = queue.SimpleQueue()
    over, server, log = threading.Event(), ServerApp(), logging.getLogger("flwr")

    @server.main()
    def lend(grid: Grid, context: Context) -> None:
        door.put(grid)
        over.wait()

    def simulate() -> None:
        try:
            run_simulation(server, app, clients, backend_config={"client_resources": {**actor}})
        except BaseException as error:
            door.put(error)

    thread, level = threading.Thread(target=simulate, daemon=True), log.level
    if "FLWR_LOG_LEVEL" not in os.environ:
        log.setLevel(logging.CRITICAL + 1)  # what concerns the run is in its faults; the rest is a deprecation
    try:
        thread.start()
        grid = door.get()
        if isinstance(grid, BaseException):
            raise FedclError(f"Flower's simulation does not start: {grid}") from grid
        yield grid
    finally:
        with _handled(signal.SIGINT, signal.SIG_IGN):  # a few seconds, that nothing of Ray be left
            over.set()
            # Flower waits for its actors without limit, and keeps them to itself: here they are found and ended.
            for handle in [thing for thing in gc.get_objects() if type(thing) is ray.actor.ActorHandle]:
                ray.kill(handle)
            thread.join()
            log.setLevel(level)
