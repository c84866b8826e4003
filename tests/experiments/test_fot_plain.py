"""The plain loop that FOT's figures are held against does what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture
def plain(monkeypatch):
    """The script as a module, on 250 samples of noise."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "experiments"))
    sys.modules.pop("fot_plain", None)
    import fot_plain

    torch.manual_seed(0)
    data = torch.rand(250, 784), torch.arange(250) % 10
    monkeypatch.setattr(fot_plain, "load", lambda name: (data, data))
    return fot_plain


def test_everything_is_dealt_out_once(plain):
    labels = torch.arange(250) % 10
    for shards in (False, True):
        held = plain.deal(labels, shards, np.random.RandomState(0))
        assert sorted(np.concatenate(held).tolist()) == list(range(250))
        assert {len(rows) for rows in held} == {2}


def test_weights_do_not_move_along_the_basis(plain):
    """Biases do, and all weights of a layer whose basis is empty."""
    model, (x, y) = plain.net(), plain.load("")[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    half = torch.linalg.qr(torch.rand(400, 200))[0]
    basis = {0: torch.eye(784), 3: half, 6: torch.empty(400, 0), 9: torch.eye(400)}
    assert plain.one_round(model, [(x[:50], y[:50]), (x[50:80], y[50:80])], basis, last=False) == []
    moved = {name: value - before[name] for name, value in model.state_dict().items()}
    for name in ("0.weight", "9.weight"):
        torch.testing.assert_close(moved[name], torch.zeros_like(moved[name]), atol=1e-6, rtol=0)
    torch.testing.assert_close(moved["3.weight"] @ half, torch.zeros(400, 200), atol=1e-6, rtol=0)
    assert moved["3.weight"].abs().max() > 1e-5
    assert moved["6.weight"].abs().max() > 1e-5
    assert all(moved[f"{layer}.bias"].abs().max() > 0 for layer in basis)


def test_a_basis_grows_by_what_it_has_yet_to_cover(plain):
    model, (x, y) = plain.net(), plain.load("")[0]
    empty = {layer: torch.empty(784 if layer == 0 else 400, 0) for layer in plain.INPUTS}
    told = plain.one_round(model, [(x, y)], empty, last=True)
    assert [told[0][layer][1] for layer in plain.INPUTS] == pytest.approx([1.0] * 4)
    first = plain.extend(empty[0], [told[0][0]], 0.9)
    torch.testing.assert_close(first.T @ first, torch.eye(first.shape[1]), atol=1e-5, rtol=0)
    inputs = x.T
    assert (first.T @ inputs).norm() ** 2 > 0.8 * inputs.norm() ** 2
    assert plain.extend(empty[0], [told[0][0]], 0.99).shape[1] > first.shape[1]


@pytest.mark.parametrize("asked", [[], ["--threshold", "0.9", "--shards"]])
def test_it_runs_and_says_what_it_came_to(plain, monkeypatch, capsys, asked):
    monkeypatch.setattr(sys, "argv", ["fot_plain.py", "--tasks", "2", "--rounds", "1", *asked])
    plain.main()
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("after task 0: ")
    assert len(second.split(": ")[1].split()) == 2
    before, after = float(first.split()[-1]), [float(value) for value in second.split()[-2:]]
    average, forgetting = (float(part.split()[-1]) for part in last.split(", "))
    assert average == pytest.approx(np.mean(after), abs=0.06)
    assert forgetting == pytest.approx(before - after[0], abs=0.11)
