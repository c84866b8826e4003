"""FedWeIT in whole runs: what hospitals get of each other, and what is held and sent."""

from __future__ import annotations

import re
import tomllib

import pytest
import torch
from safetensors.torch import load_file
from small import BASE, merged

from fedcl.config import Config
from fedcl.contracts import FedclError
from fedcl.methods.fedweit import _unpacked
from fedcl.runtime import wire
from fedcl.simulation import simulate


def _memories(result):
    """Each hospital's newest memory, from its store on disk."""
    folders = sorted((result.path / "clients").iterdir())
    return [load_file(max(f.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)) for f in folders]


def test_modules_hold_what_the_others_sent(run):
    result = run("run", method="fedweit", stream={"tasks": 3}, model={"adapters": 3})
    memories = _memories(result)
    assert tomllib.loads((result.path / "config.toml").read_text())["federation"]["merger"] == "personal"
    assert len(memories) == 3
    for client, memory in enumerate(memories):
        first, last = (memory[f"own/gates.t{task}.trunk.layers-0.received"] for task in (0, 2))
        assert not first.any()
        like = {f"layers.{k}": memory[f"own/gates.t2.trunk.layers-{k}.adaptive"] for k in (0, 1)}
        theirs = [_unpacked(memory, f"fedweit/theirs/{(client + k) % 3}/", like) for k in (1, 2)]
        others = [layers["layers.0"] for layers in theirs]
        assert torch.equal(last, torch.stack([*others, torch.zeros_like(others[0])]))
        assert memory["own/gates.t2.trunk.layers-0.attention"][:2].all()
        assert not memory["own/gates.t2.trunk.layers-0.attention"][2]


def test_a_hospital_that_was_away_gets_the_knowledge_too(run):
    table = [[0, 0, 0], [1, 1, -1], [2, 2, 2]]
    result = run("away", method="fedweit", stream={"schedule": "table", "table": table})
    memories = _memories(result)
    assert not any("own/gates.t1" in name for name in memories[2])
    received = [memory["own/gates.t2.trunk.layers-0.received"] for memory in memories]
    assert torch.equal(received[2][0], received[1][1])  # hospital 0's, of t1
    assert received[2][0].any()


def test_a_third_of_the_units_is_not_sent_and_knowledge_is_sparse(run, monkeypatch):
    moved, sent, encode = [], [], wire.encode_update

    def spy(update):
        moved.extend(value.clone() for name, value in update.arrays.items() if name == "trunk.layers.0.weight")
        sent.extend(len(value) for name, value in update.extras.items() if re.search("/mine/./values", name))
        assert not any(name.startswith(("gates.", "tasks.")) for name in update.arrays if update.weight)
        return encode(update)

    monkeypatch.setattr(wire, "encode_update", spy)
    run("run", method="fedweit", methods={"fedweit": {"closed": 0.3, "sparsity": 0.03}})
    assert len(moved) == 3 * 3 * 2
    assert all(int((value == 0).all(1).sum()) >= 4 for value in moved)  # ⌊0.3 · 16⌋
    assert len(sent) == 3 * 3  # hospitals × tasks
    assert 0 < min(sent) <= max(sent) < 0.7 * (12 * 16 + 16 * 16)


def test_bytes_fall_as_knowledge_gets_sparser(run):
    """With λ1 above all of 448 weights, none goes up for 9 tasks, nor down to 3 hospitals for 6 of them."""
    up, down = {}, {}
    for sparsity in (0.0, 0.03, 99.0):
        result = run(f"run{sparsity}", method="fedweit", methods={"fedweit": {"sparsity": sparsity}})
        up[sparsity], down[sparsity] = result.bytes_up, result.bytes_down
    assert up[0.0] > up[0.03] > up[99.0]
    assert down[0.0] > down[0.03] > down[99.0]
    assert up[0.0] - up[99.0] == 9 * 4 * 448
    assert down[0.0] - down[99.0] == 3 * 6 * 4 * 448


@pytest.mark.parametrize("step", ["proximal", "explicit"])
def test_old_tasks_are_held_better_than_without_retention(run, step):
    """By how far the weights are from those at the task's end that a hospital remembers."""
    drift = {}
    for strength in (0.0, 3.0):
        options = {"strength": strength, "step": step}
        result = run(f"run{strength}", method="fedweit", methods={"fedweit": options}, train={"rounds": 4})
        squares = []
        for memory in _memories(result):
            gate, held = memory["fedweit/gate/t0/layers.0"], memory["fedweit/held/t0/layers.0"]
            base = load_file(result.path / "model.safetensors")["trunk.layers.0.weight"]
            now = base * gate[:, None] + memory["own/gates.t0.trunk.layers-0.adaptive"]
            squares.append(float((now - held).square().sum()))
        drift[strength] = sum(squares)
    assert drift[3.0] < 0.5 * drift[0.0]


def test_it_works_with_convolutions(tmp_path):
    data = {"options": {"samples": 240, "classes": 4, "shape": [1, 8, 8]}}
    start = merged(BASE, data=data, stream={"tasks": 2}, run={"output": str(tmp_path / "cnn")})
    model = {"name": "cnn", "options": {"channels": [4, 4], "width": 16}}
    result = simulate(Config.model_validate(start | {"method": "fedweit", "model": model}))
    assert [record for record in result.records if record.phase == "fault"] == []
    assert _memories(result)[0]["own/gates.t1.trunk.convs-1.received"].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"federation": {"merger": "weighted"}}, "merger must be 'auto' or 'personal'"),
        ({"federation": {"aggregator": "median"}}, "must be 'fedavg'"),
        ({"model": {"heads": "shared", "mask": "task"}}, "heads must be 'task'"),
        ({"model": {"masks": "units"}}, "model.masks"),
        ({"methods": {"fedweit": {"closed": 1.0}}}, "closed"),
        ({"methods": {"fedweit": {"step": "closed"}}}, "explicit"),
    ],
)
def test_what_cannot_work_is_refused(run, tmp_path, changes, message):
    with pytest.raises(FedclError, match=message):
        run("refused", method="fedweit", **changes)
    assert not (tmp_path / "refused").exists()
