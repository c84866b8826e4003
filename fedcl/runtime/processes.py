"""Clients in worker processes of this machine, one process for each slot of a device."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from json import dumps
from multiprocessing.connection import wait

from flwr.app import Message

from fedcl.contracts import FedclError
from fedcl.runtime import apps, compat, local, placement, shared
from fedcl.runtime.apps import Launch
from fedcl.runtime.local import LocalGrid
from fedcl.runtime.placement import Placement, Slot
from fedcl.runtime.worker import Outcome, Setup, Worker

_LOOK = 0.05  # seconds that a pull waits for something to happen
_STARTS = 3  # attempts to start a worker, before the run gives up on its device


class ProcessGrid(LocalGrid):
    """Every client is at home on a device, and takes the first of its workers that is free.

    A worker that ends, or is at a message for longer than `patience`, is replaced, and its message answered by an
    error. The clients that took longest last time go first.

    Args:
        places: the slots, and each client's device.
        start: starts a slot's worker.
        patience: seconds for one message; 0 is no limit.
    """

    def __init__(self, places: Placement, start: Callable[[Slot], Worker], patience: float = 0.0) -> None:
        super().__init__(len(places.devices))
        self._places, self._start, self._patience = places, start, patience
        self._homes = dict(zip(self._contexts, places.devices, strict=True))  # node → device
        self._queue: dict[str, Message] = {}
        self._at_work: dict[str, Message] = {}
        self._replies: dict[str, Message] = {}
        self._began: dict[str, float] = {}
        self._took: dict[tuple[int, str], float] = {}  # (node, kind of message) → seconds, last time
        self._failures = [0] * len(places.slots)
        self.workers = [start(slot) for slot in places.slots]

    def push_messages(self, messages: Iterable[Message]) -> Sequence[str]:
        """Accept messages; what is left of earlier ones is void: nobody waits for it any more."""
        self._queue.clear()
        self._replies.clear()
        batch = {compat.stamp(message): message for message in messages}
        longest = sorted(batch, key=lambda identity: -self._took.get(_kind(batch[identity]), float("inf")))
        self._queue = {identity: batch[identity] for identity in longest}
        return list(batch)

    def pull_messages(self, message_ids: Iterable[str]) -> Sequence[Message]:
        """Replies to these; waits a moment for one to come."""
        wanted = set(message_ids)
        if not wanted & self._replies.keys():
            self._step(_LOOK)
        return [self._replies.pop(identity) for identity in list(self._replies) if identity in wanted]

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.kill()

    def _step(self, seconds: float) -> None:
        """Hand out what waits, then hear what the workers have to say."""
        self._hand_out()
        heard = wait([worker.connection for worker in self.workers], timeout=seconds)
        for slot, worker in zip(self._places.slots, self.workers, strict=True):
            if worker.connection in heard:
                self._hear(slot, worker)
            elif time.monotonic() > worker.deadline:
                self._replace(slot, worker, f"no answer within {self._patience:g} s (federation.client_timeout)")
        self._hand_out()

    def _hand_out(self) -> None:
        for slot, worker in zip(self._places.slots, self.workers, strict=True):
            if worker.busy or not worker.ready:
                continue
            homes = ((i, m) for i, m in self._queue.items() if self._homes[m.metadata.dst_node_id] == slot.device)
            identity, message = next(homes, ("", None))
            if message is None:
                continue
            del self._queue[identity]
            self._at_work[identity], self._began[identity] = message, time.monotonic()
            try:
                context = self._contexts[message.metadata.dst_node_id]
                worker.ask(identity, message, context, seconds=self._patience)
            except OSError:
                self._replace(slot, worker, worker.obituary())

    def _hear(self, slot: Slot, worker: Worker) -> None:
        identity = worker.busy
        try:
            outcome = worker.receive()
        except (EOFError, OSError):
            self._replace(slot, worker, worker.obituary())
            return
        self._failures[slot.index] = 0
        if identity and isinstance(outcome, Outcome):
            self._finish(identity, outcome)
            if outcome.fatal:  # it ends by itself, and must not be handed anything in the meantime
                self._replace(slot, worker, outcome.error)

    def _finish(self, identity: str, outcome: Outcome) -> None:
        message = self._at_work.pop(identity)
        self._took[_kind(message)] = time.monotonic() - self._began.pop(identity)
        if outcome.reply is None:
            reply = compat.failure(message, outcome.error)
        else:
            reply = outcome.reply
            if outcome.context is not None:
                self._contexts[message.metadata.dst_node_id] = outcome.context
        compat.stamp(reply)
        self._replies[identity] = reply

    def _replace(self, slot: Slot, worker: Worker, why: str) -> None:
        """End a worker, answer for it, and start another in its place."""
        worker.kill()
        if worker.busy:
            message = self._at_work.pop(worker.busy)
            self._began.pop(worker.busy)
            reply = compat.failure(message, why, compat.APP_CRASHED)
            compat.stamp(reply)
            self._replies[worker.busy] = reply
        if not worker.ready:
            self._failures[slot.index] += 1
            if self._failures[slot.index] == _STARTS:
                raise FedclError(f"a worker on {slot.device} does not start: {why}; all it said is in {worker.log}")
        self.workers[slot.index] = self._start(slot)


def _kind(message: Message) -> tuple[int, str]:
    return message.metadata.dst_node_id, message.metadata.message_type


def run(launch: Launch) -> None:
    """Place the clients, start the workers, run the ServerApp here; no worker outlives this call."""
    config, federation = launch.config, launch.federation
    work = [sum(float(federation.counts()[h, :, 0].sum()) for h in members) for members in federation.members]
    places = placement.place(config.run, work, placement.present())
    table = places.table(_names(launch))
    launch.tell("placement: " + "; ".join(f"{device}: {hospitals}" for device, hospitals in table))
    stored = {"slots": [asdict(slot) for slot in places.slots], "clients": list(places.devices)}
    launch.run.write("placement.json", dumps(stored, indent=2))
    data = shared.put(federation)

    def start(slot: Slot) -> Worker:
        setup = Setup(config.model_dump_json(), data, str(launch.run.path / "clients"), slot.inner, slot.threads)
        return Worker(setup, slot.environment, launch.run.path / "workers" / f"{slot.index}.log")

    grid = ProcessGrid(places, start, config.federation.client_timeout)
    try:
        local.serve(apps.server_app(launch.clients, launch.serve, poll=0.0), grid)
    finally:
        grid.close()
        os.close(data)


def _names(launch: Launch) -> list[str]:
    """Clients by the names of their hospitals."""
    names, members = launch.federation.names, launch.federation.members
    return [names[hospitals[0]] if len(hospitals) == 1 else "all hospitals" for hospitals in members]
