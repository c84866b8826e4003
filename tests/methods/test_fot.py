"""Federated orthogonal training, and what it shares with gradient projection memory summed at the server."""

from __future__ import annotations

import pytest
import torch
from contexts import context

from fedcl.config import Config
from fedcl.contracts import Batch, Moment
from fedcl.methods.fot import FOT
from fedcl.methods.gpm import GPM
from fedcl.simulation import simulate


class Layers(torch.nn.Module):
    """x [B, 4] → two linear layers of the trunk, with the names of a DynamicNet."""

    def __init__(self):
        super().__init__()
        self.trunk = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3, bias=False))

    def forward(self, x, task=""):
        return self.trunk(x)


def test_the_basis_is_that_of_all_hospitals_inputs():
    """With ε = 1 the merged model's layers answer to old inputs as before, whatever the clients made of them."""
    torch.manual_seed(0)
    net, method = Layers(), FOT(threshold=1.0, columns=5)
    rank_two = [torch.randn(20, 2) @ torch.randn(2, 4) for _ in range(2)]
    sent = []
    for seed, x in enumerate(rank_two):
        ctx = context(net, seed=seed, forward=lambda named, rows: net(rows))
        kept = method.end_task(ctx, dict(net.named_parameters()), Batch(x, torch.zeros(20).long()), {})
        sent.append((20.0, method.upload(kept)))
    state, said = method.server({}, {}, sent)
    assert said == {}
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    after = {name: value + torch.randn_like(value) for name, value in before.items()}
    moment = Moment(1, 1, 5, ("t1",), ("t0",))
    kept, _ = method.merged(moment, before, after, state)
    assert any(not torch.equal(kept[name], before[name]) for name in before)
    x = torch.cat(rank_two)
    first, second = (torch.nn.functional.linear(x, p["trunk.0.weight"], p["trunk.0.bias"]) for p in (before, kept))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    assert method.merged(moment, before, after, {})[0] is after  # nothing to protect in the first stage


class Idle(Layers):
    """The same with a layer that it never calls."""

    def __init__(self):
        super().__init__()
        self.trunk.add_module("idle", torch.nn.Linear(2, 2))

    def forward(self, x, task=""):
        return self.trunk[:3](x)


@pytest.mark.parametrize(("method", "shape"), [(FOT(columns=2), (5, 2)), (GPM(share="sum"), (5, 5))])
def test_a_layer_that_is_never_called_sends_nothing_and_gets_no_basis(method, shape):
    net = Idle()
    ctx = context(net, forward=lambda named, rows: net(rows))
    memory = method.end_task(ctx, {}, Batch(torch.randn(20, 4), torch.zeros(20).long()), {})
    sent = method.upload(memory)
    (kind,) = {key.partition("/")[0] for key in sent}
    assert sent[f"{kind}/trunk.0"].shape == shape
    assert not sent[f"{kind}/trunk.idle"].numel()
    assert method.misfit(0, net, {}, sent) == method.misfit(0, net, {}, {}) == ""
    less = {key: value for key, value in sent.items() if key != f"{kind}/trunk.2"}
    assert method.misfit(0, net, {}, less) == f"{kind}/trunk.2 is missing"
    state, _ = method.server({}, {}, [(20.0, sent)])
    assert {key for key in state if "/" in key} == {"basis/trunk.0", "basis/trunk.2"}


def test_a_sketch_is_kept_until_the_next_task():
    net = Layers()
    ctx = context(net, forward=lambda named, rows: net(rows))
    kept = FOT().end_task(ctx, {}, Batch(torch.randn(20, 4), torch.zeros(20).long()), {})
    assert kept
    assert FOT().begin_task(ctx, {}, kept) == {}


def test_too_few_samples_send_no_sketch():
    net = Layers()
    ctx = context(net, forward=lambda named, rows: net(rows))
    assert FOT().end_task(ctx, {}, Batch(torch.randn(4, 4), torch.zeros(4).long()), {}) == {}


def test_orthogonal_training_forgets_less(tmp_path):
    """Permutations in one head, as published, small."""
    found = {}
    for method in ("finetune", "fot"):
        config = {
            "method": method,
            "stream": {"kind": "domain", "tasks": 3},
            "model": {"heads": "domain", "options": {"hidden": [100, 100]}},
            "train": {"rounds": 10, "epochs": 2},
            "run": {"output": str(tmp_path / method)},
        }
        found[method] = simulate(Config.model_validate(config)).metrics
    assert found["fot"]["forgetting"] < 0.6 * found["finetune"]["forgetting"]
    assert found["fot"]["average_accuracy"] > found["finetune"]["average_accuracy"]
