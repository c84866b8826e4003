"""Raw samples never leave a hospital, whatever a method keeps: no row of any message is one of its samples."""

from __future__ import annotations

import pytest
import torch
from small import BASE

from fedcl import federation, plugins
from fedcl.config import Config
from fedcl.runtime import wire

SHARED = [(name, {name: {"share": "sum"}}) for name in ("ewc", "si", "mas", "gpm")]
CASES = [(name, {}) for name in plugins.names("methods")] + SHARED


NAMES = [method + ("-sum" if options else "") for method, options in CASES]


def _closest(run, monkeypatch, method, options) -> float:
    """The smallest distance of a row of what hospitals send to one of their samples."""
    data = federation.build(Config.model_validate(BASE))
    samples = torch.cat([data.train_data(client, task).x for client in range(3) for task in range(3)])
    sent, encode = [], wire.encode_update

    def spy(update):
        sent.extend([*update.arrays.values(), *update.extras.values()])
        return encode(update)

    monkeypatch.setattr(wire, "encode_update", spy)
    run("run", method=method, methods=options)
    rows = [value.reshape(-1, 12) for value in sent if value.numel() % 12 == 0 and value.is_floating_point()]
    assert len(rows) > 5
    return float(torch.cdist(torch.cat(rows).float(), samples).min())


@pytest.mark.parametrize(("method", "options"), CASES, ids=NAMES)
def test_no_message_carries_a_sample(run, method, options, monkeypatch):
    assert _closest(run, monkeypatch, method, options) > 1e-4


def test_one_that_did_would_be_found(run, monkeypatch):
    assert _closest(run, monkeypatch, "leaky:Leaky", {}) < 1e-4
