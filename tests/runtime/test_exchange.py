"""Meeting clients: versions, those who never come, those who come late."""

from __future__ import annotations

import pytest

import fedcl
from fedcl import federation as federations
from fedcl import methods
from fedcl.client import Client
from fedcl.contracts import FedclError, Job
from fedcl.runtime import apps, exchange
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
