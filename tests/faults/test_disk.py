"""Kills, cut checkpoints, full disks, directories of other runs: the documented result, for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from small import assert_same, stop_after

from fedcl.contracts import FedclError
from fedcl.run_dir import RunDir
from fedcl.simulation import Interrupted, simulate

SCRIPT = """
import sys
from fedcl import Config, simulate
simulate(Config.model_validate_json(sys.argv[1]))
"""


def test_kill_9_loses_at_most_a_round(run, small, tmp_path):
    whole = run("whole", train={"rounds": 6})
    config = small(train={"rounds": 6}, run={"output": str(tmp_path / "killed"), "checkpoint_every": 1})
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", SCRIPT, config.model_dump_json()])
    checkpoints, end = tmp_path / "killed" / "checkpoint", time.monotonic() + 120
    while len(list(checkpoints.glob("*.json"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert_same(whole, simulate(config))


def _interrupted(small, tmp_path, monkeypatch, rounds=3):
    config = small(run={"output": str(tmp_path / "cut"), "checkpoint_every": 1})
    stop_after(monkeypatch, rounds)
    with pytest.raises(Interrupted):
        simulate(config)
    monkeypatch.undo()
    return config


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_cut_checkpoint_falls_back_to_the_one_before(run, small, tmp_path, monkeypatch, suffix):
    whole = run("whole")
    config = _interrupted(small, tmp_path, monkeypatch)
    newest = sorted((tmp_path / "cut" / "checkpoint").glob(f"*{suffix}"))[-1]
    newest.write_bytes(newest.read_bytes()[:-20])
    assert_same(whole, simulate(config))


def test_all_checkpoints_gone_starts_anew(run, small, tmp_path, monkeypatch):
    whole = run("whole")
    config = _interrupted(small, tmp_path, monkeypatch)
    for file in (tmp_path / "cut" / "checkpoint").iterdir():
        file.write_bytes(b"")
    assert_same(whole, simulate(config))


def test_a_damaged_client_memory_falls_back_too(run, small, tmp_path, monkeypatch):
    whole = run("whole")
    config = _interrupted(small, tmp_path, monkeypatch, rounds=3)
    files = sorted((tmp_path / "cut" / "clients").glob("*/*.safetensors"))
    assert files, "EWC keeps its Fisher at the client"
    for file in files:
        file.write_bytes(file.read_bytes()[:40])
    assert_same(whole, simulate(config))


def test_other_data_handed_in_are_another_run(small, tmp_path):
    import numpy as np

    from fedcl.contracts import Samples

    def samples(seed):
        x = np.random.default_rng(seed).normal(size=(120, 6)).astype(np.float32)
        return Samples(x, np.arange(120) % 6, tuple("abcdef"))

    config = small(run={"output": str(tmp_path / "run")})
    first = simulate(config, samples(0))
    assert simulate(config, samples(0)).metrics == pytest.approx(first.metrics, nan_ok=True)
    with pytest.raises(FedclError, match="another config"):
        simulate(config, samples(1))


def test_a_directory_of_another_config_is_refused(run, small, tmp_path):
    run("run")
    with pytest.raises(FedclError, match="another config"):
        run("run", seed=99)


def test_a_finished_run_is_read_and_fresh_moves_it_aside(run, small, tmp_path):
    first = run("run")
    before = (first.path / "metrics.jsonl").read_bytes()
    again = run("run")
    assert (again.path / "metrics.jsonl").read_bytes() == before
    simulate(small(run={"output": str(tmp_path / "run")}), fresh=True)
    assert (tmp_path / "run~1" / "metrics.jsonl").read_bytes() == before


def test_two_processes_do_not_share_a_directory(small, tmp_path):
    config = small(run={"output": str(tmp_path / "run")})
    held = RunDir(tmp_path / "run", config)
    with pytest.raises(FedclError, match="in use"):
        simulate(config)
    held.close()


def test_an_unwritable_directory_is_named(small, tmp_path):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(FedclError, match="--output"):
        simulate(small(run={"output": str(tmp_path / "file" / "run")}))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_ends_the_run_clearly(small, tmp_path, monkeypatch):
    """metrics.jsonl leads to a device that is always full."""
    config = small(run={"output": str(tmp_path / "run")})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(FedclError, match="make room"):
        simulate(config)
