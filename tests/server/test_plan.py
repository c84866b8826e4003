"""What is sent to whom: a function of the round alone, and no more than the stage needs."""

from __future__ import annotations

import random

import pytest
from flwr.app import Message
from small import model

from fedcl import defaults, federation, methods
from fedcl.client import Client
from fedcl.contracts import role
from fedcl.models import dynamic_net
from fedcl.plan import Plan
from fedcl.runtime import wire
from fedcl.runtime.inline import InlineGrid
from fedcl.state import Group, State


def _plan(config):
    data = federation.build(config)
    net = dynamic_net.build(config.model, data.shape, len(data.classes))
    for task in data.tasks:
        net.add_task(task.id, len(task.classes), config.model.expansion_units)
    state = State([Group(clients, dict(net.state_dict())) for clients in data.groups])
    return Plan(config, data, methods.build(config), net.owner), state


def test_only_the_trunk_and_the_own_module_are_sent(small):
    plan, state = _plan(small())
    for stage, task in enumerate(("t0", "t1", "t2")):
        for _, job in plan.training(state, state.groups[0], stage, 0):
            assert {role(name) for name in job.arrays} == {"", task}


@pytest.mark.parametrize("method", ["finetune", "lwf", "hat", "lwf+hat", "cumulative"])
@pytest.mark.parametrize("seed", range(3))
def test_all_that_send_a_part_send_the_same_names_of_it(small, method, seed):
    """Whatever the schedule: a rule that merges gets deltas that are alike."""
    clients, draw = 5, random.Random(seed)
    table = [[draw.randrange(-1, 3) for _ in range(clients)] for _ in range(4)]
    stream = {"schedule": "table", "table": [row if any(t >= 0 for t in row) else [0] * clients for row in table]}
    more = {"federation": {"clients": clients}, "partition": {"name": "iid"}}
    plan, state = _plan(defaults.fill(small(method=method, stream=stream, **more)))
    (group,), along = state.groups, False
    for stage in range(len(table)):
        found: dict[str, dict[int, set[str]]] = {}
        for client, job in plan.training(state, group, stage, 0):
            for name in plan.expected(job.arrays, job):
                found.setdefault(role(name), {}).setdefault(client, set()).add(name)
            had = {t for row in table[:stage] if (t := row[client]) >= 0}
            along = along or bool({role(name) for name in plan.expected(job.arrays, job)} - {"", *job.tasks})
            assert {role(n) for n in plan.expected(job.arrays, job)} <= {"", *job.tasks, *(f"t{t}" for t in had)}
        assert all(names == own for part in found.values() for names in part.values() for own in part.values())
        assert {part: sorted(own) for part, own in found.items()} == plan.senders(stage, group.clients)
    assert along == ("lwf" in method)


def test_the_cohort_is_a_function_of_the_round(small):
    config = small(federation={"clients": 6, "fraction": 0.5}, data={"options": {"samples": 900}})
    (plan, state), (again, other) = _plan(config), _plan(config)
    cohorts = [[c for c, _ in plan.training(state, state.groups[0], 0, n)] for n in range(2)]
    assert cohorts == [[c for c, _ in again.training(other, other.groups[0], 0, n)] for n in (0, 1)]
    assert all(len(cohort) == 3 and cohort == sorted(cohort) for cohort in cohorts)
    drawn = {tuple(c for c, _ in plan.training(state, state.groups[0], s, n)) for s in range(3) for n in range(2)}
    assert len(drawn) > 1


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("constant", [0.1] * 4), ("cosine", [0.1, 0.0853553, 0.05, 0.0146447]), ("step", [0.1, 0.1, 0.1, 0.01])],
)
def test_learning_rate_over_the_rounds_of_a_stage(small, schedule, rates):
    config = small(train={"rounds": 4, "lr": 0.1, "lr_schedule": schedule})
    plan, state = _plan(config)
    for stage in (0, 1):
        sent = [plan.training(state, state.groups[0], stage, n)[0][1].lr for n in range(4)]
        assert sent == pytest.approx(rates, rel=1e-5)


def test_bytes_are_counted_from_what_was_sent(run, monkeypatch):
    seen = {"down": 0, "up": 0}
    deliver = InlineGrid._deliver

    def spy(self, message: Message) -> Message:
        reply = deliver(self, message)
        if message.metadata.message_type == "train":
            seen["down"] += wire.size(message.content)
            seen["up"] += wire.size(reply.content)
        return reply

    monkeypatch.setattr(InlineGrid, "_deliver", spy)
    result = run("run")
    for way in seen:
        told = sum(r.value for r in result.records if r.phase == "train" and r.name == f"bytes_{way}")
        assert told == seen[way] > 0


def test_bounds(run):
    """Local ones are as many models as hospitals; joint knows all tasks at once and central one after another."""
    local = run("local", federation={"kind": "local"})
    assert sorted(p.name for p in local.path.glob("model*")) == [f"model-{k}.safetensors" for k in range(3)]
    assert local.accuracy.shape == (3, 3, 3)
    joint = run("joint", method="finetune", federation={"kind": "joint"})
    assert joint.accuracy.shape == (1, 3, 3)
    assert not any(value != value for value in joint.pooled[0])
    central = run("central", federation={"kind": "central"})
    assert central.accuracy.shape == (3, 3, 3)
    assert {role(name) for name in model(central) if not name.startswith("infer.")} == {"", "t0", "t1", "t2"}


def test_forward_transfer_is_measured_from_the_untrained_net(run):
    result = run("run", stream={"kind": "domain", "tasks": 2}, model={"heads": "shared"})
    start = {
        r.task: r.value for r in result.records if r.phase == "start" and r.client is None and r.name == "accuracy"
    }
    assert result.baseline.tolist() == [start["t0"], start["t1"]]
    transfer = result.pooled[0, 1] - start["t1"]
    assert result.metrics["forward_transfer"] == pytest.approx(transfer)


def test_consolidation_on_the_local_model(run):
    merged, local = run("merged"), run("local", federation={"consolidate_on": "local"})
    assert local.metrics["average_accuracy"] > 0.5
    first, second = model(merged), model(local)
    assert not all(first[name].equal(second[name]) for name in first)
    phases = [r.phase for r in local.records if r.phase == "consolidate" and r.value > 0]
    assert not phases  # nobody had to be asked again


def test_gates_close_at_the_servers_word(run):
    closed = model(run("closed", model={"gate_threshold": 0.8809}))  # a gate starts at σ(2) = 0.8808
    masks = [value for name, value in closed.items() if name.endswith(".mask")]
    assert all(set(mask.tolist()) <= {0.0, 1.0} for mask in masks)
    assert 0 < sum(float(mask.sum()) for mask in masks) < sum(mask.numel() for mask in masks)


def test_a_hospital_begins_a_stage_when_it_first_trains_in_it(run, monkeypatch):
    """Consolidating on the way is no beginning: a task that comes back is streamed from its start."""
    jobs, went = [], Client.run

    def spy(self, client, job):
        update = went(self, client, job)
        if job.phase == "train":
            jobs.append((job.stage, client, "begin" in job.flags, update.weight))
        return update

    monkeypatch.setattr(Client, "run", spy)
    stream = {"schedule": "table", "table": [[0, 0, 0], [1, 1, 1], [0, 0, 0]]}
    train = {"rounds": 6, "stream": "hybrid", "consolidate_every": 2}
    run(method="ewc", train=train, federation={"fraction": 0.34}, stream=stream)
    for stage in range(3):
        drawn = [(client, begins, weight) for at, client, begins, weight in jobs if at == stage]
        first = {client: (begins, weight) for client, begins, weight in reversed(drawn)}
        assert all(begins and weight > 0 for begins, weight in first.values())
        assert sum(begins for _, begins, _ in drawn) == len(first)
