"""Masked sums in a run: hospitals that drop out in each phase, say nonsense, or are too few."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small import BASE, merged, model

from fedcl import methods, rng
from fedcl.client import Client
from fedcl.config import Config
from fedcl.contracts import Answer, FedclError, Job
from fedcl.federation import build
from fedcl.models import dynamic_net
from fedcl.plan import Plan
from fedcl.privacy.secagg import SecAgg
from fedcl.store import Store
from fedcl.summed import Summed

FIVE = {"method": "finetune", "federation": {"clients": 5}, "partition": {"name": "iid"}, "stream": {"tasks": 1}}
PHASES = ("keys", "shares", "train", "unmask")


class Hospitals:
    """Five clients of one round; `spoil` makes what one of them answers in one phase something else."""

    def __init__(self, spoil=lambda client, phase, answer: answer, **changes):
        plain = Config.model_validate(merged(BASE, **FIVE, **changes))
        self.config = plain.model_copy(update={"privacy": plain.privacy.model_copy(update={"mechanism": "secagg"})})
        self.federation = build(plain)
        with rng.torch_global(0, "init"):
            net = dynamic_net.build(plain.model, self.federation.shape, 0)
            net.add_task("t0", len(self.federation.tasks[0].classes), plain.model.expansion_units)
        arrays = dict(net.state_dict())
        self.job = Job("train", 0, 0, ("t0",), arrays, lr=0.1, flags=("begin",))
        names = {name for name, _ in net.named_parameters()}
        plan = Plan(self.config, self.federation, methods.build(plain), net.owner)
        self.expected = lambda job: plan.expected(names, job)
        self.client = Client(self.config, self.federation, methods.build(plain), Store(None))
        self.plain = Client(plain, self.federation, methods.build(plain), Store(None))
        self.spoil = spoil

    def ask(self, jobs, timeout):
        for client, job in jobs:
            try:
                answer = Answer(client, self.client.run(client, job), "", 1, 1)
            except FedclError as error:
                answer = Answer(client, None, str(error), 1, 0)
            yield self.spoil(client, job.flags[0] if job.phase == "mask" else job.phase, answer)

    def answers(self, rule=SecAgg()):  # noqa: B008 (frozen)
        return list(Summed(self.ask, rule, self.expected)([(client, self.job) for client in range(5)], 1.0))

    def mean(self, clients):
        """What plain averaging makes of these."""
        total, sums = 0.0, {name: torch.zeros_like(value) for name, value in self.expected(self.job).items()}
        for client in clients:  # an update is in the net's own memory until the next Job
            update = self.plain.run(client, self.job)
            total += update.weight
            for name, value in update.arrays.items():
                sums[name] += value * update.weight
        return {name: value / total for name, value in sums.items()}, total


def gone(client, phase, what=None):
    def spoil(who, when, answer):
        if (who, when) != (client, phase):
            return answer
        return Answer(who, None, "gone", 1, 0) if what is None else replace(answer, update=what(answer.update))

    return spoil


def close(found, expected):
    return all(torch.allclose(found[name], value, atol=1e-6) for name, value in expected.items())


def test_everybody_gets_the_weighted_mean_and_nobody_s_own():
    hospitals = Hospitals()
    answers = hospitals.answers()
    mean, total = hospitals.mean(range(5))
    assert all(close(answer.update.arrays, mean) for answer in answers)
    assert [answer.update.weight for answer in answers] == pytest.approx([total / 5] * 5)
    assert all(answer.bytes_up == 4 for answer in answers)  # four phases


@pytest.mark.parametrize("phase", PHASES)
def test_one_that_drops_out_is_left_out_and_the_others_go_on(phase):
    """Who falls silent after its vector came is in the sum all the same."""
    hospitals = Hospitals(gone(2, phase))
    answers = hospitals.answers()
    there = [client for client in range(5) if client != 2 or phase == "unmask"]
    assert [answer.client for answer in answers if answer.update] == there
    mean, _ = hospitals.mean(there)
    assert all(close(answer.update.arrays, mean) for answer in answers if answer.update)


@pytest.mark.parametrize("phase", PHASES)
def test_nonsense_is_as_good_as_nothing(phase):
    """A float, in place of a record or of a masked vector."""
    hospitals = Hospitals(gone(2, phase, lambda update: replace(update, arrays={"Advert": torch.zeros(3)})))
    answers = hospitals.answers()
    there = [client for client in range(5) if client != 2 or phase == "unmask"]
    assert [answer.client for answer in answers if answer.update] == there
    assert all(close(answer.update.arrays, hospitals.mean(there)[0]) for answer in answers if answer.update)


def test_right_answers_on_test_samples_are_summed():
    hospitals = Hospitals()
    hospitals.job = replace(hospitals.job, phase="evaluate", flags=())
    answers = hospitals.answers()
    plain = [hospitals.plain.run(client, hospitals.job).arrays for client in range(5)]
    assert all(answer.update.arrays.keys() == {"sum.t0.answers", "sum.t0.scores"} for answer in answers)
    for name, value in answers[0].update.arrays.items():
        assert value.tolist() == sum(own[f"{c}{name[3:]}"] for c, own in enumerate(plain)).tolist()
    refused = hospitals.answers(SecAgg(answers="open"))  # a server that asks one by one: hospitals' own config counts
    assert all("out of turn" in answer.error for answer in refused)


def test_too_few_that_are_left_are_not_summed():
    def spoil(client, phase, answer):
        return Answer(client, None, "gone", 1, 0) if client < 3 and phase == "train" else answer

    with pytest.raises(FedclError, match="too few"):
        Hospitals(spoil).answers()


def test_the_error_of_a_sum_is_told_and_holds():
    """Counts give double precision's mean; what the sums say may be off by the bound and by float32's own digits."""
    hospitals = Hospitals()
    answers, mean = hospitals.answers(), hospitals.mean(range(5))[0]
    error = answers[0].update.metrics["secagg/error"]
    assert 0 < error < 1e-5 * SecAgg().clip
    for name, value in answers[0].update.arrays.items():
        assert float((value - mean[name]).abs().max()) <= error + 1e-6


def test_what_is_cut_off_is_told():
    answers = Hospitals().answers(SecAgg())
    assert answers[0].update.metrics["secagg/clipped"] == 0.0
    tight = Hospitals()
    tight.config = tight.config.model_copy(update={"mechanisms": {"secagg": {"clip": 1e-3}}})
    tight.client = Client(tight.config, tight.federation, methods.build(tight.config), Store(None))
    answers = tight.answers(SecAgg(clip=1e-3))
    assert 0.5 < answers[0].update.metrics["secagg/clipped"] < 1
    assert answers[0].update.metrics["loss"] == pytest.approx(1.8, abs=0.1)  # figures are not cut
    assert max(float(value.abs().max()) for value in answers[0].update.arrays.values()) <= 1e-3 * (1 + 1e-6)


def test_a_hospital_sends_nothing_in_the_clear():
    """Its config says sums: a Job of training that comes without the phases before it is refused."""
    hospitals = Hospitals()
    with pytest.raises(FedclError, match="out of turn"):
        hospitals.client.run(0, hospitals.job)
    with pytest.raises(FedclError, match="no secure aggregation"):
        hospitals.plain.run(0, replace(hospitals.job, phase="mask", flags=("keys",)))


def test_a_run_goes_on_without_a_hospital(run, monkeypatch):
    train = Client._train

    def fails(self, client, job, memory):
        if (client, job.round) == (1, 1):
            raise FedclError("power cut")
        return train(self, client, job, memory)

    monkeypatch.setattr(Client, "_train", fails)
    seldom = {"checkpoint_every": 100}  # what it has to go back to is in no file
    result = run("run", **merged(FIVE, privacy={"mechanism": "secagg"}, train={"rounds": 3}, run=seldom))
    faults = [(record.client, record.round) for record in result.records if record.phase == "fault"]
    assert faults == [(1, 1)]
    assert all(value.isfinite().all() for value in model(result).values())
