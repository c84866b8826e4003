"""Clients in Ray actors, on this machine or on a Ray cluster: Flower's own simulation.

Flower calls `run_simulation` deprecated in favour of `flwr run`, which fedcl reaches as `--runtime superlink`; every
use of it is in this file. The server stays in the thread that called, as in the other ways to run, so that Ctrl-C and
errors go their usual way; Flower's half works in a thread of its own, and only lends its Grid.

A client that raises, runs out of memory or takes too long is an error for that client alone. An actor that is killed is
started again by Ray and given its message once more: no sample counts twice, since a Job names the memory that it
starts from. A message that ends its actor a second time is an error. An actor that stands still as a whole (SIGSTOP)
answers nothing until the run ends, and its hospitals are missing.

A Ray that is started here listens on the loopback address only, wants a password, and ends with the run. A cluster
(`run.address`) must have the run's directory under the same path on all nodes, for the data and the clients' memories
lie there; Flower fills all of it with actors, so `run.workers` has no say.
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
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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
_SWITCHES = {  # read when Ray is imported or started
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or else Ray warns that this will be its default
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what Ray prints when an actor ends; the run's faults say it
}
_PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on any system: no other machine joins, all ports are the loopback's
    "RAY_AUTH_MODE": "token",  # nor do other users of this machine
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


# ── in the actors ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Desk:
    """What an actor needs to know with every message; small, the data lie in a file."""

    setup: Setup
    written: int  # when the data were: no actor takes those of another run
    patience: float  # seconds for one message
    setting: str  # which says so


_app = functools.lru_cache(maxsize=1)(lambda setup, written: work.build(setup))
_hand = ThreadPoolExecutor(max_workers=1)
_spent = threading.Event()  # this process is of no further use


def client_app(desk: Desk) -> ClientApp:
    """A ClientApp that leaves the work to the one that its process keeps."""
    app = ClientApp()
    act = functools.partial(answer, desk)
    for register in (app.train(), app.evaluate(), app.query("consolidate"), app.query("identify")):
        register(act)
    return app


def answer(desk: Desk, message: Message, context: Context) -> Message:
    """The reply to a message; what goes wrong is an error reply, in Flower's words only if this process ends."""
    if _spent.is_set():
        os._exit(1)  # Ray starts another in its place, and hands it this message
    try:
        app = _app(desk.setup, desk.written)
        outcome = _hand.submit(work.answer, app, message, context).result(desk.patience)
    except TimeoutError:
        outcome = Outcome(None, None, f"no answer within {desk.patience:g} s ({desk.setting})", fatal=True)
    except Exception as error:
        outcome = Outcome(None, None, f"{type(error).__name__}: {error}")
    if outcome.fatal:
        _spent.set()
    return outcome.reply or compat.failure(message, outcome.error)


# ── in the driver ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Share:
    """What one actor gets of a machine."""

    device: str
    threads: int
    gpu: float = 0.0  # of one

    def options(self) -> dict[str, int | float]:
        """Ray's words for it. A killed actor is replaced, and its message tried once more."""
        return {"num_cpus": self.threads, "num_gpus": self.gpu, "max_restarts": -1, "max_task_retries": 1}

    def fits(self, nodes: list[dict[str, Any]]) -> int:
        """How many actors Flower makes on these nodes."""
        alive = [node["Resources"] for node in nodes if node["Resources"]]
        room = [int(n.get("CPU", 0) / self.threads) for n in alive]
        return sum(min(r, int(n.get("GPU", 0) / self.gpu)) if self.gpu else r for r, n in zip(room, alive, strict=True))


def run(launch: Launch) -> None:
    """Start Ray or join it, let Flower make its actors, and serve them from here; nothing of Ray outlives this call."""
    config = launch.config
    with _started(config.run, launch.clients) as (ray, share), _data(launch) as (data, written):
        if not (count := share.fits(ray.nodes())):
            raise FedclError(f"no node of the Ray cluster at {config.run.address} has room for a client: {share}")
        where = f" of the cluster at {config.run.address}" if config.run.address else ""
        launch.tell(f"placement: any client on any of {count} Ray actors{where} ({share.device}, {share.threads} threads)")
        launch.run.write("placement.json", json.dumps({"actors": count, "share": share.options()}, indent=2))
        limit = "client_timeout" if config.federation.client_timeout else "timeout"
        store = str(launch.run.path.absolute() / "clients")
        setup = Setup(config.model_dump_json(), data, store, share.device, share.threads)
        desk = Desk(setup, written, getattr(config.federation, limit), f"federation.{limit}")
        with _quiet(), _grid(ray, client_app(desk), launch.clients, share) as grid:
            local.serve(apps.server_app(launch.clients, launch.serve, _POLL), grid, grid.run.run_id)


@contextmanager
def _grid(ray: Any, app: ClientApp, clients: int, share: Share) -> Iterator[Grid]:
    """The Grid of Flower's simulation, which runs in a thread until the block ends."""
    simulate = _simulation()
    door: queue.SimpleQueue[Grid | BaseException] = queue.SimpleQueue()
    over = threading.Event()
    server = ServerApp()

    @server.main()
    def lend(grid: Grid, context: Context) -> None:
        door.put(grid)
        over.wait()

    def work() -> None:
        try:
            simulate(server, app, clients, backend_config={"client_resources": share.options()})
        except BaseException as error:
            door.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        grid = door.get()
        if isinstance(grid, BaseException):
            raise FedclError(f"Flower's simulation did not start: {grid}") from grid
        yield grid
    finally:
        over.set()
        # Flower waits for its actors without limit, and keeps them to itself: one that hangs must be ended here.
        for actor in [thing for thing in gc.get_objects() if isinstance(thing, ray.actor.ActorHandle)]:
            ray.kill(actor)
        thread.join()


def _simulation() -> Callable[..., None]:
    try:
        from flwr.simulation import run_simulation
    except ImportError as error:
        raise FedclError(
            "this Flower has no run_simulation any more; take --runtime processes, or superlink (see `fedcl deploy`)"
        ) from error
    return run_simulation


@contextmanager
def _started(run: Run, clients: int) -> Iterator[tuple[Any, Share]]:
    """Ray, begun here or joined, and what of it an actor gets."""
    paths = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}  # what we can import, actors can
    given: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if run.address:
        threads = max(run.threads, 1)
        share = Share("cpu", threads)
        passed = {name: value for name, value in os.environ.items() if name.startswith(("FLWR_", "HF_"))}
        environment = _SWITCHES
        given |= {"address": run.address, "runtime_env": {"env_vars": paths | passed | {"OMP_NUM_THREADS": str(threads)}}}
    else:
        slots = placement.place(run, [1.0] * clients, placement.present()).slots
        ...
