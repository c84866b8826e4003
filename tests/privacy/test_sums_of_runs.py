"""Whole runs under secure aggregation: the numbers of a plain server, wherever hospitals differ in what they have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import model

from fedcl.contracts import FedclError

SUMS = {"privacy": {"mechanism": "secagg"}}


def test_a_sum_is_what_the_plain_server_gets(run):
    plain, hidden = run("plain", method="finetune"), run("hidden", method="finetune", **SUMS)
    first, second = model(plain), model(hidden)
    assert all(torch.allclose(first[name], value, atol=1e-5) for name, value in second.items())
    assert not [record for record in hidden.records if record.phase == "fault"]
    weights = {r.value for r in hidden.records if (r.phase, r.name) == ("train", "samples")}
    assert not weights  # nobody's count shows
    np.testing.assert_allclose(hidden.pooled, plain.pooled, atol=0.02)  # a sample at the border
    answers = [r for r in hidden.records if r.phase in ("start", "end") and r.name == "accuracy"]
    assert answers
    assert all(r.client is None for r in answers)


def test_answers_are_summed_where_a_hospital_has_no_module_of_some_task(run):
    table = [[0, 0, 0, 0], [1, 1, 1, -1], [2, 2, 2, 2]]
    own = {"federation": {"clients": 4, "merger": "personal"}, "stream": {"schedule": "table", "table": table}}
    changes = {"method": "finetune", "partition": {"name": "iid"}, **own}
    hidden, plain = run("hidden", **changes, **SUMS), run("plain", **changes)
    assert not [record for record in hidden.records if record.phase == "fault"]
    np.testing.assert_allclose(hidden.pooled, plain.pooled, atol=0.02)


def test_a_round_without_new_samples_is_summed_too(run):
    """Streams of few samples over many rounds: the hospitals that have none weigh nothing, or nobody does."""
    train = {"stream": "online", "rounds": 40, "epochs": 1}
    changes = {"method": "finetune", "stream": {"tasks": 1}, "train": train, "data": {"options": {"samples": 120}}}
    hidden, plain = run("hidden", **changes, **SUMS), run("plain", **changes)
    assert not [record for record in hidden.records if record.phase == "fault"]
    first, second = model(plain), model(hidden)
    assert all(torch.allclose(first[name], value, atol=1e-4) for name, value in second.items())


def test_nobody_is_summed_with_too_few(run):
    with pytest.raises(FedclError, match="cohort"):
        run("few", method="finetune", federation={"clients": 2}, partition={"min_samples": 1}, **SUMS)
    with pytest.raises(FedclError, match="in some stage only"):
        run("alone", method="finetune", stream={"schedule": "staggered"}, **SUMS)
