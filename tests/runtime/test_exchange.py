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


class Nodes:
    """A Grid whose nodes do one message at a time, and may forget one, or take long over it."""

    def __init__(self, grid, kind, first):
        self._grid, self._kind, self._first = grid, kind, first
        self.get_node_ids = grid.get_node_ids
        self.held = []  # of the node 1000
        self.asked = 0

    def push_messages(self, messages):
        ids = []
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            if node == 1000 and kind == "evaluate" and self._first:
                self._first = False
                ids.append("kept")
                self.held += [message] if self._kind == "slow" else []
            elif node == 1000 and self.held:  # one after the other
                self.asked += 1
                ids.append(f"behind {self.asked}")
            else:
                ids += self._grid.push_messages([message])
        return ids

    def pull_messages(self, ids):
        found = list(self._grid.pull_messages([one for one in ids if not one.startswith(("kept", "behind"))]))
        if "kept" in ids and self.held and self.asked:
            (message,) = self.held
            (own,) = self._grid.push_messages([message])
            (reply,) = self._grid.pull_messages([own])
            reply.metadata._reply_to_message_id = "kept"
            self.held = []
            found.append(reply)
        return found


@pytest.mark.parametrize("kind", ["forgotten", "slow"])
def test_a_message_that_a_node_has_forgotten_is_not_waited_for(grid, kind):
    """Who answers what it was asked later does not know it any more; who does not may be at work on it."""
    talk = Exchange(Nodes(grid, kind, True), 3, poll=0.01, patience=0.1, lull=0.05)
    job = Job("evaluate", 0, 0, (), {})
    answers = list(talk.ask([(client, job) for client in range(3)], timeout=60))
    assert [bool(answer.error) for answer in answers] == [kind == "forgotten", False, False]
    assert kind == "slow" or "lost" in answers[0].error
    again = list(talk.ask([(client, job) for client in range(3)], timeout=60))
    assert [answer.error for answer in again] == ["", "", ""]
