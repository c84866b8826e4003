"""Methods with a server half: FedProx and SCAFFOLD against drift, and federated orthogonal training."""

from __future__ import annotations

import json

import pytest
import torch
from contexts import Linear, context
from safetensors.torch import load_file
from small import model

from fedcl import optimizers
from fedcl.config import Config, Train
from fedcl.contracts import Batch, FedclError, Moment
from fedcl.methods import build
from fedcl.methods.fedprox import FedProx
from fedcl.methods.fot import FOT
from fedcl.methods.scaffold import Scaffold
from fedcl.simulation import simulate

W = "trunk.w"


def _w(*values):
    return {W: torch.tensor(values)}


def test_fedprox_pulls_to_where_the_round_began():
    ctx = context(Linear(), start=_w(1.0, 1.0))
    grads, _ = FedProx(strength=0.5).edit_grads(ctx, _w(3.0, 0.0), _w(1.0, 1.0), {})
    assert grads[W].tolist() == [1.0 + 0.5 * 2.0, 1.0 - 0.5 * 1.0]


def test_scaffold_by_hand():
    """K = 2 steps at η = 0.1 from 1.0 to 0.6: a mean gradient of 2; c = 0.5, c_i = 0.75, N = 4."""
    method = Scaffold(momentum=0.0)
    ctx = context(Linear(), start=_w(1.0), clients=4, lr=0.1, step=2)
    memory = {f"own/{W}": torch.tensor([0.75]), f"all/{W}": torch.tensor([0.5])}
    grads, _ = method.edit_grads(ctx, _w(1.0), _w(3.0), memory)
    assert grads[W].item() == pytest.approx(3.0 + 0.5 - 0.75)
    memory = method.end_round(ctx, _w(0.6), memory)
    assert memory[f"own/{W}"].item() == pytest.approx(0.75 - 0.5 + 2.0)
    state, said = method.server({}, {f"all/{W}": torch.tensor([0.5])}, [(1.0, method.upload(memory))])
    assert state[f"all/{W}"].item() == pytest.approx(0.5 + (2.25 - 0.75) / 4)
    assert method.receive(said, memory)[f"all/{W}"].item() == state[f"all/{W}"].item()


def test_scaffold_begins_anew_with_a_task():
    method, ctx = Scaffold(momentum=0.0), context(Linear(), start=_w(1.0), clients=2, lr=0.1, step=1)
    memory = method.begin_task(ctx, _w(1.0), {f"own/{W}": torch.tensor([9.0]), f"all/{W}": torch.tensor([0.5])})
    assert method.edit_grads(ctx, _w(1.0), _w(3.0), memory)[0][W].item() == 3.0
    memory = method.end_round(ctx, _w(0.8), memory)
    assert memory[f"own/{W}"].item() == pytest.approx(2.0)  # its own mean gradient
    assert memory[f"news/{W}"].item() == pytest.approx((2.0 - 0.5) / 2)


def _steps(momentum, steps, rest, gradient=2.0):
    """What SCAFFOLD reads of `steps` steps along one gradient by torch's SGD, after `rest` steps before the round."""
    reset = "never" if rest else "round"
    weight, train = torch.nn.Parameter(torch.tensor([1.0])), Train(momentum=momentum, reset=reset)
    optimizer = optimizers.build(train, [weight], lr=0.1)
    weight.grad = torch.tensor([gradient])
    for done in range(rest + steps):
        if done == rest:
            start = {W: weight.detach().clone()}
        optimizer.step()
    ctx = context(Linear(), start=start, lr=0.1, step=steps)
    return Scaffold(momentum=momentum, reset=reset).end_round(ctx, {W: weight}, {})[f"own/{W}"].item()


@pytest.mark.parametrize("rest", [0, 200])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 4, 10, 40])
def test_scaffold_reads_a_constant_gradient_as_itself(steps, momentum, rest):
    """From rest with each round; and where the state is kept, once momentum has come up."""
    assert _steps(momentum, steps, rest) == pytest.approx(2.0, rel=1e-4)


def test_scaffold_reads_the_first_rounds_of_a_kept_state_as_less():
    """K = 2, m = ½: 1 + 1.5 of the 2 · 2 that it takes them for."""
    weight = {W: torch.tensor([1.0 - 0.1 * 2.5])}
    ctx = context(Linear(), start=_w(1.0), lr=0.1, step=2)
    own = Scaffold(momentum=0.5, reset="task").end_round(ctx, weight, {})[f"own/{W}"]
    assert own.item() == pytest.approx(2.5 / 4)


def test_scaffold_weighs_control_variates_as_models_are():
    """c = ½ and two of four clients, with 30 samples and 10: ½ + 2/4 (¾ · 4 + ¼ · 8)."""
    sent = [(30.0, {f"news/{W}": torch.tensor([4.0]) / 4}), (10.0, {f"news/{W}": torch.tensor([8.0]) / 4})]
    state, _ = Scaffold().server({}, {f"all/{W}": torch.tensor([0.5])}, sent)
    assert state[f"all/{W}"].item() == pytest.approx(0.5 + 0.5 * (0.75 * 4 + 0.25 * 8))


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_scaffolds_corrections_cancel_in_the_mean_of_the_models(run, partition):
    """c is the mean of all c_i, weighted by samples as the models are, with momentum too."""
    result = run(
        method="scaffold",
        train={"rounds": 4},
        stream={"classes": [[0, 1]], "tasks": 1},
        partition={"name": partition, "alpha": 0.5},
    )
    records = map(json.loads, (result.path / "metrics.jsonl").read_text().splitlines())
    counts = {each["client"]: each["value"] for each in records if each["name"] == "samples"}
    memories, samples = [], torch.tensor([counts[client] for client in sorted(counts)])
    for folder in sorted((result.path / "clients").iterdir()):
        memories.append(load_file(max(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)))
    name = "trunk.layers.0.weight"
    own = torch.stack([memory[f"scaffold/own/{name}"] for memory in memories])
    mean = (samples / samples.sum() @ own.flatten(1)).view_as(own[0])
    assert partition == "iid" or samples.max() > 1.5 * samples.min()
    torch.testing.assert_close(mean, memories[0][f"scaffold/all/{name}"], rtol=1e-4, atol=1e-7)


def test_scaffold_needs_sgd_and_to_know_its_momentum_and_when_it_rests():
    with pytest.raises(FedclError, match="optimizer"):
        build(Config.model_validate({"method": "scaffold", "train": {"optimizer": "adam"}}))
    with pytest.raises(FedclError, match=r"momentum = 0\.5"):
        build(Config.model_validate({"method": "scaffold", "train": {"momentum": 0.5}}))
    with pytest.raises(FedclError, match=r"scaffold\.reset = 'task'"):
        build(Config.model_validate({"method": "scaffold", "train": {"reset": "task"}}))
    build(
        Config.model_validate(
            {"method": "scaffold", "methods": {"scaffold": {"reset": "task"}}, "train": {"reset": "task"}}
        )
    )
    plain = {"scaffold": {"momentum": 0.0}}
    build(Config.model_validate({"method": "scaffold", "methods": plain, "train": {"momentum": 0.0, "reset": "never"}}))
    with pytest.raises(ValueError, match="reset = 'daily'"):
        Scaffold(reset="daily")


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


def test_rounds_and_tasks_may_both_be_uploaded(run):
    result = run("both", method="scaffold+ewc", methods={"ewc": {"share": "sum"}}, federation={"fraction": 0.7})
    assert not [record for record in result.records if record.phase == "fault"]
    assert set(model(result))
