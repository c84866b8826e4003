"""Clients in Ray actors: the numbers of inline, also when an actor is killed; and nothing of Ray is left behind."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from small import assert_same

from fedcl.config import Run
from fedcl.contracts import FedclError, Method
from fedcl.runtime import ray as runtime
from fedcl.simulation import simulate

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),  # nor imported yet: it reads switches
    pytest.mark.filterwarnings("ignore:(unclosed file|subprocess):ResourceWarning"),
]
RAY = {"runtime": "ray", "workers": 2}
SUMS = {"privacy": {"mechanism": "dp-sgd+secagg"}, "mechanisms": {"dp-sgd": {"noise": 1.0}}}  # all kinds of messages
KEPT = {"reset": "never", "optimizer": "adam", "lr": 0.01}  # so that each hospital's own memory matters


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Ray leaves files and processes that have ended to the garbage collector, which is to find them here."""
    yield
    gc.collect()


class Unlucky(Method):
    """Kills its process the first time that client 1 starts the last stage; fails everywhere where nothing mends it."""

    def __init__(self, once: str = "", mended: bool = True) -> None:
        self.once, self.mended = Path(once), mended

    def begin_task(self, ctx, params, memory):
        if ctx.stage == 1 and not self.mended:
            raise RuntimeError("no power")
        if ctx.client == 1 and ctx.stage == 2 and not self.once.exists():
            self.once.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return memory


NAME = f"runtime.test_ray:{Unlucky.__name__}"


def left() -> list[str]:
    """Processes of a Ray that this process has started, a little later: they have its password."""
    token = runtime._PRIVATE["RAY_AUTH_TOKEN"].encode()
    end = time.monotonic() + 10
    while (found := [entry.name for entry in Path("/proc").iterdir() if _has(entry / "environ", token)]) and (
        time.monotonic() < end
    ):
        time.sleep(0.1)
    return found


def _has(file: Path, token: bytes) -> bool:
    try:
        return token in file.read_bytes()
    except OSError:
        return False


def test_ray_gives_the_numbers_of_inline(run, tmp_path):
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "CUDA_VISIBLE_DEVICES", "RAY_AUTH_TOKEN")}
    one, two = run("inline", train=KEPT, **SUMS), run("ray", train=KEPT, **SUMS, run=RAY)
    assert_same(one, two)
    assert not left()
    assert not (tmp_path / "ray/.federation").exists()
    assert {name: os.environ.get(name) for name in before} == before


def test_an_actor_that_is_killed_is_replaced_and_no_sample_counts_twice(run, tmp_path):
    once = tmp_path / "once"
    changes = {"method": NAME, "methods": {NAME: {"once": str(once)}}, "train": KEPT}
    killed = run("ray", **changes, run=RAY)
    assert once.read_text().isdigit()
    assert_same(run("inline", **changes), killed)
    assert not left()


def test_the_servers_error_comes_through_with_what_the_clients_said(small, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    config = small(
        method=NAME, methods={NAME: {"mended": False}}, run={"output": str(tmp_path / "run"), **RAY}
    )  # fmt: skip
    with pytest.raises(FedclError, match=r"stage 2, round 1: 0 of 3 clients .*no power"):
        simulate(config)
    assert not left()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_gpus_are_shared_and_none_takes_too_many():
    there = ["cpu", "cuda:0", "cuda:1", "cuda:2"]
    planned = runtime.plan(Run(devices="cuda:0,cuda:2", clients_per_device=3, threads=2), 50, there)
    assert (planned.device, planned.actor["num_gpus"], planned.actor["num_cpus"]) == ("cuda:0", 0.3333, 2)
    assert (planned.init["num_gpus"], planned.init["num_cpus"]) == (2, 12)
    assert planned.environment["CUDA_VISIBLE_DEVICES"] == "0,2"
    with pytest.raises(FedclError, match="not both"):
        runtime.plan(Run(devices="cpu,cuda:0"), 5, there)
