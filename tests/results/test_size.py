"""How large a net is said to be, wherever its modules lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest

from fedcl import finish, methods
from fedcl.config import Config
from fedcl.contracts import Aggregator, FedclError


@dataclass(frozen=True)
class Home(Aggregator):
    """Somebody's own `personal`."""

    stays: ClassVar[bool] = True


GROWING = {
    "method": "finetune",
    "data": {"val": 0.2},
    "model": {"growth": "threshold"},
    "growth": {"threshold": {"window": 1, "patience": 1, "ratio": 0.99}},
    "train": {"rounds": 4},
}


def test_sizes_by_hand():
    """A trunk of 100, a module of 20 that became 40, another of 20: 160 / 120, and that by two nets."""
    grown = finish.size({"trunk": 100, "t0": 40, "t1": 20}, {"trunk": 100, "t0": 20, "t1": 20}, 2)
    by = {"parameter_growth": pytest.approx(160 / 120), "capacity": pytest.approx(80 / 120)}
    assert grown == {"parameters_start": 120} | by
    shared = finish.size({"trunk": 100, "shared": 30}, {"trunk": 100, "shared": 30}, 5)
    assert shared == {"parameters_start": 130, "parameter_growth": 1.0, "capacity": 0.2}
    assert finish.size({"trunk": 100}, {"trunk": 100}, 1)["parameter_growth"] == 1.0


def test_modules_that_stay_at_hospitals_count_as_they_were_built(run):
    """Of three tasks, in the same net: merged or at home, it is as large."""
    merged, home = (
        run(name, method="finetune", federation={"merger": name}, model={"infer": "entropy"}).metrics
        for name in ("weighted", f"{__name__}:Home")
    )
    assert home["parameter_growth"] == merged["parameter_growth"] > 1
    assert home["capacity"] == merged["capacity"] == pytest.approx(merged["parameter_growth"] / 3)
    assert home["latency_ms"] > 0


def test_nobody_knows_how_large_modules_grew_at_home(run):
    for merger in ("personal", f"{__name__}:Home"):
        apart = run(merger, **GROWING | {"federation": {"merger": merger}}).metrics
        assert all(
            math.isnan(apart[name]) for name in ("parameters_start", "parameter_growth", "capacity", "latency_ms")
        )
    together = run("together", **GROWING).metrics
    assert together["parameter_growth"] > 1
    assert together["latency_start_ms"] > 0


@pytest.mark.parametrize("rule", ["den", "prune", "search"])
def test_the_server_cannot_decide_on_modules_that_stay_with_any_merger(rule):
    config = {"model": {"growth": rule}, "federation": {"merger": f"{__name__}:Home"}}
    with pytest.raises(FedclError, match=r"federation\.merger = '.*:Home'"):
        methods.build(Config.model_validate(config))


def test_where_each_is_alone_it_is_the_largest_net(run):
    """Here the second's: the first grew less."""
    growth = {"threshold": {"window": 1, "patience": 1, "ratio": 0.15}}
    result = run(**GROWING | {"federation": {"kind": "local"}, "growth": growth, "seed": 25})
    nets = [finish.read(result.path / f"model-{hospital}.safetensors")[0] for hospital in range(3)]
    sizes = [sum(value.numel() for name, value in net.items() if not name.startswith("gates.")) for net in nets]
    assert sizes[0] < max(sizes)
    assert result.metrics["parameters_start"] * result.metrics["parameter_growth"] >= max(sizes)


def test_a_shared_head_is_one_of_as_many_nets_as_there_are_tasks(run):
    metrics = run(method="finetune", model={"heads": "shared"}).metrics
    assert metrics["parameter_growth"] == 1.0
    assert metrics["capacity"] == pytest.approx(1 / 3)
