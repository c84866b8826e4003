"""Generative replay without data: the generator's terms by hand, what it makes, and who is told of it when."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from contexts import Linear, batch, context, params

from fedcl.methods._generator import Classes, Generator, divergence, roughness, spread, untaught, watched
from fedcl.methods.target import Target

QUICK = {"steps": 3, "samples": 4, "width": 8, "size": 8, "noise": 4}
OFF = {"agree": 0.0, "spread": 0.0, "statistics": 0.0, "smooth": 0.0, "adversarial": 0.0}


def _server(net, **changes):
    return context(net, past=(0, 1), shape=(4,), **changes)


def test_divergence_by_hand_over_what_the_old_logits_have():
    """T = 2, logits (2, 0) → (0, 0): p = σ(±1); T² Σ p log 2p. What the old model had not met does not count."""
    p = 1 / (1 + math.exp(-1))
    expected = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    new = torch.tensor([[0.0, 0.0, 7.0], [0.0, 0.0, -torch.inf]], requires_grad=True)
    found = divergence(torch.tensor([[2.0, 0.0, -torch.inf]]).expand(2, 3), new, 2.0)
    assert found.tolist() == pytest.approx([expected] * 2, rel=1e-5)
    found.sum().backward()
    assert new.grad is not None
    assert new.grad.isfinite().all()
    assert new.grad[:, 2].tolist() == [0.0, 0.0]


def test_classes_of_heads_that_number_alike_stand_apart():
    classes = Classes(_server(Linear()))
    assert classes.task.tolist() == [0, 0, 0, 1, 1]
    assert classes.label.tolist() == [0, 1, 2, 0, 1]
    assert classes.columns[0].tolist() == [0, 1, 2]
    assert classes.columns[3].tolist() == [3, 4, 5]
    logits = classes.ask(params(Linear()), batch(2).x, torch.tensor([0, 4]))
    assert logits.isfinite().tolist() == [[True, True, True], [True, True, False]]


def test_a_shared_head_is_asked_for_the_classes_met():
    """Outputs are global ids: t0 and t1 are met, output 5 is not."""
    ids = {"t0": (0, 1, 2), "t1": (3, 4)}
    ctx = _server(
        Linear(), outputs=6, labels=lambda task: ids[task.id], each=lambda p, x, index: torch.zeros(len(x), 6)
    )
    classes = Classes(ctx)
    assert classes.columns[0].tolist() == classes.columns[4].tolist() == [0, 1, 2, 3, 4, 5]
    assert classes.ask({}, torch.zeros(1, 4), torch.tensor([1])).isfinite().tolist() == [[True] * 5 + [False]]


def test_spread_is_minus_the_entropy_of_the_mean_answer():
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    first = torch.tensor([[0, 1]])
    assert spread(one, first).item() == pytest.approx(0.0, abs=1e-6)
    assert spread(two, first.expand(2, 2)).item() == pytest.approx(-math.log(2))
    assert spread(torch.full((2, 2), 0.5), torch.tensor([[0, 1], [2, 3]])).item() == pytest.approx(-math.log(4))


def test_roughness_of_a_dot_by_hand():
    x = torch.zeros(1, 2, 3, 3)
    assert roughness(x + 3).item() == 0.0
    x[0, 0, 1, 1] = 1.0
    assert roughness(x).item() == pytest.approx((0.75**2 + 4 * 0.125**2 + 4 * 0.0625**2) / 18)


@pytest.mark.parametrize("place", [(), (2, 2)])
def test_statistics_by_hand(place):
    """μ = (1, 2), σ² = (1, 0) against μ̂ = (0, 2), σ̂² = (1, 3): 1 + 0 + 0 + 9, whatever the positions."""
    layer = torch.nn.BatchNorm2d(2) if place else torch.nn.BatchNorm1d(2)
    layer.running_mean, layer.running_var = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0])
    x = torch.tensor([[0.0, 2.0], [2.0, 2.0]]).reshape(2, 2, *[1] * len(place)).expand(2, 2, *place)
    with watched(layer.eval()) as gaps:
        layer(x)
    assert [gap.item() for gap in gaps] == pytest.approx([10.0])
    layer(x)
    assert len(gaps) == 1  # nobody watches any more


def test_the_objective_is_the_sum_of_its_terms():
    net, kind = Linear(), torch.tensor([0, 4])
    ctx, x = _server(net), batch(2).x
    classes, student = Classes(ctx), {name: value + 0.1 for name, value in params(net).items()}
    logits, answers = (classes.ask(p, x, kind) for p in (params(net), student))

    def found(**terms):
        return Target(**(OFF | terms)).objective(ctx, params(net), classes, x, kind, student)

    right = torch.log_softmax(logits, 1)[[0, 1], [0, 1]]
    alike = (logits.argmax(1) == answers.argmax(1)).float()
    assert alike.any()
    apart = (alike * divergence(logits, answers, 2.0)).mean()
    torch.testing.assert_close(found(agree=2.0), -2 * right.mean())
    torch.testing.assert_close(found(adversarial=3.0, agree=2.0), -2 * right.mean() - 3 * apart)
    torch.testing.assert_close(found(spread=1.0), spread(logits.softmax(1), classes.columns[kind]))
    same = Target(**OFF | {"adversarial": 1.0}).objective(ctx, params(net), classes, x, kind, params(net))
    assert same.item() == pytest.approx(0.0, abs=1e-6)  # a student that knows all


@pytest.mark.parametrize("shape", [(5,), (1, 8, 8), (3, 7, 5), (2, 3)])
def test_samples_have_the_shape_and_range_of_the_data(shape):
    bounds = (torch.full((1, 1, 1), -1.0), torch.full((1, 1, 1), 3.0)) if len(shape) == 3 else None
    torch.manual_seed(0)
    made = Generator(shape, 3, 4, 8, bounds)
    x = made(torch.randn(64, 4) * 100, torch.arange(64) % 3)
    assert x.shape == (64, *shape)
    if bounds:
        assert x.min() >= -1
        assert x.max() <= 3
    else:
        torch.testing.assert_close(x.mean(0), torch.zeros(shape), atol=1e-4, rtol=0)
        torch.testing.assert_close(x.std(0, unbiased=False), torch.ones(shape), atol=1e-2, rtol=0)


def test_a_student_starts_from_weights_of_its_own():
    net = torch.nn.Linear(4, 3)
    one, two = (untaught(context(net, seed=seed)) for seed in (0, 1))
    again = untaught(context(net, seed=0))
    assert not torch.equal(one["weight"], net.weight)
    assert not torch.equal(one["weight"], two["weight"])
    assert torch.equal(one["weight"], again["weight"])


class Normed(torch.nn.Module):
    """x [B, 4] → BatchNorm → one head of two classes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.out = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)
        self.norm.running_mean.copy_(torch.tensor([0.5, -0.5, 0.2, 0.0]))
        self.norm.running_var.copy_(torch.tensor([0.5, 1.5, 1.0, 2.0]))

    def forward(self, x):
        return self.out(self.norm(x))


def _gap(strength):
    """How far samples made for a net are from its running statistics."""
    net = Normed().eval()
    shape, bounds = (4, 1, 1), (torch.full((4, 1, 1), -5.0), torch.full((4, 1, 1), 5.0))
    net_of = {"each": lambda p, x, index: net(x.flatten(1))}
    ctx = context(net, past=(1,), shape=shape, bounds=bounds, outputs=2, **net_of)
    method = Target(steps=150, samples=100, width=16, statistics=strength, adversarial=0.0, lr=0.01)
    _, said = method.synthesize(ctx, {}, {})
    with watched(net) as gaps:
        net(said["x"].flatten(1))
    return gaps[0].item()


def test_samples_take_on_a_net_s_running_statistics():
    assert _gap(1.0) < 0.1 * _gap(0.0)


def test_nothing_is_learned_from_samples_where_the_student_is_the_teacher():
    net = Linear()
    method = Target(**QUICK, labels=0.0)
    _, said = method.synthesize(_server(net), {name: value.detach() for name, value in params(net).items()}, {})
    memory = method.receive(said, {})
    ctx = context(net, task=1, past=(0,))
    method.penalty(ctx, params(net), batch(task=1), memory).backward()
    assert all(value.grad.abs().max() < 1e-6 for value in params(net).values())
    moved = {name: (value + 0.1 * torch.randn_like(value)).detach() for name, value in params(net).items()}
    assert method.penalty(ctx, moved, batch(task=1), memory).item() > 1e-3
    assert method.penalty(ctx, moved, batch(task=1), {}).item() == 0.0  # in the first stage


IDS = {"t0": (0, 1, 2), "t1": (3, 4)}
TRUNK, HEAD = "trunk.w", "tasks.shared.out.weight"


def _one_head():
    """A context of a plain net with one head of six outputs, its parameters, and made-up samples of t0 and t1."""
    torch.manual_seed(0)
    net = {TRUNK: torch.randn(4, 4).requires_grad_(), HEAD: torch.randn(6, 4).requires_grad_()}

    def answer(named, x, index=None):
        return torch.tanh(x @ named[TRUNK].T) @ named[HEAD].T

    x = torch.randn(1, 4).expand(7, 4)  # all alike: whatever is drawn is the same
    kept = torch.tensor([[1.0, 0.0, -1.0, 0.5, 0.0, -torch.inf]]).expand(7, 6)
    made = {"x": x, "y": torch.full((7,), 2), "task": torch.zeros(7).long(), "logits": kept}
    memory = made | {"filled": torch.tensor(7), "kinds": torch.tensor(3)}
    ctx = context(Linear(), task=1, past=(0,), forward=answer, each=answer, labels=lambda task: IDS[task.id])
    return ctx, net, memory, answer


def test_a_hospital_s_loss_by_hand():
    """o = 3 old classes and n = 2 new ones: the trunk learns the new ones' own softmax, heads learn them all."""
    ctx, net, memory, answer = _one_head()
    method, data = Target(strength=2.0, labels=0.7), batch(5)
    data = replace(data, y=torch.tensor([3, 4, 3, 3, 4]))
    found = method.loss(ctx, net, data, memory) + method.penalty(ctx, net, data, memory)
    held = net | {TRUNK: net[TRUNK].detach()}
    real, made = answer(net, data.x), answer(net, memory["x"])
    own = torch.nn.functional.cross_entropy(real[:, 3:5], data.y - 3)
    old, new = torch.log_softmax(memory["logits"][:1, :5] / 2, 1), torch.log_softmax(made[:1, :5] / 2, 1)
    kept = 4 * (old.exp() * (old - new)).sum()
    of_old = torch.nn.functional.cross_entropy(answer(held, memory["x"]), memory["y"])
    of_new = torch.nn.functional.cross_entropy(answer(held, data.x), data.y)
    expected = own + 2 * kept + 0.7 * (0.6 * of_old + 0.4 * of_new)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(value, (net[TRUNK], net[HEAD])) for value in (found, expected)]
    torch.testing.assert_close(grads[0], grads[1])


def test_a_hospital_s_loss_in_one_softmax():
    ctx, net, memory, answer = _one_head()
    method = Target(strength=0.0, labels=0.7, split=False, frozen=False)
    expected = 0.7 * torch.nn.functional.cross_entropy(answer(net, memory["x"]), memory["y"])
    torch.testing.assert_close(method.penalty(ctx, net, batch(5), memory), expected)
    assert "loss" not in method.hooks()
    assert "loss" in Target().hooks()
