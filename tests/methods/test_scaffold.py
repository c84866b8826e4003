"""SCAFFOLD: control variates by hand, whoever takes part, and with momentum."""

from __future__ import annotations

import pytest
import torch
from contexts import Linear, context
from small import merged, model

from fedcl import optimizers
from fedcl.config import Config, Train
from fedcl.contracts import FedclError, Moment
from fedcl.methods import build
from fedcl.methods.scaffold import Scaffold

W = "trunk.w"
FIRST = "trunk.layers.0.weight"  # of a whole run's net
TABLE = [[0, 0, 1, -1], [-1, 1, 0, 0]]


def _w(*values):
    return {W: torch.tensor(values)}


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_scaffold_by_hand(strength):
    """K = 2 steps at η = 0.1 from 1.0 to 0.6: a mean step of 2; c = 0.5, c_i = 0.75; n_i = 10 of M = 40."""
    method = Scaffold(momentum=0.0, strength=strength)
    ctx = context(Linear(), start=_w(1.0), lr=0.1, step=2)
    memory = {f"own/{W}": torch.tensor([0.75]), f"all/{W}": torch.tensor([0.5])}
    grads, _ = method.edit_grads(ctx, _w(1.0), _w(3.0), memory)
    assert grads[W].item() == pytest.approx(3.0 + strength * (0.5 - 0.75))
    memory = method.end_round(ctx, _w(0.6), memory)
    new = strength * (0.75 - 0.5) + 2.0
    assert memory[f"own/{W}"].item() == pytest.approx(new)
    sent = method.upload(memory)
    assert sent.keys() == {f"news/{W}", "first"}
    before = {f"all/{W}": torch.tensor([0.5]), "joined": torch.tensor(40.0)}
    state, said = method.server({}, before, [(10.0, sent)])
    assert state[f"all/{W}"].item() == pytest.approx(0.5 + 10 * (new - 0.75) / 40)
    assert state["joined"].item() == 40
    assert method.receive(said, memory)[f"all/{W}"].item() == state[f"all/{W}"].item()
    assert said.keys() == {f"all/{W}"}


def test_scaffold_takes_out_what_it_put_in():
    """At any strength c_i is the mean of the gradients before the correction: 4 and 8 along these two steps."""
    for strength in (0.0, 0.3, 1.0):
        method, start, weight = Scaffold(momentum=0.0, strength=strength), _w(1.0), _w(1.0)
        memory = {f"own/{W}": torch.tensor([3.0]), f"all/{W}": torch.tensor([-2.0])}
        ctx = context(Linear(), start=start, lr=0.1, step=2)
        for gradient in (4.0, 8.0):
            edited, memory = method.edit_grads(ctx, weight, _w(gradient), memory)
            weight = {W: weight[W] - 0.1 * edited[W]}
        assert method.end_round(ctx, weight, memory)[f"own/{W}"].item() == pytest.approx(6.0, abs=1e-5)


def test_scaffold_begins_anew_with_a_stage_and_goes_on_within_it():
    method, ctx = Scaffold(momentum=0.0), context(Linear(), task=1, start=_w(1.0), lr=0.1, step=1)
    old = {f"own/{W}": torch.tensor([9.0]), f"all/{W}": torch.tensor([0.5]), "stage": torch.tensor(0)}
    memory = method.begin_task(ctx, _w(1.0), old)
    assert method.edit_grads(ctx, _w(1.0), _w(3.0), memory)[0][W].item() == 3.0
    memory = method.end_round(ctx, _w(0.8), memory)
    assert memory[f"own/{W}"].item() == memory[f"news/{W}"].item() == pytest.approx(2.0)  # its own mean gradient
    assert memory["first"]
    memory = method.begin_task(ctx, _w(1.0), method.receive({f"all/{W}": torch.tensor([0.5])}, memory))
    assert method.edit_grads(ctx, _w(1.0), _w(3.0), memory)[0][W].item() == pytest.approx(3.0 + 0.5 - 2.0)
    memory = method.end_round(ctx, _w(0.8), memory)
    assert not memory["first"]
    assert memory[f"news/{W}"].item() == pytest.approx(2.0 - 0.5)
    state = {f"all/{W}": torch.tensor([0.5]), "joined": torch.tensor(3.0)}
    for rounds, kept in ((0, {}), (1, state)):
        assert method.merged(Moment(1, rounds, 2, ("t1",), ("t0",)), _w(1.0), _w(2.0), state) == (_w(2.0), kept)


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


def _news(value, first=False):
    return {f"news/{W}": torch.tensor([value]), "first": torch.tensor(first)}


@pytest.mark.parametrize(
    ("sent", "mean", "joined"),
    [
        ([(30.0, _news(4.0)), (10.0, _news(8.0))], 0.5 + (30 * 4 + 10 * 8) / 60, 60),
        ([(30.0, _news(4.0)), (40.0, _news(8.0, first=True))], (60 * 0.5 + 30 * 4 + 40 * 8) / 100, 100),
        ([(30.0, _news(4.0)), (0.0, _news(8.0, first=True)), (0.0, {})], 0.5 + 30 * 4 / 60, 60),
        ([(0.0, _news(8.0))], 0.5, 60),
    ],
)
def test_scaffold_weighs_control_variates_as_models_are(sent, mean, joined):
    """c = ½ of hospitals with 60 samples; two of them answer, or one that is new, or some without samples."""
    state = {f"all/{W}": torch.tensor([0.5]), "joined": torch.tensor(60.0)}
    state, said = Scaffold().server({}, state, sent)
    assert state[f"all/{W}"].item() == said[f"all/{W}"].item() == pytest.approx(mean)
    assert state["joined"].item() == joined


def test_scaffold_without_anybody_who_counts_says_nothing():
    assert Scaffold().server({}, {}, [(0.0, _news(8.0, first=True)), (5.0, _news(8.0))]) == ({}, {})


PARTICIPATION = {
    "all, alike": {"partition": {"name": "iid"}},
    "all, of other sizes": {"partition": {"alpha": 0.3}},
    "half of them": {"federation": {"clients": 6, "fraction": 0.5}},
    "one after another": {"federation": {"clients": 4}, "stream": {"schedule": "staggered"}},
    "not all have a task": {"federation": {"clients": 4}, "stream": {"schedule": "table", "table": TABLE}},
}


@pytest.fixture
def variates(monkeypatch):
    """After each call of SCAFFOLD's server half: (stage, each client's c_i and first weight in it, the state)."""
    seen, own, weights = [], {}, {}
    end_round, server = Scaffold.end_round, Scaffold.server

    def end(self, ctx, params, memory):
        memory = end_round(self, ctx, params, memory)
        own.setdefault(ctx.stage, {})[ctx.client] = memory[f"own/{FIRST}"]
        return memory

    def absorb(self, params, state, uploads):
        state, said = server(self, params, state, uploads)
        stage = max(own)
        weights.setdefault(stage, []).extend(weight for weight, upload in uploads if upload["first"])
        seen.append((stage, dict(own[stage]), list(weights[stage]), state))
        return state, said

    monkeypatch.setattr(Scaffold, "end_round", end)
    monkeypatch.setattr(Scaffold, "server", absorb)
    return seen


@pytest.mark.parametrize("who", PARTICIPATION)
def test_scaffolds_corrections_cancel_in_the_mean_of_all_that_joined(run, variates, who):
    """c is the mean of all c_i of the stage, weighted by samples as models are; with momentum, and strength < 1."""
    changes = {"train": {"rounds": 4}, "stream": {"tasks": 2}, "data": {"options": {"samples": 600}}}
    result = run(method="scaffold", **merged(changes, methods={"scaffold": {"strength": 0.7}}, **PARTICIPATION[who]))
    samples = {(r.stage, r.client): r.value for r in result.records if (r.phase, r.name) == ("train", "samples")}
    assert len(variates) == 4 * len(result.schedule)
    for stage, own, joined, state in variates:
        assert len(joined) == len(own)
        assert state["joined"].item() == sum(joined)
        weights = torch.tensor([samples[stage, client] for client in own])
        assert sorted(weights.tolist()) == sorted(joined)
        mean = torch.einsum("i,i...->...", weights / weights.sum(), torch.stack(list(own.values())))
        torch.testing.assert_close(mean, state[f"all/{FIRST}"], rtol=1e-4, atol=1e-6)
    assert max(len(own) for _, own, _, _ in variates) > 1


def test_scaffold_alone_is_finetune(run):
    """Each hospital by itself has c = c_i."""
    alone = {"federation": {"kind": "local"}, "train": {"rounds": 4}}
    plain, corrected = (
        model(run("finetune", method="finetune", **alone)),
        model(run("scaffold", method="scaffold", **alone)),
    )
    assert plain.keys() == corrected.keys()
    for name, value in plain.items():
        torch.testing.assert_close(value, corrected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"aggregator": "median"}, r"aggregator must be linear, not 'median'"),
        ({"aggregator": "krum", "merger": "fedavg"}, r"aggregator must be linear, not 'krum'"),
        ({"aggregator": "fedadam", "merger": "attention"}, ""),
        ({"merger": "ties"}, ""),  # c is of the trunk
    ],
)
def test_scaffold_needs_an_aggregator_that_is_linear(rules, says):
    config = Config.model_validate({"method": "scaffold", "federation": rules})
    if not says:
        build(config)
        return
    with pytest.raises(FedclError, match=says):
        build(config)


def test_scaffold_needs_the_same_samples_in_each_round():
    with pytest.raises(FedclError, match=r"train\.stream = 'offline'"):
        build(Config.model_validate({"method": "scaffold", "train": {"stream": "online"}}))


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


def test_rounds_and_tasks_may_both_be_uploaded(run):
    result = run("both", method="scaffold+ewc", methods={"ewc": {"share": "sum"}}, federation={"fraction": 0.7})
    assert not [record for record in result.records if record.phase == "fault"]
    assert set(model(result))
