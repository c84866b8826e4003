"""Merging deltas: by hand, and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from fedcl import plugins
from fedcl.contracts import Aggregator, Update
from fedcl.merge import Merge, check

FEDAVG = plugins.load("aggregators", "fedavg")()
WEIGHTED = plugins.load("mergers", "weighted")()


def _update(client, weight, **arrays):
    return Update(client, {name.replace("__", "."): torch.tensor(v) for name, v in arrays.items()}, weight, {})


def _params():
    names = ["trunk.w", "tasks.t0.w", "tasks.t1.w", "gates.t0.mask", "tasks.shared.w"]
    return {name: torch.tensor([10.0]) for name in names}


def test_weighted_by_samples_and_by_owners():
    merge = Merge(FEDAVG, WEIGHTED)
    merge.add(_update(0, 10.0, trunk__w=[1.0], tasks__t0__w=[2.0]))
    merge.add(_update(1, 30.0, trunk__w=[5.0], tasks__t1__w=[4.0]))
    merge.add(_update(2, 10.0, trunk__w=[0.0], tasks__t1__w=[8.0]))
    params, _ = merge.apply(_params(), {})
    assert params["trunk.w"].item() == pytest.approx(10 + (10 * 1 + 30 * 5) / 50)
    assert params["tasks.t0.w"].item() == pytest.approx(12)
    assert params["tasks.t1.w"].item() == pytest.approx(10 + (30 * 4 + 10 * 8) / 40)
    assert params["gates.t0.mask"].item() == 10  # buffers are never averaged
    assert params["tasks.shared.w"].item() == 10


def test_a_rule_that_is_not_linear_gets_all_deltas():
    @dataclass(frozen=True)
    class Median(Aggregator):
        linear: ClassVar[bool] = False

        def reduce(self, deltas, weights, measured):
            return {name: torch.stack([d[name] for d in deltas]).median(0).values for name in deltas[0]}

    merge = Merge(Median(), WEIGHTED)
    for client, value in enumerate([1.0, 100.0, 2.0]):
        merge.add(_update(client, 1.0, trunk__w=[value]))
    assert merge.apply(_params(), {})[0]["trunk.w"].item() == 12


def test_a_rule_keeps_what_it_remembers_of_names_that_a_round_leaves_out():
    """The second value is away in the second round; in the third its momentum is that of the first."""
    rule, one, two = plugins.load("aggregators", "fedavgm")(lr=1.0, momentum=0.5), torch.ones(1), torch.zeros(1)
    params, states = {"tasks.t0.a": one, "tasks.t0.b": one}, {}
    for arrays in ({"a": one, "b": one}, {"a": two}, {"a": two, "b": two}):
        merge = Merge(FEDAVG, rule)
        merge.add(Update(0, {f"tasks.t0.{name}": value.clone() for name, value in arrays.items()}, 1.0, {}))
        params, states = merge.apply(params, states)
    assert params["tasks.t0.a"].item() == pytest.approx(1 + 1 + 0.5 + 0.25)
    assert params["tasks.t0.b"].item() == pytest.approx(1 + 1 + 0.5)


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_a_name_that_comes_later_starts_as_in_the_first_round(name):
    rule, params, states = plugins.load("aggregators", name)(), {"trunk.a": torch.zeros(1)}, {}
    for names in ("a", "ab"):
        merge = Merge(rule, WEIGHTED)
        merge.add(Update(0, {f"trunk.{n}": torch.ones(1) for n in names}, 1.0, {}))
        params, states = merge.apply({"trunk.b": torch.zeros(1)} | params, states)
    assert params["trunk.b"].item() > 0


def test_across_sees_the_modules_of_the_rounds_tasks_alone():
    @dataclass(frozen=True)
    class Swallow(Aggregator):
        def across(self, modules):
            return {task: {name: torch.zeros(1) for name in own} for task, own in modules.items()}

    merge = Merge(FEDAVG, Swallow(), current={"t0"})
    merge.add(_update(0, 1.0, trunk__w=[1.0], tasks__t0__w=[1.0], tasks__t1__w=[1.0]))
    params, _ = merge.apply(_params(), {})
    assert [params[f"tasks.{task}.w"].item() for task in ("t0", "t1")] == [0, 11]


EXPECTED = {"trunk.w": torch.zeros(2), "tasks.t0.w": torch.zeros(1)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"trunk.w": torch.tensor([1.0, math.nan])}, "NaN or infinity"),
        ({"trunk.w": torch.tensor([math.inf, -math.inf])}, "NaN or infinity"),
        ({"trunk.w": torch.zeros(3)}, "shape"),
        ({"trunk.w": torch.zeros(2, dtype=torch.float64)}, "dtype"),
        ({"tasks.t1.w": torch.zeros(1)}, "not asked for"),
        ({"trunk.w": None}, "missing"),
        ({}, ""),
        ({"trunk.w": torch.tensor([3e38, 3e38])}, ""),  # the sum overflows, the values do not
    ],
)
def test_what_cannot_be_merged_is_named(change, reason):
    arrays = {name: value for name, value in (EXPECTED | change).items() if value is not None}
    said = check(arrays, EXPECTED)
    assert reason in said
    assert bool(said) == bool(reason)
