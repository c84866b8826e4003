"""Processes that are kept running: what ends comes back, and what says that it is lost is ended."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from fedcl.deploy.keeper import Keeper

SAYS = "import sys, time; print(sys.argv[1], flush=True); time.sleep(600)"


@pytest.fixture
def keeper(tmp_path):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    kept = Keeper(tmp_path)
    yield kept
    kept.close()
    for number, handler in before.items():
        signal.signal(number, handler)


def until(keeper, there):
    """Look until a condition holds."""
    end = time.monotonic() + 60
    while not there():
        assert time.monotonic() < end
        keeper.look()
        time.sleep(0.05)


def log(keeper):
    return (keeper.folder / "logs" / "it.log").read_text().split()


def test_what_is_killed_comes_back(keeper):
    first = keeper.start("it", [sys.executable, "-c", SAYS, "well"], os.environ)
    until(keeper, lambda: log(keeper) == ["well"])
    first.kill()
    until(keeper, lambda: log(keeper) == ["well", "well"])
    assert int((keeper.folder / "pids" / "it").read_text()) != first.pid


def test_what_says_that_it_is_lost_is_ended_and_starts_again(keeper):
    (keeper.folder / "logs" / "it.log").write_text("lost\n")  # of an earlier start, and so no reason
    told = keeper.folder / "told"
    program = (
        f"import pathlib, time; p = pathlib.Path({str(told)!r}); print('well' if p.exists() else 'lost', flush=True)"
    )
    first = keeper.start("it", [sys.executable, "-c", program + "; p.touch(); time.sleep(600)"], os.environ, b"lost")
    until(keeper, lambda: log(keeper) == ["lost", "lost", "well"])
    assert first.poll() == -signal.SIGTERM
    second = int((keeper.folder / "pids" / "it").read_text())
    for _ in range(10):
        keeper.look()
    assert int((keeper.folder / "pids" / "it").read_text()) == second
