"""Which worker sees what: over devices that this machine does not have, down to the environment of real processes."""

from __future__ import annotations

import json
import os

import pytest

from fedcl.config import Run
from fedcl.contracts import FedclError
from fedcl.runtime import placement
from fedcl.runtime.worker import Setup, Worker

TWO = ["cpu", "cuda:0", "cuda:1"]


def _place(work, there=TWO, environment=None, cores=8, **run):
    return placement.place(Run(runtime="processes", **run), work, there, environment or {}, cores)


def test_two_devices_two_clients_each():
    placed = _place([1, 1, 1, 1, 1], devices="cuda:0,cuda:1", clients_per_device=2)
    assert [slot.device for slot in placed.slots] == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    assert [slot.inner for slot in placed.slots] == ["cuda:0"] * 4
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in placed.slots] == ["0", "0", "1", "1"]
    assert sorted(map(placed.devices.count, ("cuda:0", "cuda:1"))) == [2, 3]


def test_work_is_spread_not_heads():
    placed = _place([900, 10, 20, 870], devices="auto")
    assert placed.devices[0] != placed.devices[3]
    assert placed.table(["a", "b", "c", "d"]) == [("cuda:0 × 1", "a"), ("cuda:1 × 1", "b, c, d")]


def test_a_second_gpu_is_the_second_of_those_that_we_see():
    placed = _place([1, 1], devices="cuda:1", environment={"CUDA_VISIBLE_DEVICES": "4, GPU-7f"})
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in placed.slots] == ["GPU-7f"]


@pytest.mark.parametrize(
    ("run", "cores", "workers", "threads"),
    [
        ({}, 8, 5, "1"),  # no more than clients
        ({}, 2, 2, "1"),
        ({"threads": 4}, 8, 2, "4"),
        ({"threads": 0}, 10, 5, "2"),
        ({"workers": 3}, 2, 3, "1"),
        ({"threads": 16}, 2, 1, "16"),
    ],
)
def test_workers_on_the_cpu(run, cores, workers, threads):
    placed = _place([1] * 5, ["cpu"], cores=cores, **run)
    assert [slot.environment["OMP_NUM_THREADS"] for slot in placed.slots] == [threads] * workers
    assert all(slot.environment["CUDA_VISIBLE_DEVICES"] == "" for slot in placed.slots)


@pytest.mark.parametrize(
    ("devices", "there", "names"),
    [
        ("auto", TWO, ["cuda:0", "cuda:1"]),
        ("auto", ["cpu"], ["cpu"]),
        ("cpu, cuda", TWO, ["cpu", "cuda:0"]),
        ("cuda:1,cuda:1", TWO, ["cuda:1"]),
    ],
)
def test_names_of_devices(devices, there, names):
    assert placement.parse(devices, there) == names


@pytest.mark.parametrize(("devices", "there"), [("cuda:2", "cpu, cuda:0..1"), ("tpu", "cpu, cuda:0..1")])
def test_an_unknown_device_is_told_with_those_that_are_there(devices, there):
    with pytest.raises(FedclError, match=f"{devices}.*this machine has {there}"):
        placement.parse(devices, TWO)


def test_the_environment_is_there_before_the_first_import(tmp_path, monkeypatch):
    """A real process for each slot of two GPUs that are not there, with a start-up hook that tells what it sees."""
    hook = "import json, os, sys; print(json.dumps([os.environ.get('CUDA_VISIBLE_DEVICES'), 'torch' in sys.modules]))"
    (tmp_path / "sitecustomize.py").write_text(hook + "\nsys.stdout.flush()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    seen = []
    for slot in _place([1, 1], devices="cuda:0,cuda:1").slots:
        log = tmp_path / f"{slot.index}.log"
        worker = Worker(Setup("{}", str(tmp_path / "none"), "", slot.inner, 1), slot.environment, log)
        with pytest.raises((EOFError, OSError)):
            worker.receive()  # there is no such data
        assert "exit code 1" in worker.obituary()
        worker.kill()
        seen.append(json.loads(log.read_text().splitlines()[0]))
        assert not os.path.exists(f"/proc/{worker.process.pid}")
    assert seen == [["0", False], ["1", False]]
