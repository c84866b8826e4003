"""FedProx by hand."""

from __future__ import annotations

import torch
from contexts import Linear, context

from fedcl.methods.fedprox import FedProx

W = "trunk.w"


def _w(*values):
    return {W: torch.tensor(values)}


def test_fedprox_pulls_to_where_the_round_began():
    ctx = context(Linear(), start=_w(1.0, 1.0))
    grads, _ = FedProx(strength=0.5).edit_grads(ctx, _w(3.0, 0.0), _w(1.0, 1.0), {})
    assert grads[W].tolist() == [1.0 + 0.5 * 2.0, 1.0 - 0.5 * 1.0]
