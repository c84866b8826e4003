"""Generative replay without data in whole runs: what samples are taken for, and who is told of them when."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedcl import federation, methods
from fedcl.config import Config
from fedcl.contracts import FedclError
from fedcl.methods.target import Target
from fedcl.models import dynamic_net
from fedcl.plan import Plan
from fedcl.runtime import wire
from fedcl.state import Group
from fedcl.synthesis import Synthesis

QUICK = {"steps": 3, "samples": 4, "width": 8, "size": 8, "noise": 4}


def _spied(monkeypatch):
    calls, make = [], Target.synthesize

    def spy(self, ctx, params, state):
        answer = make(self, ctx, params, state)
        calls.append((ctx, {name: value.clone() for name, value in params.items()}, answer[1]))
        return answer

    monkeypatch.setattr(Target, "synthesize", spy)
    return calls


@pytest.mark.parametrize(
    "heads", [{"heads": "task"}, {"heads": "shared"}, {"heads": "shared", "mask": "all"}, {"heads": "domain"}]
)
def test_samples_are_taken_for_what_they_should_be(run, monkeypatch, heads):
    """Of all classes so far as many of each, and the model that they were made of knows them."""
    calls = _spied(monkeypatch)
    options = {"samples": 30, "steps": 100, "width": 32}
    result = run("run", method="target", methods={"target": options}, model=heads, train={"rounds": 8, "lr": 0.1})
    assert [len(ctx.past) for ctx, _, _ in calls] == [1, 2]  # not after the last stage
    for ctx, model, said in calls:
        own = torch.stack([said["task"], said["y"]], 1).unique(dim=0, return_counts=True)[1]
        assert own.tolist() == [30] * (2 * len(ctx.past))
        answers = ctx.each(model, said["x"], said["task"], teacher=True)
        if heads.get("mask") == "all":
            answers = answers.masked_fill(~said["logits"].isfinite(), -torch.inf)
        torch.testing.assert_close(answers, said["logits"])
        assert (answers.argmax(1) == said["y"]).float().mean() > 0.9
    assert not [record for record in result.records if record.phase == "fault"]


def _asked(config, whole):
    """What the server makes of its starting weights."""
    method = methods.build(config)
    net = Synthesis(config, whole, method, Plan(config, whole, method, lambda task: "shared"))
    group = Group(whole.groups[0], seen=[0, 1])
    torch.manual_seed(0)
    group.params = dict(dynamic_net.build(config.model, whole.shape, 6).state_dict())
    net.close(group, 0)
    return group.broadcast


def test_the_server_needs_nobody_s_data(small):
    """Without uploads, and in a federation that holds no sample at all, it makes the same."""
    config = small(method="target", methods={"target": QUICK}, model={"heads": "shared"})
    whole = federation.build(config)
    empty = replace(whole, _x=whole._x[:0], _y=whole._y[:0])
    one, two = _asked(config, whole), _asked(config, empty)
    assert one.keys() == {f"target/{name}" for name in ("x", "y", "task", "logits", "filled", "kinds")}
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["target/x"].shape == (8, 12)
    other = _asked(config.model_copy(update={"seed": 4}), whole)
    assert not torch.equal(one["target/x"], other["target/x"])


@pytest.mark.parametrize("method", ["target", "target+scaffold"])
def test_samples_are_sent_once_a_task_also_to_who_was_away(run, monkeypatch, method):
    """Hospital 1 sits out the second stage: in the third it gets what that one made, and nothing twice."""
    sent, encode = [], wire.encode_job

    def spy(job, *encoded):
        sent.append((job.stage, job.round, job.tasks, "target/x" in job.broadcast))
        return encode(job, *encoded)

    monkeypatch.setattr(wire, "encode_job", spy)
    table = [[0, 1, 0], [1, -1, 2], [2, 2, 1]]
    stream = {"schedule": "table", "table": table}
    run("run", method=method, methods={"target": QUICK}, stream=stream)
    heard = [stage for stage, _, _, news in sent if news]
    assert heard == [1, 1, 2, 2, 2]


def test_news_are_what_was_said_since():
    group = Group((0, 1))
    assert group.announced == 0
    group.announce({"a/x": torch.ones(1)})
    group.announce({})
    group.announce({"b/x": torch.ones(1), "b/y": torch.ones(1)})
    assert group.announced == 2
    assert group.news(0).keys() == {"a/x", "b/x", "b/y"}
    assert group.news(1).keys() == {"b/x", "b/y"}
    assert group.news(2) == {}
    group.announce({"a/x": torch.zeros(1)})
    assert group.news(2).keys() == {"a/x"}


def test_modules_that_stay_at_home_cannot_be_asked(small):
    with pytest.raises(FedclError, match="personal"):
        methods.build(small(method="target", federation={"merger": "personal"}))


@pytest.mark.parametrize(
    "options", [{"strength": -1.0}, {"samples": 0}, {"temperature": 0.0}, {"size": 1}, {"adversarial": -0.5}]
)
def test_options_that_cannot_be(options):
    with pytest.raises(FedclError, match=next(iter(options))):
        methods.build(Config.model_validate({"method": "target", "methods": {"target": options}}))


def test_old_classes_are_held_in_one_head(run):
    """Where the task is not known, without a sample of old ones: better than plain training."""
    found = {}
    for method, options in (("finetune", {}), ("target", {"steps": 100, "samples": 50})):
        result = run(
            method, method=method, methods={method: options}, model={"heads": "shared"}, train={"rounds": 8, "lr": 0.1}
        )
        found[method] = result.metrics["average_accuracy_inferred"]
    assert found["target"] > found["finetune"] + 0.1
