"""A worker process as its parent sees it: started with an environment of its own, spoken to over a pipe, replaceable.

The process runs `fedcl.runtime.work`, or another program that reads the same pipe. It lives no longer than its parent:
its standard input is a lifeline that the system closes when the parent ends, however that ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flwr.app import Context, Message

SURVEY = "query.survey"


@dataclass(frozen=True)
class Setup:
    """What a worker needs before its first message; small, the data lie in shared memory."""

    config: str  # JSON
    data: (
        int | str | None
    )  # the federation: an inherited descriptor, a path (`runtime.shared`), or built from the config
    store: str  # folder of the clients' memories
    device: str
    threads: int
    client: int = -1  # where the hospital holds its own data: which it is,
    own: str = ""  # their folder,
    described: str = ""  # and the federation as the server describes it, JSON


@dataclass(frozen=True)
class Survey:
    """A question about a hospital's own data, before there is a federation."""

    config: str  # JSON
    own: str
    client: int
    name: str


class Worker:
    """One process that does one message at a time.

    Args:
        setup: what it is told first; None is not known yet: it imports torch meanwhile.
        environment: what differs from ours; the process sees it before its first import.
        log: file that its output is appended to.
        program: the module that it runs.
    """

    def __init__(
        self, setup: Setup | None, environment: Mapping[str, str], log: Path, program: str = "fedcl.runtime.work"
    ) -> None:
        self.log = log
        self.ready = False
        self.busy: str | None = None  # the id of the message that it is at
        self.deadline = float("inf")
        ours, theirs = socket.socketpair()
        # What this process can import, a worker can too.
        paths = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        inherited = [theirs.fileno(), *([setup.data] if setup and isinstance(setup.data, int) else [])]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output, theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", program, str(theirs.fileno())],
                env={**os.environ, **paths, **environment},
                pass_fds=inherited,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the parent alone
            )
        self.connection: Connection[Any, Any] = Connection(ours.detach())
        if setup:
            self.setup(setup)

    def setup(self, setup: Setup) -> None:
        """Tell it what to work on; it says when it is ready."""
        self.ready = False
        self.connection.send(setup)

    def ask(self, identity: str, *question: Any, seconds: float = 0.0) -> None:
        """Hand it a message and a context; the answer is `receive`d when `connection` has something to read."""
        self.busy, self.deadline = identity, time.monotonic() + (seconds or float("inf"))
        self.connection.send(question)

    def receive(self) -> Any:
        """What it has sent: "ready" once, then an `Outcome` for each message.

        Raises:
            EOFError, OSError: it has ended.
        """
        answer = self.connection.recv()
        if not self.ready:
            self.ready = True
        else:
            self.busy, self.deadline = None, float("inf")
        return answer

    def kill(self) -> None:
        """End it now, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        if self.process.stdin:
            self.process.stdin.close()

    def obituary(self) -> str:
        """How it ended, with the last line that it wrote."""
        code = self.process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"its worker {how}" + (f": {last}" if (last := self.last_line()) and code > 0 else "")

    def last_line(self) -> str:
        """The last line of its log."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""


@dataclass(frozen=True)
class Outcome:
    """What came of a message: a reply and the client's new Flower state, or why there is none."""

    reply: Message | None
    context: Context | None
    error: str = ""
    fatal: bool = False  # the process is of no further use, and ends
