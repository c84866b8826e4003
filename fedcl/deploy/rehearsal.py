"""A whole deployment on this machine, on loopback: started, looked at, and stopped by process ids."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from fedcl.deploy import nodes
from fedcl.deploy.nodes import ServerNode
from fedcl.errors import FedclError
from fedcl.runtime import flower

_START = 120.0  # seconds for all nodes to be on-line
_GRACE = 20.0  # seconds for a node to stop


class Process(NamedTuple):
    """One process of a node."""

    node: str
    name: str
    pid: int
    alive: bool


def up(folder: Path, tell: Callable[[str], None] = lambda text: None) -> None:
    """Start the server and every hospital, and wait until all are connected.

    Raises:
        FedclError: something of it runs already, or does not come up; then nothing is left running.
    """
    server = nodes.read(ServerNode, folder / "server")
    if running := [process for process in status(folder) if process.alive]:
        raise FedclError(f"{running[0].node} runs already (process {running[0].pid}); `fedcl deploy down {folder}`")
    begin, date = time.monotonic(), datetime.now(UTC)
    try:
        started = {"server": _start(folder / "server", "server")}
        tell(f"server      {server.bind}:{server.port}")
        _wait(started, lambda: (folder / "server/pids/ready").exists(), "the server did not come up")
        for index in range(server.hospitals):
            started[f"hospital-{index}"] = _start(folder / f"hospital-{index}", "hospital")
        _wait(started, lambda: _online(folder, date) >= server.hospitals, "not every hospital is on-line")
    except BaseException:
        down(folder)
        raise
    tell(f"hospitals   {server.hospitals} on-line after {time.monotonic() - begin:.1f} s")


def status(folder: Path) -> list[Process]:
    """The processes that the nodes of a deployment have noted down."""
    found = []
    for place in sorted([folder / "server", *folder.glob("hospital-*")]):
        for file in sorted((place / "pids").glob("*")):
            if (text := file.read_text(encoding="utf-8")).isdigit():
                found.append(Process(place.name, file.name, int(text), _is_ours(int(text), place)))
    return found


def down(folder: Path) -> list[Process]:
    """Stop what runs; returns what that was."""
    running = [process for process in status(folder) if process.alive]
    for mine in (False, True):  # hospitals first: a SuperNode takes leave, or its key is refused for a minute
        _stop([process for process in running if (process.node == "server") == mine])
    for file in [f for place in folder.iterdir() if place.is_dir() for f in (place / "pids").glob("*")]:
        file.unlink(missing_ok=True)
    return running


def _start(place: Path, what: str) -> subprocess.Popen[bytes]:
    (place / "logs").mkdir(exist_ok=True)
    with (place / "logs" / "keeper.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedcl", "deploy", what, str(place.resolve())],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    threading.Thread(target=process.wait, daemon=True).start()  # it is ours to bury, where we live longer than it
    return process


def _wait(started: dict[str, subprocess.Popen[bytes]], there: Callable[[], bool], trouble: str) -> None:
    end = time.monotonic() + _START
    while not there():
        for name, process in started.items():
            if process.poll() is not None:
                log = Path(str(process.args[-1])) / "logs" / "keeper.log"  # type: ignore[index]
                lines = log.read_text(encoding="utf-8").strip().splitlines()
                raise FedclError(f"{name} ended: {lines[-1] if lines else 'without a word'}")
        if time.monotonic() > end:
            raise FedclError(f"{trouble} within {_START:g} s; the nodes' logs folders say why")
        time.sleep(0.1)


def _online(folder: Path, since: datetime) -> int:
    """How many hospitals have connected since then."""
    done = subprocess.run(
        [flower.command("flwr"), "supernode", "ls", flower.CONNECTION, "--format", "json"],
        env=flower.environment(folder / "server" / "flower"), capture_output=True, text=True, timeout=60, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        listed = json.loads(done.stdout)
    except ValueError:
        return 0
    first = f"{since:%Y-%m-%d %H:%M:%S}"  # the SuperLink keeps nodes of an earlier start for a minute
    return sum(node["status"] == "online" and node["online-at"] >= first for node in listed.get("nodes", []))


def _stop(processes: list[Process]) -> None:
    """Ask keepers, who stop their own; then whatever a killed keeper left; then all."""
    keepers = [process for process in processes if process.name == "keeper"]
    for group in (keepers, processes):
        _signal(group, signal.SIGTERM)
        end = time.monotonic() + _GRACE
        while any(_alive(process.pid) for process in group) and time.monotonic() < end:
            time.sleep(0.05)
    _signal(processes, signal.SIGKILL)


def _signal(processes: list[Process], number: signal.Signals) -> None:
    for process in processes:
        if _alive(process.pid):
            os.kill(process.pid, number)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return _exists(pid) if not Path("/proc/self").exists() else False


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _is_ours(pid: int, place: Path) -> bool:
    """Whether a process is alive and still the one that was noted down: ids are used again after a restart."""
    if not _alive(pid):
        return False
    try:
        here = str(place.resolve())
        return here in os.readlink(f"/proc/{pid}/fd/1") or here.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return not Path("/proc/self").exists()  # a system without: believe it
