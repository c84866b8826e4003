"""Meeting clients: versions, those who never come, those who come late."""

from __future__ import annotations

import subprocess
import sys

import pytest
from flwr.app import Context, Message, RecordDict

import fedcl
from fedcl import federation as federations
from fedcl import methods
from fedcl.client import Client
from fedcl.contracts import FedclError, Job
from fedcl.runtime import apps, compat, exchange, relay
from fedcl.runtime.exchange import Exchange
from fedcl.runtime.inline import InlineGrid
from fedcl.store import Store


@pytest.fixture
def grid(small):
    config = small()
    client = Client(config, federations.build(config), methods.build(config), Store())
    return InlineGrid(apps.client_app(client), 3)


def test_another_version_is_an_error_that_names_both(grid, monkeypatch):
    monkeypatch.setattr(exchange, "versions", lambda: {"fedcl": "9.9.9"})
    monkeypatch.setattr(apps, "versions", lambda: {"fedcl": "9.9.9"})
    with pytest.raises(FedclError, match=rf"client 0 runs fedcl 9\.9\.9, the server {fedcl.__version__}"):
        Exchange(grid, 3)


def test_too_few_clients_are_named(grid):
    with pytest.raises(FedclError, match=r"clients \[3, 4\] of 5 did not show up within 0\.1 s"):
        Exchange(grid, 5, poll=0.01, patience=0.1)


def test_a_node_that_cannot_say_who_it_is_says_why(grid, monkeypatch):
    def broken(request, work):
        raise RuntimeError("no disk")

    monkeypatch.setattr(grid, "_app", broken)
    with pytest.raises(FedclError, match=r"did not show up .*said: RuntimeError: no disk"):
        Exchange(grid, 3, poll=0.01, patience=0.1)


def test_a_quorum_begins_and_the_late_one_joins(grid, monkeypatch):
    nodes = [1000, 1001]
    monkeypatch.setattr(grid, "get_node_ids", lambda: nodes)
    talk = Exchange(grid, 3, poll=0.01, patience=0.1, needed=2)
    job = Job("evaluate", 0, 0, (), {})
    before = list(talk.ask([(client, job) for client in range(3)], timeout=5))
    assert [answer.error for answer in before] == ["", "", "not connected"]
    nodes.append(1002)
    after = list(talk.ask([(client, job) for client in range(3)], timeout=5))
    assert [answer.error for answer in after] == ["", "", ""]


def test_a_hospital_of_another_version_says_so_without_its_worker():
    compat.identify(run_id=1, node_id=1)
    question = Message(RecordDict(), 1000, exchange.IDENTIFY)
    compat.stamp(question)
    context = Context(1, 1000, {"partition-id": 2, "worker": "/nowhere"}, RecordDict(), {"fedcl": "9.9.9"})
    reply = relay.act(question, context)
    assert dict(reply.content.config_records["identity"]) == {"client": 2, "fedcl": fedcl.__version__}


def test_a_hospital_whose_worker_is_down_says_so():
    compat.identify(run_id=1, node_id=1)
    question = Message(RecordDict(), 1000, "train")
    context = Context(1, 1000, {"partition-id": 2, "worker": "/nowhere"}, RecordDict(), {"fedcl": fedcl.__version__})
    with pytest.raises(RuntimeError, match=r"worker does not listen at /nowhere .*start script"):
        relay.act(question, context)


def test_the_shims_of_a_deployment_load_no_torch():
    code = "import sys, fedcl.runtime.relay; print([m for m in ('torch', 'numpy.testing', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
