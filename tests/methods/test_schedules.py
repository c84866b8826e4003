"""Methods where hospitals have different tasks, come late, sit out, or consolidate a task in pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import model

from fedcl import fisher
from fedcl.client import Client
from fedcl.config import Model
from fedcl.contracts import Samples
from fedcl.models import dynamic_net
from fedcl.models.dynamic_net import WeightMask
from fedcl.runtime import wire
from fedcl.simulation import simulate

ONE = {"classes": [[0, 1]], "tasks": 1}
TWO = {"classes": [[0, 1], [2, 3]], "tasks": 2}
BACK = {**TWO, "schedule": "table", "table": [[0, 0, -1], [1, 1, 0]]}  # t0 goes on at one hospital beside t1
PIECES = {"stream": "hybrid", "consolidate_every": 1, "rounds": 4, "optimizer": "adam", "lr": 0.01}


def memory(result, client=0):
    """What a hospital keeps at the end."""
    files = (result.path / "clients" / str(client)).glob("*.safetensors")
    return load_file(max(files, key=lambda file: file.stat().st_mtime))


def test_a_new_task_takes_no_weight_of_a_task_that_comes_back(run):
    train = {"rounds": 5}
    short = model(run("short", method="packnet", train=train, stream=BACK | {"table": [[0, 0, -1]]}))
    long = model(run("long", method="packnet", train=train, stream=BACK))
    for layer in ("0", "1"):
        own = short[f"gates.t0.trunk.layers-{layer}.owner"] != WeightMask.UNUSED
        assert bool((long[f"gates.t1.trunk.layers-{layer}.owner"][own] == WeightMask.TAKEN).all())
        weight = f"trunk.layers.{layer}.weight"
        assert torch.equal(short[weight][own], long[weight][own])


def test_gates_of_a_task_that_comes_back_are_taken(run):
    long = model(run("long", method="hat", train={"rounds": 5}, stream=BACK))
    for layer in ("0", "1"):
        gates = torch.sigmoid(400.0 * long[f"gates.t0.trunk.layers-{layer}.logits"])
        assert bool((gates > 0.99).any())
        assert float(long[f"gates.t1.trunk.layers-{layer}.taken"].max()) > 0.99


@pytest.mark.parametrize("retrain", [0.05, 0.8, 0.95])
def test_pruning_leaves_something_for_the_next_task(run, retrain):
    params = model(run("run", method="packnet", methods={"packnet": {"retrain": retrain}}))
    for task in ("t0", "t1", "t2"):
        owner = params[f"gates.{task}.trunk.layers-1.owner"]
        assert bool((owner == WeightMask.FREE).any()), task
    assert bool((params["gates.t0.trunk.layers-1.owner"] == WeightMask.UNUSED).any())


@pytest.mark.parametrize("method", ["packnet", "hat"])
@pytest.mark.parametrize("train", [{"reset": "never"}, {"weight_decay": 0.1}])
def test_old_rows_of_a_shared_head_stay(run, method, train):
    changes = {"method": method, "model": {"heads": "shared", "mask": "task"}, "train": {"rounds": 5, **train}}
    short, long = model(run("short", stream=ONE, **changes)), model(run("long", stream=TWO, **changes))
    for kind in ("weight", "bias"):
        name = f"tasks.shared.out.{kind}"
        assert torch.equal(short[name][:2], long[name][:2])
        assert not torch.equal(short[name][2:4], long[name][2:4])


@pytest.mark.parametrize("method", ["packnet+replay", "packnet+lwf", "hat+lwf", "packnet+der"])
def test_old_tasks_can_be_asked_through_their_masks(run, method):
    result = run("run", method=method, model={"heads": "shared", "mask": "task"}, train={"rounds": 5})
    assert not [record for record in result.records if record.phase == "fault"]
    assert result.metrics["forgetting"] == 0.0


def test_gates_of_the_past_do_not_train_along(run):
    changes = {"method": "hat+lwf", "train": {"rounds": 5, "weight_decay": 0.1}}
    short, long = model(run("short", stream=ONE, **changes)), model(run("long", stream=TWO, **changes))
    for name in (name for name in short if name.startswith("gates.t0.trunk.")):
        assert torch.equal(short[name], long[name]), name


@pytest.mark.parametrize("kind", ["weights", "units"])
def test_importance_through_masks_is_that_of_single_samples(kind):
    torch.manual_seed(1)
    net = dynamic_net.build(Model(name="mlp", options={"hidden": [16, 12]}, masks=kind), (5,), 3)
    net.add_task("t0", 2, 8)
    for name, value in [*net.named_buffers(), *net.named_parameters()]:
        if name.endswith("owner"):
            value[torch.rand(value.shape) < 0.6] = WeightMask.UNUSED
        elif ".trunk." in name and name.endswith("logits"):
            value.data.copy_(0.003 * torch.randn(value.shape))
    x, y = torch.randn(20, 5), torch.randint(2, (20,))
    params = {name: value for name, value in net.named_parameters() if name.startswith("trunk.")}
    found = fisher.diagonal(
        net, lambda rows: net(rows, "t0"), list(params), x, y, kind="empirical", generator=torch.Generator()
    )
    loop = {name: torch.zeros_like(value) for name, value in params.items()}
    for row in range(20):
        loss = torch.nn.functional.cross_entropy(net(x[row : row + 1], "t0"), y[row : row + 1])
        for name, grad in zip(params, torch.autograd.grad(loss, list(params.values())), strict=True):
            loop[name] += grad.square() / 20
    for name, value in loop.items():
        assert float(value.sum()) > 0
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-9)


def test_si_does_not_count_moves_that_another_method_undoes(run):
    changes = {"methods": {"si": {"form": "last"}}, "train": {"rounds": 5}, "federation": {"clients": 1}}
    result = run("run", method="si+packnet", stream=TWO, **changes)
    params, kept = model(result), memory(result)
    for layer in ("0", "1"):
        owner = params[f"gates.t1.trunk.layers-{layer}.owner"]
        importance = kept[f"si/importance/trunk.layers.{layer}.weight"]
        assert float(importance[owner == WeightMask.TAKEN].sum()) == 0.0
        assert float(importance[owner == WeightMask.FREE].sum()) > 0.01


def test_cumulative_trains_on_what_a_hospital_without_a_task_now_has(run):
    table = {"tasks": 2, "classes": [[0, 1, 2], [3, 4, 5]], "schedule": "table", "table": [[0, 0, -1], [-1, -1, 1]]}
    train = {"rounds": 8, "epochs": 5}
    ended = run("run", method="cumulative", stream=table, train=train).pooled[-1]
    assert ended[0] > 0.6  # of three classes


def test_a_projection_holds_from_piece_to_piece(run):
    changes = {"method": "gpm", "methods": {"gpm": {"threshold": [0.9]}}, "federation": {"clients": 1}}
    changes |= {"model": {"heads": "shared", "mask": "task"}, "train": PIECES}
    short, long = run("short", stream=ONE, **changes), run("long", stream=TWO, **changes)
    basis = memory(short)["gpm/basis/trunk.layers.1"].double()
    before, after = model(short), model(long)
    moved = [after[f"trunk.layers.1.{kind}"] - before[f"trunk.layers.1.{kind}"] for kind in ("weight", "bias")]
    moved = torch.cat([moved[0], moved[1][:, None]], 1).double()
    assert float(moved.norm()) > 1e-3
    assert float((moved @ basis).norm() / moved.norm()) < 1e-4


@pytest.mark.parametrize(("method", "key"), [("si", "si/importance/"), ("ogd", "ogd/basis"), ("gpm", "gpm/basis/")])
def test_every_piece_of_a_stream_counts(run, method, key):
    options = {"si": {"form": "last"}} if method == "si" else {}
    result = run("run", method=method, methods=options, train=PIECES, stream=ONE)
    assert not [record for record in result.records if record.phase == "fault"]
    assert all(float(value.abs().sum()) > 0 for name, value in memory(result).items() if name.startswith(key))


@pytest.mark.parametrize("keep", ["herding", "reservoir", "balanced"])
def test_a_buffer_with_room_keeps_all_pieces_once(run, keep):
    options = {"replay": {"keep": keep, "size": 500}}
    result = run("run", method="replay", methods=options, train=PIECES, stream=ONE, federation={"clients": 1})
    kept = memory(result)
    rows = kept["replay/x"][: int(kept["replay/filled"])]
    assert len(rows) == len(torch.unique(rows, dim=0)) == int(result.split[:, :, 0].sum())


@pytest.mark.parametrize("method", ["replay", "agem"])
def test_a_task_that_comes_back_is_not_offered_again(run, method):
    stream = {**TWO, "schedule": "table", "table": [[0], [1], [0]]}
    result = run("run", method=method, methods={method: {"size": 500}}, stream=stream, federation={"clients": 1})
    kept = memory(result)
    rows = kept[f"{method}/x"][: int(kept[f"{method}/filled"])]
    assert len(rows) == len(torch.unique(rows, dim=0)) == int(result.split[:, :, 0].sum())


def test_a_herded_buffer_smaller_than_its_classes_is_not_empty(run):
    result = run("run", method="replay", methods={"replay": {"keep": "herding", "size": 3}})
    assert int(memory(result)["replay/filled"]) == 3
    assert not [record for record in result.records if record.phase == "fault"]


@pytest.mark.parametrize("method", ["der", "replay", "derpp"])
def test_a_curriculum_may_offer_nothing_in_a_step(run, method):
    options = {"replay": {"when": "step"}} if method == "replay" else {}
    train = {"order": "curriculum", "rounds": 4, "epochs": 4}
    result = run("run", method=method, methods=options, train=train)
    assert not [record for record in result.records if record.phase == "fault"]


def test_where_nothing_moves_nothing_is_projected(run):
    assert not [record for record in run("run", method="freeze+ogd").records if record.phase == "fault"]


@pytest.mark.parametrize("method", ["gpm", "ogd", "agem", "ewc"])
def test_with_nothing_to_protect_all_is_fine_tuning(run, method):
    """Also for modules that a step does not use: they get no gradient, so momentum does not move them."""
    joint = {"federation": {"kind": "joint"}}
    plain, edited = model(run("plain", method="finetune", **joint)), model(run("edited", method=method, **joint))
    for name, value in plain.items():
        torch.testing.assert_close(edited[name], value, rtol=0, atol=1e-6)


def test_a_late_consolidation_sees_the_classes_of_its_stage(run, monkeypatch):
    seen, honest = [], Client.run

    def dropped(self, client, job):
        if job.phase == "consolidate" and (client, job.stage) == (1, 0):
            seen.append(job.seen)
            if len(seen) == 1:
                raise RuntimeError("away")
        return honest(self, client, job)

    monkeypatch.setattr(Client, "run", dropped)
    run("run", method="ewc", model={"heads": "shared"})
    assert seen == [(0, 1), (0, 1)]


def test_inputs_of_too_few_samples_are_not_summed(small, tmp_path, monkeypatch):
    """With a bias the last column of R Rᵀ is the sum of the samples: of one sample, the sample."""
    rng = np.random.default_rng(0)
    x, y = rng.random((61, 12), dtype=np.float32), np.array([0, 1] * 30 + [1])
    site, split = np.array([0] * 30 + [1] * 30 + [2]), np.zeros(61, np.int8)
    split[24:30] = split[54:60] = 2
    samples = Samples(x, y, ("a", "b"), site=site, sites=("A", "B", "C"), split=split)
    sent, encode = {0: [], 1: [], 2: []}, wire.encode_update

    def spy(update):
        sent[update.client] += [key for key in update.extras if "gram" in key]
        return encode(update)

    monkeypatch.setattr(wire, "encode_update", spy)
    changes = {"method": "gpm", "methods": {"gpm": {"share": "sum"}}, "stream": {"tasks": 1}}
    changes |= {"partition": {"name": "site", "min_samples": 1}, "model": {"heads": "shared"}, "data": {"val": 0}}
    config = small(**changes, run={"output": str(tmp_path / "run")})
    simulate(
        config.model_copy(update={"data": config.data.model_copy(update={"options": {}, "name": "digits"})}), samples
    )
    assert sent[0]
    assert not sent[2]
