"""Clients on a Flower deployment: this process is the server, and reaches the SuperLink through a thin ServerApp.

`flwr run` submits a bundle of two one-line apps; Flower starts the ServerApp on the SuperLink's machine, which is this
one, and it connects back here over a socket (`runtime.relay`). So a run on real hospitals has its directory, its
progress and its Ctrl-C where the command was typed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

import fedcl
from fedcl.config import Config
from fedcl.contracts import FedclError
from fedcl.holdings import Holding, told
from fedcl.runtime import apps, compat, exchange, flower, local, packing
from fedcl.runtime.apps import Launch
from fedcl.runtime.exchange import Roll
from fedcl.runtime.worker import SURVEY

_CALL_BACK = 120.0  # seconds for the ServerApp to start
_ANSWER = 300.0  # seconds for the SuperLink to take or give messages
_POLL = 0.3  # seconds between two looks for replies
_LULL = 20.0  # seconds of silence after which a hospital is asked whether it is at work


class RelayGrid(Grid):
    """The Grid of a ServerApp in another process.

    Args:
        connection: to `relay.main`.
    """

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        who = self._hear()
        compat.identify(who["run_id"], who["node_id"])
        self._run = compat.empty_run(who["run_id"])

    def set_run(self, run: compat.Run) -> None:
        """Nothing to do: there is one run."""

    @property
    def run(self) -> compat.Run:
        """The one run."""
        return self._run

    def create_message(  # noqa: D102
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Those that are connected now."""
        return list(self._call("nodes", None))

    def push_messages(self, messages: Iterable[Message]) -> Sequence[str]:
        """Send; returns their ids."""
        heads = ((m, m.metadata) for m in messages)
        return list(
            self._call("push", [(packing.pack(m.content), d.dst_node_id, d.message_type, d.group_id) for m, d in heads])
        )

    def pull_messages(self, message_ids: Iterable[str]) -> Sequence[Message]:
        """Replies that are there by now."""
        replies = self._call("pull", list(message_ids))
        return [_unpacked(reply) for reply in replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Sequence[Message]:
        """Push, then pull until all have answered or time is up."""
        return local.send_and_receive(self, messages, timeout, _POLL)

    def close(self, error: str = "") -> None:
        """Let the ServerApp end, well or with an error."""
        with contextlib.suppress(OSError):
            self._connection.send(("done", error))
        self._connection.close()

    def _call(self, what: str, given: Any) -> Any:
        try:
            self._connection.send((what, given))
        except OSError as error:
            raise _gone() from error
        well, result = self._hear()
        if not well:
            raise FedclError(f"the SuperLink refused: {result}")
        return result

    def _hear(self) -> Any:
        if not wait([self._connection], timeout=_ANSWER):
            raise FedclError(
                f"the SuperLink did not answer within {_ANSWER:g} s; the same command goes on with the run"
            )
        try:
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise _gone() from error


def run(launch: Launch) -> None:
    """Submit the run to a SuperLink and serve it from here: returns when the ServerApp does."""
    federation = launch.config.federation
    needed = max(1, math.ceil(federation.quorum * launch.clients))
    app = apps.server_app(launch.clients, launch.serve, _POLL, federation.join_timeout, needed, _LULL)
    described = json.dumps(told(launch.federation)) if launch.config.data.own else ""
    with _session(launch.config, launch.run.identity(), described, launch.tell) as grid:
        local.serve(app, grid, grid.run.run_id)


def survey(config: Config) -> list[Holding]:
    """What every hospital says of its own data, by client.

    Raises:
        FedclError: not all of them are there, or one has no usable data.
    """
    count, patience = config.federation.clients, config.federation.join_timeout
    found: dict[int, Holding] = {}
    with _session(config, "", "", lambda text: None) as grid:
        roll, end = Roll(grid, SURVEY), time.monotonic() + patience
        while len(found) < count:
            for _, reply in roll.look():
                if reply.has_content():
                    client = exchange.identity(reply.content)
                    if client >= count:
                        raise FedclError(f"a hospital says that it is client {client}; there are {count} (--clients)")
                    found[client] = Holding.unpack(str(reply.content.config_records["identity"]["holding"]))
                elif not compat.unavailable(reply):
                    raise FedclError(f"a hospital cannot say what it holds: {compat.reason(reply)}")
            if time.monotonic() > end:
                missing = sorted(set(range(count)) - set(found))
                raise FedclError(f"hospitals {missing} of {count} did not show up within {patience:g} s")
            time.sleep(_POLL)
    return [found[client] for client in range(count)]


@contextmanager
def _session(config: Config, run: str, described: str, tell: Callable[[str], None]) -> Iterator[RelayGrid]:
    """The Grid of a Flower run: submitted at the start, ended at the end, as failed where the block raises."""
    name, home = _connection(config.run.connection)
    environment = flower.environment(home)
    with tempfile.TemporaryDirectory(prefix="fedcl-") as private, _door(Path(private)) as (door, place):
        bundle = Path(private) / "fedcl_run"
        given = {"config": config.model_dump_json(), "run": run, "federation": described, "simulate": place}
        given["fedcl"] = fedcl.__version__
        _bundle(bundle, given)
        number = _submit(bundle, name, environment)
        tell(f"run {number} of the SuperLink {name!r}")
        grid = RelayGrid(_called_back(door, lambda: _story(number, name, environment)))
        try:
            yield grid
        except BaseException as error:
            grid.close(f"{type(error).__name__}: {error}")
            raise
        grid.close()


def _connection(given: str) -> tuple[str, Path]:
    """A Flower connection's name and the Flower home that describes it; `given` may be a deployment's folder."""
    for folder in (Path(given) / "server", Path(given)):
        if (folder / "server.toml").exists():
            return flower.CONNECTION, folder / "flower"
    home = Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr"))
    text = (home / "config.toml").read_text(encoding="utf-8") if (home / "config.toml").exists() else ""
    if f"[superlink.{given}]" not in text:
        raise FedclError(
            f"run.connection: {home / 'config.toml'} knows no connection {given!r}; give the folder that "
            "`fedcl deploy init` wrote, or set FLWR_HOME"
        )
    return given, home


def _bundle(folder: Path, config: Mapping[str, str]) -> None:
    """The Flower app that is sent to every node: two imports. fedcl itself is installed there."""
    package = folder / "fedcl_run"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for side in ("client", "server"):
        (package / f"{side}.py").write_text(f"from fedcl.runtime import relay\n\napp = relay.{side}\n")
    lines = [f"{key} = {json.dumps(value)}" for key, value in config.items()]
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "fedcl-run"\nversion = "{fedcl.__version__}"\nlicense = "Apache-2.0"\n'
        'description = "Hands Flower messages to fedcl"\n'
        '[tool.flwr.app]\npublisher = "fedcl"\n'
        '[tool.flwr.app.components]\nserverapp = "fedcl_run.server:app"\nclientapp = "fedcl_run.client:app"\n'
        "[tool.flwr.app.config]\n" + "\n".join(lines) + "\n"
    )


def _submit(bundle: Path, name: str, environment: Mapping[str, str]) -> int:
    """`flwr run`: the number of the run."""
    done = _flwr(["run", str(bundle), name, "--format", "json"], environment)
    found = re.search(r'"run-id":\s*"?(\d+)', done)
    if not found:
        raise FedclError(f"the SuperLink {name!r} did not take the run: {done.strip()[-1000:]}")
    return int(found[1])


def _flwr(words: Sequence[str], environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            [flower.command("flwr"), *words], env=dict(environment), capture_output=True, text=True, timeout=120,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise FedclError(
            f"`flwr {words[0]}` did not end within {error.timeout:g} s; does the SuperLink run?"
        ) from error
    return done.stdout + done.stderr


def _story(number: int, name: str, environment: Mapping[str, str]) -> str:
    """What Flower has to say of a run: its last lines of log."""
    lines = _flwr(["log", str(number), name, "--show"], environment).strip().splitlines()
    return "\n".join(lines[-8:])


@contextmanager
def _door(folder: Path) -> Iterator[tuple[socket.socket, str]]:
    place = str(folder / "simulate")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(place)
        door.listen(1)
        yield door, place


def _called_back(door: socket.socket, story: Any) -> Connection[Any, Any]:
    """The ServerApp's connection."""
    door.settimeout(_CALL_BACK)
    try:
        visitor, _ = door.accept()
    except TimeoutError:
        raise FedclError(
            f"the ServerApp did not start within {_CALL_BACK:g} s. It must run on this machine, and find fedcl "
            f"({Path(sys.executable).parent}) and Flower's commands on the SuperLink's PATH. Flower says:\n{story()}"
        ) from None
    visitor.settimeout(None)
    return Connection(visitor.detach())


def _unpacked(reply: Message) -> Message:
    """A reply as its sender wrote it; what cannot be unpacked stays, and is refused where answers are read."""
    try:
        return compat.request(reply, packing.unpack(reply.content)) if reply.has_content() else reply
    except (KeyError, ValueError, TypeError):
        return reply


def _gone() -> FedclError:
    return FedclError(
        "the SuperLink or its ServerApp has ended; when it is back, the same command goes on with the run"
    )
