"""Worker processes that are killed, hang or run out of memory, for real: the round goes on, nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from html import unescape
from pathlib import Path

import pytest
from small import assert_same, model, numbers

from fedcl.contracts import FedclError, Method
from fedcl.simulation import simulate


class Unlucky(Method):
    """Does to its own process what a file says, the first time that client 1 trains in the last stage."""

    def __init__(self, what: str = "", once: str = "") -> None:
        self.what, self.once = what, Path(once)

    def begin_task(self, ctx, params, memory):
        if ctx.client == 1 and ctx.stage == 2 and not self.once.exists():
            self.once.write_text(str(os.getpid()))
            _MISHAPS[self.what]()
        return memory


def _out_of_memory():
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


_MISHAPS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda: time.sleep(600),
    "late": lambda: time.sleep(15),
    "memory": _out_of_memory,
    "raise": lambda: {}["the power"],
    "exit": lambda: os._exit(3),
}
SAID = {
    "kill": "killed by SIGKILL",
    "segfault": "killed by SIGSEGV",
    "stop": "no answer within 3 s",
    "sleep": "no answer within 3 s",
    "late": "no answer within 10 s",  # it comes in the next round, and is dropped
    "memory": "out of memory: CUDA out of memory",
    "raise": "KeyError: 'the power'",
    "exit": "exit code 3",
}


def workers(run: Path) -> list[int]:
    """Processes that work for a run directory: those whose log lies there."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(run) in os.readlink(entry / "fd/1"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("what", _MISHAPS)
def test_a_worker_that_fails_costs_one_answer(small, tmp_path, what):
    once, name = tmp_path / "once", "faults.test_workers:Unlucky"
    config = small(
        method=name,
        methods={name: {"what": what, "once": str(once)}},
        federation={
            "client_timeout": 3 if what in ("stop", "sleep") else 0,
            "timeout": 10 if what == "late" else 3600,
        },
        run={"output": str(tmp_path / "run"), "runtime": "processes", "workers": 2},
    )
    result = simulate(config)
    faults = [r for r in result.records if r.phase == "fault"]
    assert [(r.stage, r.client, r.name) for r in faults] == [(2, 1, "missing")]
    (fault,) = faults
    assert SAID[what] in fault.note
    assert SAID[what] in unescape((tmp_path / "run/report.html").read_text())  # who was missing, when and why
    assert not workers(tmp_path / "run")
    if what not in ("raise", "late"):  # another process took its place
        assert not os.path.exists(f"/proc/{once.read_text()}")


def test_all_hospitals_failing_ends_the_run_and_the_same_call_goes_on(run, small, tmp_path):
    whole = run("whole")
    once, name = tmp_path / "once", "faults.test_workers:Broken"
    config = small(
        method=name,
        methods={name: {"mended": str(once)}},
        run={"output": str(tmp_path / "run"), "runtime": "processes", "workers": 2},
    )
    with pytest.raises(FedclError, match=r"stage 2, round 1: 0 of 3 clients .*no power"):
        simulate(config)
    assert not workers(tmp_path / "run")
    once.touch()
    assert numbers(simulate(config)) != numbers(whole)  # another method's; it has come to its end
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "finished"


class Broken(Method):
    """Fails everywhere in the second stage, until it is mended."""

    def __init__(self, mended: str = "") -> None:
        self.mended = Path(mended)

    def begin_task(self, ctx, params, memory):
        if ctx.stage == 1 and not self.mended.exists():
            raise RuntimeError("no power")
        return memory


SCRIPT = "import sys; from fedcl import Config, simulate; simulate(Config.model_validate_json(sys.argv[1]))"


def _begun(config, tmp_path, checkpoints=2):
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", SCRIPT, config.model_dump_json()])
    end = time.monotonic() + 120
    while len(list((tmp_path / "run/checkpoint").glob("*.json"))) < checkpoints and time.monotonic() < end:
        time.sleep(0.01)
    assert workers(tmp_path / "run")
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_the_server_and_the_same_call_goes_on(run, small, tmp_path, number):
    """With optimiser state kept over rounds, so that each hospital's own memory matters."""
    train = {"rounds": 6, "reset": "never", "optimizer": "adam", "lr": 0.01}
    whole = run("whole", train=train)
    place = {"output": str(tmp_path / "run"), "checkpoint_every": 1, "runtime": "processes", "workers": 2}
    config = small(train=train, run=place)
    process = _begun(config, tmp_path)
    process.send_signal(number)
    process.wait(timeout=60)
    end = time.monotonic() + 10
    while workers(tmp_path / "run") and time.monotonic() < end:
        time.sleep(0.05)
    assert not workers(tmp_path / "run")
    assert_same(whole, simulate(config))


def test_a_worker_that_cannot_start_is_an_error_with_what_it_said(small, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'work' in ' '.join(sys.orig_argv): sys.exit('no licence')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = small(run={"output": str(tmp_path / "run"), "runtime": "processes", "workers": 1})
    with pytest.raises(FedclError, match=r"worker on cpu does not start: .*no licence.*0\.log"):
        simulate(config)
    assert not workers(tmp_path / "run")


def test_memories_of_rounds_that_no_checkpoint_names_are_deleted(small, tmp_path):
    train = {"rounds": 5, "reset": "never", "optimizer": "adam", "lr": 0.01}
    place = {"output": str(tmp_path / "run"), "checkpoint_every": 1, "runtime": "processes", "workers": 2}
    result = simulate(small(train=train, run=place))
    for client in range(3):
        assert len(list((tmp_path / f"run/clients/{client}").glob("*.safetensors"))) <= 4
    assert model(result)
