"""LwF and function-space retention, against formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
from contexts import Linear, batch, context, params

from fedcl.contracts import Batch
from fedcl.methods import _gaussians
from fedcl.methods.lwf import LwF, divergence
from fedcl.methods.retain import Retain


def test_divergence_by_hand():
    """T = 2, logits (2, 0) → (0, 0): p = σ(±1); T² Σ p log(p / ½)."""
    p = 1 / (1 + math.exp(-1))
    expected = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    found = divergence(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2), 2.0)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_does_not_depend_on_the_temperature():
    """For close logits T² KL is ½ Σ Var(Δz) at p ≈ uniform, whatever T."""
    grads = []
    for temperature in (1.0, 4.0):
        z = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
        divergence(torch.tensor([[1e-3, 0.0, -1e-3]], dtype=torch.float64), z, temperature).backward()
        grads.append(z.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-2, atol=1e-6)


def _moved(net):
    return {name: value.detach() + 0.1 for name, value in params(net).items()}


def test_lwf_sees_old_heads_only_and_nothing_in_the_first_stage():
    net = Linear()
    method = LwF(strength=3.0)
    data = batch(task=1)
    assert method.penalty(context(net), params(net), batch(), {}).item() == 0
    memory = method.end_task(context(net), params(net), batch(), {})
    ctx = context(net, task=1, past=(0,))
    moved = _moved(net)
    expected = 3.0 * divergence(net(data.x, "t0").detach(), ctx.old(moved, data.x)[0], 2.0)
    assert method.penalty(ctx, moved, data, memory).item() == pytest.approx(expected.item(), rel=1e-5)
    assert method.penalty(ctx, params(net), data, memory).item() == pytest.approx(0.0, abs=1e-6)


def test_the_teacher_does_not_move_with_the_net():
    net = Linear()
    memory = LwF().end_task(context(net), params(net), batch(), {})
    before = memory["teacher/trunk.w"].clone()
    with torch.no_grad():
        net.trunk["w"].add_(1.0)
    assert torch.equal(memory["teacher/trunk.w"], before)


def test_retention_is_the_centred_squared_drift():
    net = Linear().double()
    method = Retain(strength=2.0)
    data = Batch(batch(task=1).x.double(), batch(task=1).y)
    memory = method.end_task(context(net), params(net), data, {})
    moved = _moved(net)
    apart = context(net, task=1, past=(0,)).old(moved, data.x)[0] - net(data.x, "t0")
    apart = apart - apart.mean(1, keepdim=True)
    expected = 2.0 * apart.square().sum(1).mean()
    found = method.penalty(context(net, task=1, past=(0,)), moved, data, memory)
    assert found.item() == pytest.approx(expected.item())


def test_a_softmax_does_not_see_a_common_shift_and_neither_does_retention():
    shifted = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert Retain()._drift(shifted, shifted + 5.0).item() == pytest.approx(0.0, abs=1e-8)
    assert Retain(centred=False)._drift(shifted, shifted + 5.0).item() == pytest.approx(75.0, rel=1e-5)


def test_buffer_answers_are_those_of_the_last_task_s_end():
    """Not those of the moment of storing: after the net moved, the next consolidation refreshes them."""
    net = Linear()
    method = Retain(on="buffer", size=6)
    memory = method.end_task(context(net), params(net), batch(), {})
    with torch.no_grad():
        net.trunk["w"].add_(0.5)
    memory = method.end_task(context(net, task=1, past=(0,)), params(net), batch(task=1), memory)
    answers = context(net, past=(0,)).each(params(net), memory["x"], memory["task"])
    torch.testing.assert_close(memory["logits"], answers.detach())
    assert method.penalty(context(net, task=1, past=(0,)), params(net), batch(), memory).item() < 1e-8


def test_gaussians_have_the_classes_mean_and_variance():
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([3.0, 1.0, 0.1, 0.1])
    x = torch.randn(4000, 4, generator=generator) * spread + torch.tensor([5.0, 0.0, -5.0, 1.0])
    fitted = _gaussians.fit(context(Linear()), Batch(x, torch.zeros(4000).long()), rank=2)
    drawn, task = _gaussians.draw(context(Linear(), task=1, past=(0,)), fitted, 4000)
    torch.testing.assert_close(drawn.mean(0), x.mean(0), atol=0.2, rtol=0)
    torch.testing.assert_close(drawn.std(0), x.std(0), atol=0.2, rtol=0)
    assert task.tolist() == [0] * 4000


@pytest.mark.parametrize("on", ["current", "buffer", "gaussian"])
def test_every_stand_in_holds_the_function(on):
    """Gradient steps on the penalty alone bring the old task's answers back."""
    net = Linear()
    method, old = Retain(on=on, strength=1.0), batch(64)
    memory = method.end_task(context(net), params(net), old, {})
    target = net(old.x, "t0").detach()
    moved = {name: value.detach().clone().requires_grad_() for name, value in _moved(net).items()}
    ctx = context(net, task=1, past=(0,))

    def drift():
        return method._drift(target, ctx.old(moved, old.x)[0]).item()

    start = drift()
    optimizer = torch.optim.SGD(list(moved.values()), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        method.penalty(ctx, moved, batch(64, seed=7), memory).backward()
        optimizer.step()
    assert drift() < 0.2 * start


@pytest.mark.parametrize("method", [LwF(), Retain(strength=1.0)])
def test_a_teacher_does_not_speak_of_tasks_that_it_never_met(method):
    """Who sat out t0 has a teacher that knows t1 only: nothing is held to what it would say of t0."""
    net = Linear()
    memory = method.end_task(context(net, task=1), params(net), batch(task=1), {})
    moved = {name: value + 0.1 for name, value in params(net).items()}
    assert method.penalty(context(net, past=(0,)), moved, batch(), memory).item() == 0.0
    assert method.penalty(context(net, past=(1,)), moved, batch(), memory).item() > 0.0
