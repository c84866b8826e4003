"""What only a GPU can show; all of it skips without one. `benchmarks/gpu.py` runs these, with figures beside them."""

from __future__ import annotations

import json

import pytest
import torch
from small import assert_same, model

from fedcl import client, plugins
from fedcl.contracts import Method
from fedcl.simulation import simulate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
GPU = {"device": "cuda:0"}
SLOTS = {"runtime": "processes", "device": "cuda:0", "devices": "cuda:0", "clients_per_device": 2}


def test_a_gpu_comes_to_what_the_cpu_does(run):
    host, device = model(run("cpu")), model(run("gpu", run=GPU))
    for name, value in host.items():
        torch.testing.assert_close(device[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", plugins.names("methods"))
def test_every_method_runs_there(run, method):
    host, device = run("cpu", method=method), run("gpu", method=method, run=GPU)
    assert abs(host.metrics["average_accuracy"] - device.metrics["average_accuracy"]) < 0.1


def test_worker_processes_on_a_gpu_do_what_one_process_does(small, tmp_path):
    one = simulate(small(run={"output": str(tmp_path / "one"), **GPU}))
    many = simulate(small(run={"output": str(tmp_path / "many"), **SLOTS}))
    assert_same(one, many)
    placed = json.loads((tmp_path / "many/placement.json").read_text())
    assert [slot["environment"]["CUDA_VISIBLE_DEVICES"] for slot in placed["slots"]] == ["0", "0"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
def test_two_devices_do_what_one_does(small, tmp_path):
    one = simulate(small(run={"output": str(tmp_path / "one"), **GPU}))
    two = simulate(small(run={"output": str(tmp_path / "two"), **SLOTS, "devices": "auto", "clients_per_device": 1}))
    assert_same(one, two)


def test_no_step_waits_for_the_device(run, monkeypatch):
    """From a round's second step on, anything that copies to the host is an error of torch's own."""
    take = client.step

    def strict(optimizer):
        torch.cuda.set_sync_debug_mode("error")
        take(optimizer)

    keep = client.Client._fit

    def fit(self, *arguments):
        total = torch.Tensor.__float__

        def read(tensor):
            torch.cuda.set_sync_debug_mode("default")
            return total(tensor)

        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "__float__", read)  # the round's loss, read once at its end
            try:
                return keep(self, *arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(client, "step", strict)
    monkeypatch.setattr(client.Client, "_fit", fit)
    result = run("run", method="finetune", train={"epochs": 1}, run=GPU)
    assert not [record for record in result.records if record.phase == "fault"]


def test_bf16_learns_as_well(run):
    plain, half = run("float32", run=GPU), run("bf16", run={**GPU, "precision": "bf16"})
    assert half.metrics["average_accuracy"] == pytest.approx(plain.metrics["average_accuracy"], abs=0.05)
    assert any(not torch.equal(value, model(plain)[name]) for name, value in model(half).items())
    assert all(value.dtype == torch.float32 for value in model(half).values() if value.is_floating_point())


class Greedy(Method):
    """Wants more memory than any device has, once, at client 1."""

    def begin_task(self, ctx, params, memory):
        if (ctx.client, ctx.stage) == (1, 1):
            torch.empty(1 << 45, device=next(iter(params.values())).device)
        return memory


def test_a_device_without_memory_left_costs_one_answer(small, tmp_path):
    result = simulate(small(method="gpu.test_gpu:Greedy", run={"output": str(tmp_path / "run"), **SLOTS}))
    faults = [record for record in result.records if record.phase == "fault"]
    assert {(fault.stage, fault.client) for fault in faults} == {(1, 1)}
    assert all("out of memory" in fault.note for fault in faults)
