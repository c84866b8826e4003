"""What a run writes down of its nets."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from small import stop_after

from fedcl.anatomy import FILE, histograms, uses
from fedcl.server import Interrupted
from fedcl.simulation import simulate


def told(result):
    return json.loads((result.path / FILE).read_text())


def test_histograms_are_densities():
    old = torch.tensor([-1.0, 0.0, 0.0, 1.0])
    move = torch.tensor([0.0, 0.0, 0.3, -0.4])
    facts = histograms(old, old + move, torch.tensor([0.0, 1e-4, 1e-4, 1e-2]))
    for part, name in (("values", "before"), ("values", "after"), ("moves", "density")):
        width = 2 * facts[part]["edge"] / 81
        assert sum(facts[part][name]) * width == pytest.approx(1, rel=1e-3)
    assert facts["distance"] == pytest.approx(0.5)
    assert facts["importance"]["zero"] == pytest.approx(0.25)
    assert (facts["importance"]["low"], facts["importance"]["high"]) == pytest.approx((-4, -2), abs=0.01)
    assert facts["importance"]["moved"][0] == pytest.approx(0.15)  # the mean of 0 and 0.3
    assert facts["importance"]["moved"][-1] == pytest.approx(0.4)
    assert facts["importance"]["moved"][40] is None


def test_uses_of_gates_and_masks():
    params = {
        "gates.a.mask": torch.tensor([1.0, 0.0]),
        "gates.a.logits": torch.zeros(2),
        "gates.a.trunk.layers-0.open": torch.tensor([1.0, 1.0, 0.0, 1.0]),
        "gates.a.trunk.layers-1.owner": torch.tensor([[0, 1], [2, 2]], dtype=torch.uint8),
        "gates.b.trunk.layers-0.logits": torch.tensor([2.0, -1.0]),
    }
    assert uses(params, "a") == [("module", 1.0, 0.25), ("layers.0", 3.0, 0.75), ("layers.1", -1.0, 0.75)]
    assert uses(params, "b") == [("layers.0", 1.0, 0.5)]


def test_weights_before_and_after_are_the_runs_own(small, tmp_path):
    strong = {"ewc": {"strength": 1e6}}
    held = simulate(small(method="ewc", methods=strong, run={"output": str(tmp_path / "ewc")}))
    free = simulate(small(method="finetune", run={"output": str(tmp_path / "free")}))
    assert told(held).keys() == told(free).keys() == {"0", "1", "2"}
    assert told(held)["0"] == told(free)["0"]  # nothing is protected yet
    assert told(held)["2"]["distance"] < 0.5 * told(free)["2"]["distance"]
    assert "importance" in told(held)["1"]
    assert "importance" not in told(held)["0"]
    assert "importance" not in told(free)["2"]
    weights = [
        v for n, v in load_file(held.path / "model.safetensors").items() if n.startswith("trunk") and v.dim() > 1
    ]
    assert told(held)["2"]["count"] == sum(value.numel() for value in weights)
    assert not (held.path / "before.safetensors").exists()


def test_the_servers_importance_and_a_resumed_run(small, tmp_path, monkeypatch):
    method = {"method": "ewc", "methods": {"ewc": {"share": "sum"}}}
    whole = simulate(small(**method, run={"output": str(tmp_path / "whole")}))
    assert "importance" in told(whole)["2"]
    config = small(**method, run={"output": str(tmp_path / "stopped"), "checkpoint_every": 1})
    with monkeypatch.context() as patch:
        stop_after(patch, 4)  # after a stage's first round
        with pytest.raises(Interrupted):
            simulate(config)
    assert told(simulate(config)) == told(whole)


def test_hospitals_that_were_away_hold_importances_of_the_net_as_it_was(small, tmp_path):
    """Staggered: one hospital is through with its tasks while the trunk grows for the others."""
    growth = {"threshold": {"window": 1, "patience": 2, "where": "trunk", "ratio": 0.99, "smallest": 0.0}}
    grows = {"model": {"growth": "threshold"}, "growth": growth, "stream": {"schedule": "staggered"}}
    result = simulate(small(method="ewc", train={"rounds": 4}, **grows, run={"output": str(tmp_path / "run")}))
    stages = list(told(result).values())
    assert len({r.value for r in result.records if (r.phase, r.name, r.note) == ("model", "units", "layers.0")}) > 2
    assert all("importance" in stage for stage in stages[1:])


def test_growth_is_recorded(small, tmp_path):
    run = {"output": str(tmp_path / "run")}
    growth = {"threshold": {"window": 1, "patience": 1, "units": 4, "where": "trunk", "ratio": 0.99}}
    result = simulate(small(model={"growth": "threshold"}, growth=growth, train={"rounds": 5}, run=run))
    grown = [r for r in result.records if r.phase == "growth"]
    assert grown
    assert all(r.note.startswith("from ") and int(r.note[5:]) < r.value for r in grown)
    units = [r for r in result.records if (r.phase, r.name, r.task) == ("model", "units", "trunk")]
    assert {r.note for r in units} == {"layers.0", "layers.1"}
    assert max(r.value for r in units) > 16
    share = {(r.task, r.note): r.value for r in result.records if (r.phase, r.name) == ("model", "use")}
    assert share["t0", "layers.0"] == 1.0  # of the units that there were
