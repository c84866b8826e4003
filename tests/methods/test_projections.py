"""GPM, OGD and A-GEM: bases, what leaks past them, and the inequality."""

from __future__ import annotations

import pytest
import torch
from contexts import Linear, batch, context, params
from safetensors.torch import load_file
from small import model

from fedcl.contracts import Step
from fedcl.methods import _buffer, _subspace
from fedcl.methods.agem import AGEM
from fedcl.methods.ogd import OGD

OPTIMIZERS = {
    "SGD, momentum, decay": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "Adam": {"optimizer": "adam", "lr": 0.003},
    "Adam, state kept": {"optimizer": "adam", "lr": 0.003, "reset": "never"},
}


def _memory(result):
    """What the one hospital keeps at the end of a run."""
    files = sorted(result.path.glob("clients/0/*.safetensors"), key=lambda file: file.stat().st_mtime)
    return load_file(files[-1])


def _two(run, method, train, **options):
    """A run of one task, and the same with a second: (memory after the first, both models)."""
    changes = {"method": method, "train": train, "federation": {"clients": 1}, "methods": {method: options}}
    changes |= {"model": {"heads": "shared", "mask": "task", "options": {"hidden": [16, 16]}}}
    short = run("short", **changes, stream={"classes": [[0, 1]], "tasks": 1})
    long = run("long", **changes, stream={"classes": [[0, 1], [2, 3]], "tasks": 2})
    return _memory(short), model(short), model(long)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gpm_leaks_nothing(run, optimizer):
    memory, first, second = _two(run, "gpm", OPTIMIZERS[optimizer], threshold=[0.9])
    for layer in ("trunk.layers.0", "trunk.layers.1", "tasks.shared.out"):
        weight, bias = (second[f"{layer}.{kind}"] - first[f"{layer}.{kind}"] for kind in ("weight", "bias"))
        moved = torch.cat([weight, bias[:, None]], 1).double()
        basis = memory[f"gpm/basis/{layer}"].double()
        assert 0 < basis.shape[1] < basis.shape[0]
        assert float((moved @ basis).norm() / moved.norm()) < 1e-4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ogd_leaks_nothing(run, optimizer):
    memory, first, second = _two(run, "ogd", OPTIMIZERS[optimizer], directions=20)
    layers = ["trunk.layers.0", "trunk.layers.1", "tasks.shared.out"]
    names = sorted(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))
    moved = torch.cat([(second[name] - first[name]).flatten() for name in names]).double()
    basis = memory["ogd/basis"].double()
    assert basis.shape == (20, len(moved))
    torch.testing.assert_close(basis @ basis.T, torch.eye(20).double(), atol=1e-6, rtol=0)
    assert float((basis @ moved).norm() / moved.norm()) < 1e-4


def test_projecting_the_gradient_alone_would_leak(run, monkeypatch):
    """The same task by Adam without the second projection: the reason for projecting the update."""
    from fedcl.methods.gpm import GPM

    monkeypatch.setattr(GPM, "edit_update", lambda self, ctx, step, memory: (step.after, memory))
    memory, first, second = _two(run, "gpm", OPTIMIZERS["Adam"], threshold=[0.9])
    moved = (second["trunk.layers.0.weight"] - first["trunk.layers.0.weight"]).double()
    basis = memory["gpm/basis/trunk.layers.0"].double()[:-1]
    assert float((moved @ basis).norm() / moved.norm()) > 0.05


def test_covering_takes_the_fewest_directions():
    """Singular values 3, 2, 1 of 14: 0.6 needs one (9/14), 0.7 two (13/14), 0.95 three."""
    r = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0])).double()
    empty = torch.zeros(4, 0)
    for threshold, count in ((0.6, 1), (0.7, 2), (13 / 14, 2), (0.95, 3), (1.0, 3)):
        assert _subspace.covering(empty, r @ r.T, threshold).shape == (4, count), threshold


def test_covering_counts_what_the_basis_has_already():
    """Half of R lies in the basis: 0.5 needs nothing more, 0.9 the one direction that is new."""
    basis = torch.tensor([[1.0], [0.0], [0.0]])
    r = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).double()
    assert _subspace.covering(basis, r @ r.T, 0.5).shape == (3, 1)
    grown = _subspace.covering(basis, r @ r.T, 0.9)
    assert grown.shape == (3, 2)
    torch.testing.assert_close(grown.T @ grown, torch.eye(2), atol=1e-6, rtol=0)


def test_covering_equals_the_svd_of_the_paper():
    """Eq. 9 on R̂ = R − M Mᵀ R itself, in float64."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, 12)[:, None]
    old, new = (torch.randn(12, 40, generator=generator) * s for s in (scale, scale.flip(0)))
    basis = _subspace.covering(torch.zeros(12, 0), (old @ old.T).double(), 0.95)
    rest = (new - basis @ (basis.T @ new)).double()
    values = torch.linalg.svdvals(rest).square()
    have, total = new.double().square().sum() - rest.square().sum(), new.double().square().sum()
    expected = next(r for r in range(13) if have + values[:r].sum() >= 0.95 * total)
    grown = _subspace.covering(basis, (new @ new.T).double(), 0.95)
    assert grown.shape[1] == basis.shape[1] + expected
    left = rest - grown.double() @ (grown.double().T @ rest)
    assert float(left.square().sum()) == pytest.approx(float(values[expected:].sum()), rel=1e-3)


def test_hospitals_share_the_basis_of_their_pooled_inputs():
    from fedcl.methods.gpm import GPM

    method = GPM(share="sum", threshold=[0.9])
    a, b = torch.eye(4).double() * 2, torch.ones(4, 4).double()
    _, broadcast = method.server({}, {}, [(1.0, {"gram/trunk.l": a}), (3.0, {"gram/trunk.l": b})])
    expected = _subspace.covering(torch.zeros(4, 0), a + b, 0.9)
    assert torch.equal(broadcast["basis/trunk.l"], expected)


def test_gram_schmidt_drops_what_is_not_new_and_stays_orthonormal():
    generator = torch.Generator().manual_seed(0)
    basis = torch.zeros(0, 50)
    vectors = torch.randn(30, 50, generator=generator)
    vectors[1:] = vectors[:1] + 1e-3 * vectors[1:]  # nearly parallel: once is not enough in single precision
    for vector in (*vectors, vectors[3] + vectors[4]):
        basis = _subspace.extended(basis, vector)
    assert basis.shape == (30, 50)
    torch.testing.assert_close(basis @ basis.T, torch.eye(30), atol=1e-5, rtol=0)


def test_ogd_directions_are_gradients_of_the_true_class_s_logit():
    net, data = Linear(), batch(1)
    memory = OGD(directions=1).end_task(context(net), params(net), data, {})
    names = [name for name in params(net) if name.startswith("trunk.")]
    grads = torch.autograd.grad(net(data.x, "t0")[0, data.y[0]], [params(net)[n] for n in names])
    flat = torch.cat([grad.flatten() for grad in grads])
    torch.testing.assert_close(memory["basis"][0].abs(), (flat / flat.norm()).abs())


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("on", ["update", "gradient"])
def test_agem_never_raises_the_reference_loss_to_first_order(on, seed):
    """g̃ · g_ref ≥ −1e-6, and a vector that agrees already is left alone."""
    net = Linear(seed)
    method, ctx = AGEM(on=on, batch=16), context(net, task=1, past=(0,), seed=seed)
    memory = method.end_task(context(net), params(net), batch(30), {})
    generator = torch.Generator().manual_seed(100 + seed)
    before = {name: value.detach() for name, value in params(net).items()}
    vector = {name: torch.randn(value.shape, generator=generator) for name, value in before.items()}
    reference = method._reference(context(net, task=1, past=(0,), seed=seed), before, memory)
    agrees = sum((vector[n] * reference[n]).sum() for n in vector) >= 0
    found, memory = method.edit_grads(ctx, params(net), vector, memory)
    if on == "update":  # a step against the vector, by an optimiser that does not care
        after = {name: before[name] - 0.1 * vector[name] for name in before}
        edited, memory = method.edit_update(ctx, Step(before, {}, after), memory)
        found = {name: (before[name] - edited[name]) / 0.1 for name in before}
    assert sum((found[n] * reference[n]).sum() for n in found) >= -1e-4 * sum(
        r.square().sum() for r in reference.values()
    )
    assert not any(key.startswith("ref/") for key in memory)
    if agrees:
        for name in vector:
            torch.testing.assert_close(found[name], vector[name], atol=1e-5, rtol=1e-4)


def test_agem_remembers_earlier_tasks_only():
    net, method = Linear(), AGEM()
    assert "observe" not in method.hooks()
    assert method._reference(context(net), params(net), {}) == {}
    memory = method.end_task(context(net), params(net), batch(5), {})
    assert _buffer.draw(context(net, task=1), memory, 9)[0]["task"].tolist() == [0] * 9
