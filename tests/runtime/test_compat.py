"""The private names of Flower that fedcl leans on, and that nothing calls home."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedcl.runtime import compat
from fedcl.runtime.inline import InlineGrid


def test_flower_is_the_one_that_the_private_names_were_read_in():
    assert version("flwr").startswith("1.41.")


def test_private_names():
    assert compat.APP_RAISED == ErrorCode.CLIENT_APP_RAISED_EXCEPTION == 2
    assert Run.create_empty(7).run_id == 7
    compat.identify(run_id=5, node_id=1)
    assert (TaskIdentity.run_id, TaskIdentity.node_id) == (5, 1)


def test_a_stamped_request_is_named_by_its_reply():
    compat.identify(run_id=1, node_id=1)
    message = Message(RecordDict(), 1000, "train")
    identity = compat.stamp(message)
    assert message.metadata.message_id == identity
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == identity


def test_the_grid_fills_flowers_interface():
    assert issubclass(InlineGrid, Grid)
    assert not InlineGrid.__abstractmethods__


@pytest.mark.parametrize("fails", [False, True])
def test_state_is_kept_only_on_success(fails):
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        from flwr.app import ConfigRecord

        context.state["seen"] = ConfigRecord({"n": 1})
        if fails:
            raise RuntimeError("out of luck")
        return Message(RecordDict(), reply_to=message)

    grid = InlineGrid(app, 2)
    first, second = grid.send_and_receive([Message(RecordDict(), node, "train") for node in (1001, 1000)])
    assert (first.metadata.src_node_id, second.metadata.src_node_id) == (1000, 1001)
    assert first.has_error() == fails
    assert ("seen" in grid._contexts[1000].state) != fails
    if fails:
        assert "out of luck" in first.error.reason


OFFLINE = """
import socket, sys
def forbidden(*args, **kwargs): raise SystemExit(f"looked up {args}")
socket.getaddrinfo = socket.gethostbyname = forbidden
real = socket.socket.connect
def connect(self, address):
    raise SystemExit(f"connected to {address}")
socket.socket.connect = connect
from fedcl import Config, simulate
simulate(Config.model_validate({"stream": {"tasks": 2}, "train": {"rounds": 1, "epochs": 1},
                                "run": {"output": sys.argv[1]}}))
print("done")
"""


def test_nothing_phones_home(tmp_path):
    """A whole run in a process where any name look-up or connection ends it, and without the switches set."""
    switches = {
        "FLWR_TELEMETRY_ENABLED",
        "FLWR_DISABLE_UPDATE_CHECK",
        "RAY_USAGE_STATS_ENABLED",
        "HF_HUB_OFFLINE",
    }
    environment = {key: value for key, value in os.environ.items() if key not in switches}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OFFLINE, str(tmp_path / "run")],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("done")


@pytest.mark.parametrize("first", ["fedcl.runtime.apps", "fedcl.runtime.relay", "fedcl.runtime.work", "flwr.app"])
def test_flowers_telemetry_is_off_whatever_is_imported_first(first):
    code = f"import {first}, fedcl.runtime.compat; from flwr.supercore import telemetry as t; "
    code += "print(t.FLWR_TELEMETRY_ENABLED)"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "0"
