"""What runs in a hospital: its SuperNode, and one warm worker that keeps torch imported and the data loaded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import tempfile
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from flwr.app import Context, Message

from fedcl.config import Config
from fedcl.deploy import launcher, nodes
from fedcl.deploy.keeper import Keeper, Stop
from fedcl.deploy.nodes import HospitalNode
from fedcl.runtime import compat, flower, packing
from fedcl.runtime.exchange import IDENTIFY
from fedcl.runtime.worker import SURVEY, Outcome, Setup, Survey, Worker

_SILENT = 30.0  # seconds for a visitor to say what it came for
_LOOK = 0.5  # seconds between two looks at the SuperNode
# Flower 1.41 keeps a message that it says it ignores, because its run ended on the way: from then on each answer leaves
# only when the next message comes, and never in time. A SuperNode that starts anew has forgotten it.
_LOST = b"status. Ignoring message"


class Desk:
    """Takes the messages that Flower's short-lived client processes bring, and has the worker answer them.

    Args:
        folder: the hospital's, with hospital.toml.
        keeper: for the worker's process id.
    """

    def __init__(self, folder: Path, keeper: Keeper) -> None:
        self._folder, self._keeper = folder, keeper
        self._node = nodes.read(HospitalNode, folder)
        self._digest = ""  # of the setup that the worker has
        self._worker = self._start()

    def answer(self, message: Message, context: Context) -> Outcome:
        """The worker's answer; a worker that ends or takes too long is replaced."""
        try:
            config = Config.model_validate_json(str(context.run_config["config"]))
        except ValueError as error:
            return Outcome(None, None, f"the run's config cannot be read here: {error}")
        if (why := self._node.refuses(config)) and message.metadata.message_type != IDENTIFY:
            return Outcome(None, None, why)
        seconds = config.federation.client_timeout
        try:
            if message.metadata.message_type == SURVEY:
                node = self._node
                name = node.name or f"hospital {node.index}"
                question = Survey(str(context.run_config["config"]), node.data, node.index, name)
                self._worker.ask("survey", question, message, context)
            else:
                self._prepare(context)
                self._worker.ask("message", message, context)
            answer = self._hear(seconds or config.federation.timeout)
        except (EOFError, OSError):
            why = self._worker.obituary()
        except TimeoutError as error:
            why = str(error)
        else:
            if not answer.fatal:
                return answer  # type: ignore[no-any-return]
            why = answer.error
        self.close()
        self._worker = self._start()
        return Outcome(None, None, why)

    def close(self) -> None:
        """End the worker."""
        self._worker.kill()

    def _start(self) -> Worker:
        self._digest = ""
        worker = Worker(None, {}, self._folder / "logs" / "worker.log")
        self._keeper.note("worker", worker.process.pid)
        return worker

    def _prepare(self, context: Context) -> None:
        """Give the worker the run's config, unless it has that already."""
        key, text = str(context.run_config["run"]), str(context.run_config["config"])
        digest = hashlib.sha256(f"{key} {text}".encode()).hexdigest()
        if digest == self._digest:
            return
        if self._digest:  # another run's data go before this one's come
            self.close()
            self._worker = self._start()
        store = self._folder / "store" / key
        node, described = self._node, str(context.run_config["federation"])
        setup = Setup(text, None, str(store.absolute()), node.device, node.threads, node.index, node.data, described)
        self._worker.setup(setup)
        self._hear(node.start_timeout)
        self._digest = digest

    def _hear(self, seconds: float) -> Any:
        if not wait([self._worker.connection], timeout=seconds):
            raise TimeoutError(f"no answer within {seconds:g} s")
        return self._worker.receive()


def run(folder: Path) -> None:
    """Run a hospital until SIGTERM or Ctrl-C: the SuperNode and the worker are started again when they end."""
    folder = folder.absolute()
    node = nodes.read(HospitalNode, folder)
    keeper = Keeper(folder)
    # A socket's path may have 100 letters at most, and nobody else may enter its folder.
    with tempfile.TemporaryDirectory(prefix="fedcl-") as private, socket.socket(socket.AF_UNIX) as door:
        place = str(Path(private) / "worker")
        door.bind(place)
        door.listen()
        door.settimeout(_LOOK)
        environment = flower.environment(folder / "flower")
        stubs, command = launcher.install(Path(private))
        keeper.start("launcher", command, environment)
        path = os.pathsep.join([str(stubs), environment["PATH"]])
        keeper.start("supernode", _supernode(folder, node, place), environment | {"PATH": path}, _LOST)
        desk = Desk(folder, keeper)
        try:
            while True:
                keeper.look()
                with contextlib.suppress(TimeoutError):
                    _serve(desk, door.accept()[0])
        except Stop:
            return
        finally:
            desk.close()
            keeper.close()


def _serve(desk: Desk, visitor: socket.socket) -> None:
    """One message of one visitor; one that goes away early takes its message along."""
    visitor.settimeout(None)
    with Connection(visitor.detach()) as connection, contextlib.suppress(EOFError, OSError):
        if not connection.poll(_SILENT):  # others wait behind it
            return
        message, context = connection.recv()
        outcome = desk.answer(compat.request(message, packing.unpack(message.content)), context)
        if outcome.reply is not None and outcome.reply.has_content():
            outcome = replace(outcome, reply=compat.request(outcome.reply, packing.pack(outcome.reply.content)))
        connection.send(outcome)


def _supernode(folder: Path, node: HospitalNode, place: str) -> list[str]:
    """The SuperNode's command line."""
    config = {"partition-id": node.index, "num-partitions": node.hospitals, "worker": place}
    arguments = [flower.command("flower-supernode"), "--superlink", node.superlink, "--port", str(node.port)]
    arguments += ["--node-config", " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())]
    if node.insecure:
        return [*arguments, "--insecure"]
    key = folder / "hospital.key"
    return [*arguments, "--root-certificates", str(folder / "ca.crt"), "--auth-supernode-private-key", str(key)]
