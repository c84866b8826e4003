"""A real SuperLink with TLS and authentication, two SuperNodes, and what can happen to them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.test_workers import SCRIPT
from small import BASE, assert_same, merged

from fedcl.config import Config
from fedcl.contracts import FedclError, Method
from fedcl.deploy import keys, layout, nodes, rehearsal
from fedcl.deploy.nodes import HospitalNode
from fedcl.simulation import simulate

TESTS = Path(__file__).parents[1]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _pid(folder: Path, node: str, name: str) -> int:
    return int((folder / node / "pids" / name).read_text())


def _at_work(folder: Path) -> list[str]:
    """What runs for a deployment, Flower's own processes too: they all write to its logs."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder) in os.readlink(entry / "fd/1"):
                found.append((entry / "cmdline").read_bytes().decode().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    """A deployment that runs, stopped by process ids at the end; nothing of it is left."""
    folder = tmp_path_factory.mktemp("deployment") / "two"
    layout.write(folder, 2, "127.0.0.1", _free_port(), "", insecure=False)
    for index in range(2):
        node = nodes.read(HospitalNode, folder / f"hospital-{index}")
        nodes.write(node.model_copy(update={"port": _free_port(), "start_timeout": 40.0}), folder / f"hospital-{index}")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(TESTS)  # the plug-ins of the tests
    rehearsal.up(folder)
    yield folder
    rehearsal.down(folder)
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    end = time.monotonic() + 30
    while (left := _at_work(folder)) and time.monotonic() < end:  # on a busy machine they take a moment to end
        time.sleep(0.2)
    assert not left


def _config(output: Path, deployment: Path | None, **changes) -> Config:
    place = {"output": str(output), "checkpoint_every": 1}
    if deployment:
        place |= {"runtime": "superlink", "connection": str(deployment)}
    base = merged(BASE, federation={"clients": 2, "join_timeout": 90}, stream={"tasks": 2}, train={"rounds": 1})
    return Config.model_validate(merged(base, run=place, **changes))


def _when(there: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Do something in the background as soon as a condition holds."""

    def wait() -> None:
        end = time.monotonic() + 120
        while not there() and time.monotonic() < end:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_the_server_and_then_the_superlink_are_killed_and_the_numbers_are_those_of_an_inline_run(deployment, tmp_path):
    """With optimiser state kept over rounds, so that each hospital's own memory matters. One long story, for time."""
    train = {"reset": "never", "optimizer": "adam", "lr": 0.01}
    whole = simulate(_config(tmp_path / "inline", None, train=train))
    config = _config(tmp_path / "run", deployment, train=train)
    checkpoints = tmp_path / "run" / "checkpoint"

    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", SCRIPT, config.model_dump_json()])
    _when(lambda: any(checkpoints.glob("*.json")), process.kill).join()
    assert process.wait() == -signal.SIGKILL

    seen = len(list(checkpoints.glob("*.json")))
    superlink = _pid(deployment, "server", "superlink")
    last = (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns
    killer = _when(
        lambda: (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns > last,
        lambda: os.kill(superlink, signal.SIGKILL),
    )
    with pytest.raises(FedclError, match="SuperLink"):
        simulate(config)
    killer.join()
    assert seen
    end = time.monotonic() + 120
    while _pid(deployment, "server", "superlink") == superlink and time.monotonic() < end:
        time.sleep(0.1)
    assert_same(whole, _patient(config))


def _patient(config: Config):
    """The same call again, as a person would whom the message tells to, until the SuperLink is back."""
    for _ in range(10):
        try:
            return simulate(config)
        except FedclError:
            time.sleep(5)
    return simulate(config)


TOPK = {"federation": {"compress": "topk"}, "compression": {"topk": {"keep": 0.2}}}
SUMS = {"privacy": {"mechanism": "dp-sgd+secagg"}, "mechanisms": {"dp-sgd": {"noise": 1.0}, "secagg": {"cohort": 2}}}


@pytest.mark.parametrize("changes", [TOPK, SUMS], ids=["compressed", "private and summed"])
def test_what_goes_over_the_wire_is_what_goes_inline(deployment, tmp_path, changes):
    """With what a hospital still owes in its own store, in the second round; with all phases of a masked sum."""
    changes = merged(changes, train={"rounds": 2}, stream={"tasks": 1, "classes": [[0, 1, 2]]})
    inline = simulate(_config(tmp_path / "inline", None, **changes))
    assert_same(inline, simulate(_config(tmp_path / "run", deployment, **changes)))


class Fateful(Method):
    """Kills its worker in the first stage at client 1; tells in the second that client 0 is at work, and is slow."""

    def __init__(self, folder: str = "") -> None:
        self.folder = Path(folder)

    def begin_task(self, ctx, params, memory):
        if (ctx.client, ctx.stage) == (1, 0) and not (self.folder / "worker").exists():
            (self.folder / "worker").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if (ctx.client, ctx.stage) == (0, 1) and not (self.folder / "supernode").exists():
            (self.folder / "supernode").touch()
            time.sleep(2)
        return memory


def test_a_killed_worker_and_a_killed_supernode_cost_their_answers_and_come_back(deployment, tmp_path):
    name = "faults.test_deployment:Fateful"
    config = _config(
        tmp_path / "run", deployment, method=name, methods={name: {"folder": str(tmp_path)}}, train={"rounds": 2}
    )
    supernode = _pid(deployment, "hospital-0", "supernode")
    killer = _when((tmp_path / "supernode").exists, lambda: os.kill(supernode, signal.SIGKILL))
    result = simulate(config)
    killer.join()
    faults = [(r.stage, r.client, r.note) for r in result.records if r.phase == "fault"]
    assert faults[0][:2] == (0, 1)
    assert "its worker was killed by SIGKILL" in faults[0][2]
    rest = faults[1:]
    assert rest
    assert {fault[:2] for fault in rest} == {(1, 0)}
    assert all("Unavailable" in note or "lost" in note for _, _, note in rest)
    assert _pid(deployment, "hospital-0", "supernode") != supernode


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("a key that is not registered", "Failed to activate SuperNode|not registered|public key"),
        ("another authority's certificate", "CERTIFICATE_VERIFY_FAILED|certificate verify failed|SSL"),
    ],
)
def test_a_stranger_is_not_let_in(deployment, tmp_path, what, said):
    stranger = tmp_path / "hospital-9"
    stranger.mkdir()
    known = nodes.read(HospitalNode, deployment / "hospital-0")
    nodes.write(known.model_copy(update={"index": 9, "port": _free_port()}), stranger)
    keys.node(stranger / "hospital.key", stranger / "hospital.pub")
    if what.startswith("another"):
        keys.authority(stranger)
    else:
        (stranger / "ca.crt").write_bytes((deployment / "hospital-0" / "ca.crt").read_bytes())
    process = subprocess.Popen([sys.executable, "-m", "fedcl", "deploy", "hospital", str(stranger)])
    try:
        log, end = stranger / "logs" / "supernode.log", time.monotonic() + 60
        while time.monotonic() < end and not (log.exists() and re.search(said, log.read_text())):
            assert process.poll() is None
            time.sleep(0.1)
        assert re.search(said, log.read_text())
        assert "SuperNode ID" not in log.read_text()
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert not list((stranger / "pids").iterdir())


def test_a_port_in_use_is_named_and_nothing_is_left(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        layout.write(tmp_path / "d", 1, "127.0.0.1", port, "", insecure=True)
        with pytest.raises(FedclError, match=rf"port {port} of 127.0.0.1.*in use"):
            rehearsal.up(tmp_path / "d")
    assert not [process for process in rehearsal.status(tmp_path / "d") if process.alive]


def test_a_folder_that_is_in_use_is_not_written_over(tmp_path):
    (tmp_path / "something").touch()
    with pytest.raises(FedclError, match="not empty"):
        layout.write(tmp_path, 1, "127.0.0.1", 8000, "", insecure=False)


def test_nobody_there_is_said_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    with pytest.raises(FedclError, match=r"run\.connection: .* knows no connection 'hospitals'.*deploy init"):
        simulate(_config(tmp_path / "run", Path("hospitals")))
