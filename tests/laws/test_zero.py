"""At strength 0 every method is plain fine-tuning, bit for bit."""

from __future__ import annotations

import pytest
import torch
from small import model

from fedcl import plugins

ZERO = {
    **{name: {"strength": 0.0} for name in ("ewc", "l2", "si", "mas", "lwf", "retain", "fedprox", "scaffold")},
    "replay": {"weight": 0.0},
    "der": {"alpha": 0.0},
    "derpp": {"alpha": 0.0, "beta": 0.0},
    "target": {"strength": 0.0, "labels": 0.0},
}
# These have no strength: a basis or a memory that is empty, a mask that is open, and bounds.
WITHOUT = {"agem", "cumulative", "fedweit", "finetune", "fot", "freeze", "gpm", "hat", "ogd", "packnet"}


def test_every_method_is_in_one_of_the_lists():
    assert set(ZERO) | WITHOUT == set(plugins.names("methods"))


@pytest.mark.parametrize("step", ["proximal", "explicit"])
@pytest.mark.parametrize("name", ZERO)
def test_strength_zero_is_finetune(run, name, step):
    penalty = name in ("ewc", "l2", "si", "mas")
    if step == "explicit" and not penalty:
        pytest.skip("it has one step only")
    options = ZERO[name] | ({"step": step} if penalty else {})
    none = model(run("finetune", method="finetune"))
    zero = model(run("zero", method=name, methods={name: options}))
    for key, value in none.items():
        assert torch.equal(value, zero[key]), key


@pytest.mark.parametrize("name", ["agem", "gpm", "ogd"])
def test_in_the_first_stage_there_is_nothing_to_protect(run, name):
    stream = {"classes": [[0, 1]], "tasks": 1}
    none, first = (
        model(run("finetune", method="finetune", stream=stream)),
        model(run("first", method=name, stream=stream)),
    )
    for key, value in none.items():
        assert torch.equal(value, first[key]), key
