"""L2, SI and MAS: what they call important, against the definitions written out."""

from __future__ import annotations

import pytest
import torch
from contexts import Linear, batch, context, params

from fedcl.contracts import Batch, Step
from fedcl.methods.l2 import L2
from fedcl.methods.mas import MAS
from fedcl.methods.si import SI

NOTHING = Batch(torch.empty(0), torch.empty(0))


def _tensors(*values):
    return {"trunk.w": torch.tensor(values)}


def test_l2_pulls_to_the_last_parameters_alone():
    net = Linear()
    method, ctx = L2(strength=4.0, step="explicit"), context(net)
    memory = method.end_task(ctx, _tensors(0.0, 0.0), NOTHING, {})
    memory = method.end_task(ctx, _tensors(1.0, 2.0), NOTHING, memory)
    # (4/2) · ((3 − 1)² + (0 − 2)²) = 16
    assert method.penalty(ctx, _tensors(3.0, 0.0), NOTHING, memory).item() == pytest.approx(16.0)


def test_si_by_hand():
    """Two steps on one parameter: ω = −(2·(−0.2) + 1·(−0.1)) = 0.5; Ω = 0.5 / (0.3² + 0.1)."""
    method, ctx = SI(strength=0.001, damping=0.1), context(Linear())
    memory = method.begin_task(ctx, _tensors(1.0), {})
    for before, after, grad in ((1.0, 0.8, 2.0), (0.8, 0.7, 1.0)):
        memory = method.track(ctx, Step(_tensors(before), _tensors(grad), _tensors(after)), memory)
    memory = method.end_task(ctx, _tensors(0.7), NOTHING, memory)
    assert memory["importance/trunk.w"].item() == pytest.approx(0.5 / (0.09 + 0.1), rel=1e-5)
    assert memory["anchor/trunk.w"].item() == pytest.approx(0.7)
    assert set(memory) == {"importance/trunk.w", "anchor/trunk.w"}  # nothing of the path is left


def test_si_is_never_negative():
    """A parameter that moved uphill has ω < 0; its penalty must not push it away."""
    method, ctx = SI(), context(Linear())
    memory = method.begin_task(ctx, _tensors(0.0), {})
    memory = method.track(ctx, Step(_tensors(0.0), _tensors(1.0), _tensors(0.5)), memory)
    assert memory["path/trunk.w"].item() < 0
    assert method.end_task(ctx, _tensors(0.5), NOTHING, memory)["importance/trunk.w"].item() == 0.0


def test_si_takes_its_own_pull_out_of_the_gradient():
    method, ctx = SI(strength=2.0, step="explicit"), context(Linear())
    memory = {"importance/trunk.w": torch.tensor([3.0]), "anchor/trunk.w": torch.tensor([0.0])}
    memory |= method.begin_task(ctx, _tensors(1.0), memory)
    # gradient of the loss 5, of the pull λ Ω (θ − θ*) = 2 · 3 · 1 = 6: the optimiser was given 11
    memory = method.track(ctx, Step(_tensors(1.0), _tensors(11.0), _tensors(0.9)), memory)
    assert memory["path/trunk.w"].item() == pytest.approx(5.0 * 0.1, rel=1e-5)


def test_mas_is_the_mean_of_absolute_sample_gradients():
    net = Linear().double()
    data = Batch(batch().x.double(), batch().y)
    ctx = context(net)
    memory = MAS(samples=0).end_task(ctx, params(net), data, {})
    expected = {name: torch.zeros_like(value) for name, value in params(net).items()}
    for row in data.x:
        length = net(row[None], "t0").square().sum()
        names = ["trunk.w", "trunk.b"]
        for name, grad in zip(names, torch.autograd.grad(length, [params(net)[n] for n in names]), strict=True):
            expected[name] += grad.abs() / len(data.x)
    for name in ("trunk.w", "trunk.b"):
        torch.testing.assert_close(memory[f"importance/{name}"], expected[name])
    assert not any("tasks" in name for name in memory)  # heads are closed


def test_mas_of_closed_form_layers_equals_vmap(monkeypatch):
    """A real trunk, in closed form and with no layer allowed to have one."""
    from fedcl import sample_moments
    from fedcl.config import Model
    from fedcl.methods.mas import _cotangents
    from fedcl.models import dynamic_net

    torch.manual_seed(0)
    net = dynamic_net.build(Model(name="cnn", options={"channels": [3], "width": 5}), (1, 6, 6), 3).double()
    net.add_task("t0", 3, 4)
    x, y = torch.randn(5, 1, 6, 6).double(), torch.zeros(5).long()
    names = [name for name, _ in net.named_parameters()]
    ours = sample_moments.moments(net, lambda x: net(x, "t0"), names, x, y, _cotangents, power=1)
    monkeypatch.setattr(sample_moments, "closed_layers", lambda net, names: {})
    other = sample_moments.moments(net, lambda x: net(x, "t0"), names, x, y, _cotangents, power=1)
    for name in names:
        torch.testing.assert_close(ours[name], other[name])
