"""EWC's penalty, its forms, and its proximal step, against numbers and oracles written out here."""

from __future__ import annotations

import pytest
import torch

from fedcl.contracts import Batch, Context, Step, Task
from fedcl.methods.ewc import EWC

TASK = Task("t0", 0, (0, 1))


def _context(lr=0.1, stages=3):
    return Context(
        forward=lambda params, x: x @ params["trunk.w"],
        net=torch.nn.Identity(),
        task=TASK,
        stage=0,
        client=0,
        lr=lr,
        generator=torch.Generator().manual_seed(0),
        slots=stages,
    )


def _step(after):
    return Step({}, {}, {"trunk.w": after})


def _consolidated(method, tasks):
    """Memory after tasks given as [(F, θ*)]."""
    memory = {}
    for importance, anchor in tasks:
        memory = method._fold(memory, {"trunk.w": importance}, {"trunk.w": anchor}, slots=3)
    return memory


def _tasks(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(4, generator=generator), torch.randn(4, generator=generator)) for _ in range(count)]


def _gradient(method, memory, theta):
    theta = theta.clone().requires_grad_()
    method.penalty(_context(), {"trunk.w": theta}, Batch(torch.empty(0), torch.empty(0)), memory).backward()
    return theta.grad


def test_penalty_by_hand():
    """(λ/2) Σ F (θ − θ*)² with F = (1, 2), θ − θ* = (1, −3), λ = 4: 2 · (1 + 18) = 38."""
    method = EWC(strength=4.0, step="explicit")
    memory = {"importance/trunk.w": torch.tensor([1.0, 2.0]), "anchor/trunk.w": torch.tensor([0.0, 3.0])}
    params = {"trunk.w": torch.tensor([1.0, 0.0])}
    empty = Batch(torch.empty(0), torch.empty(0))
    assert method.penalty(_context(), params, empty, memory).item() == pytest.approx(38.0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_merged_and_separate_have_the_same_gradient(count):
    tasks = _tasks(count)
    theta = torch.randn(4, generator=torch.Generator().manual_seed(9))
    merged = EWC(strength=7.0, step="explicit")
    separate = EWC(strength=7.0, step="explicit", form="separate")
    expected = sum(7.0 * f * (theta - a) for f, a in tasks)
    for method in (merged, separate):
        torch.testing.assert_close(_gradient(method, _consolidated(method, tasks), theta), expected)


@pytest.mark.parametrize("form", ["merged", "separate"])
def test_proximal_step_minimises_the_quadratic(form):
    """prox: argmin (1/2η)‖θ − θ'‖² + (λ/2) Σ_k F_k (θ − θ_k)², in float64 by its normal equation."""
    tasks, method = _tasks(2), EWC(strength=50.0, form=form)
    start = torch.randn(4, generator=torch.Generator().manual_seed(1))
    after, _ = method.edit_update(_context(lr=0.1), _step(start), _consolidated(method, tasks))
    total = sum(f.double() for f, _ in tasks)
    pulled = sum(f.double() * a.double() for f, a in tasks)
    expected = (start.double() + 0.1 * 50.0 * pulled) / (1 + 0.1 * 50.0 * total)
    torch.testing.assert_close(after["trunk.w"].double(), expected, atol=1e-5, rtol=1e-5)


def test_online_decays_by_gamma_and_once_more_in_the_loss():
    (f1, a1), (f2, a2) = _tasks(2)
    method = EWC(strength=3.0, form="online", gamma=0.5, step="explicit")
    memory = _consolidated(method, [(f1, a1), (f2, a2)])
    theta = torch.ones(4)
    expected = 3.0 * 0.5 * (0.5 * f1 + f2) * (theta - a2)
    torch.testing.assert_close(_gradient(method, memory, theta), expected)


def test_proximal_is_stable_where_the_explicit_step_diverges():
    """η λ F_max = 10: plain gradient steps on the quadratic leave all bounds, proximal ones settle at θ*."""
    importance, anchor = torch.tensor([1.0, 0.1]), torch.tensor([2.0, -1.0])
    memory = {"importance/trunk.w": importance, "anchor/trunk.w": anchor}
    explicit, proximal = torch.zeros(2), {"trunk.w": torch.zeros(2)}
    method = EWC(strength=100.0)
    for _ in range(50):
        explicit = explicit - 0.1 * 100.0 * importance * (explicit - anchor)
        proximal, _ = method.edit_update(_context(lr=0.1), _step(proximal["trunk.w"]), memory)
    assert not explicit.abs().max() < 1e6  # NaN by now
    torch.testing.assert_close(proximal["trunk.w"], anchor, atol=1e-3, rtol=1e-3)


def test_shared_fisher_is_the_data_weighted_mean():
    method = EWC(share="sum")
    uploads = [(10.0, {"new/trunk.w": torch.tensor([1.0])}), (30.0, {"new/trunk.w": torch.tensor([5.0])})]
    params = {"trunk.w": torch.tensor([2.0]), "tasks.t0.out.bias": torch.tensor([9.0])}
    state, broadcast = method.server(params, {}, uploads)
    assert broadcast["importance/trunk.w"].item() == pytest.approx(4.0)
    assert broadcast["anchor/trunk.w"].item() == 2.0
    state, broadcast = method.server({"trunk.w": torch.tensor([6.0])}, state, uploads)
    assert broadcast["importance/trunk.w"].item() == pytest.approx(8.0)
    assert broadcast["anchor/trunk.w"].item() == pytest.approx(4.0)  # (4·2 + 4·6) / 8
    assert method.receive(broadcast, {"new/trunk.w": torch.zeros(1)}).keys() == broadcast.keys()


def test_a_parameter_that_matters_to_nobody_is_free():
    method = EWC(strength=1e6)
    memory = _consolidated(method, [(torch.zeros(4), torch.randn(4)), (torch.zeros(4), torch.randn(4))])
    start = torch.arange(4.0)
    after, _ = method.edit_update(_context(), _step(start), memory)
    assert torch.equal(after["trunk.w"], start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, "strength"),
        ({"gamma": 0.0}, "gamma"),
        ({"kind": "batched"}, "kind"),
        ({"share": "sum", "form": "separate"}, "one quadratic"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EWC(**options)


@pytest.mark.parametrize("options", [{}, {"share": "sum"}, {"form": "online"}, {"form": "separate"}])
def test_every_form_protects_in_a_federation(run, options):
    """The trunk moves less than with fine-tuning between the end of the first and of the last stage."""
    from small import model

    first = model(run("first", stream={"classes": [[0, 1]], "tasks": 1}))
    free = model(run("free", method="finetune"))
    held = model(run("held", methods={"ewc": {"strength": 1e7, **options}}))

    def moved(end):
        return sum((end[n] - first[n]).square().sum().item() for n in first if n.startswith("trunk."))

    assert moved(held) < 0.5 * moved(free)
