"""Rules that merge: each against its definition, by hand or in float64, and what is refused."""

from __future__ import annotations

import pytest
import torch

from fedcl import plugins
from fedcl.config import Config
from fedcl.contracts import FedclError, Update
from fedcl.merge import MEASURED, Merge, cautions, misfit, rules, unmeasured


def _rule(kind, name, **options):
    return plugins.make(kind, name, options)


def _walk(rule, deltas):
    """The parameter's path from 1 under a sequence of mean deltas."""
    params, state, path = {"trunk.w": torch.tensor([1.0, -1.0])}, {}, []
    for delta in deltas:
        params, state = rule.step(params, {"trunk.w": torch.tensor(delta)}, state)
        path.append(params["trunk.w"].double())
    return torch.stack(path)


DELTAS = [[0.5, -0.2], [0.1, 0.4], [-0.3, 0.2]]


def test_momentum_is_torchs_sgd():
    w = torch.tensor([1.0, -1.0], requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.3, momentum=0.9)
    for step, delta in zip(_walk(_rule("aggregators", "fedavgm", lr=0.3, momentum=0.9), DELTAS), DELTAS, strict=True):
        w.grad = -torch.tensor(delta)
        optimizer.step()
        torch.testing.assert_close(step, w.detach().double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_adaptive_rules_in_float64(name):
    lr, b1, b2, tau = 0.1, 0.8, 0.95, 1e-3
    w, m, v = torch.tensor([1.0, -1.0]).double(), torch.zeros(2).double(), torch.zeros(2).double()
    path = _walk(_rule("aggregators", name, lr=lr, beta1=b1, beta2=b2, tau=tau), DELTAS)
    for t, delta in enumerate(torch.tensor(DELTAS).double(), start=1):
        m = b1 * m + (1 - b1) * delta
        square = delta**2
        v = b2 * v + (1 - b2) * square if name == "fedadam" else v - (1 - b2) * square * (v - square).sign()
        rate = lr * (1 - b2**t) ** 0.5 / (1 - b1**t) if name == "fedadam" else lr
        w = w + rate * m / (v.sqrt() + tau)
        torch.testing.assert_close(path[t - 1], w, rtol=1e-5, atol=1e-6)


def _reduce(kind, name, values, weights=None, measured=None, **options):
    deltas = [{"tasks.t0.w": torch.tensor(value)} for value in values]
    measured = [{"tasks.t0.w": torch.tensor(m)} for m in measured] if measured else [{}] * len(values)
    found = _rule(kind, name, **options).reduce(deltas, weights or [1.0] * len(values), measured)
    return found["tasks.t0.w"].tolist()


def test_median():
    assert _reduce("aggregators", "median", [[1.0, 5.0], [2.0, -9.0], [100.0, 4.0]]) == [2.0, 4.0]


def test_trimmed_mean_leaves_out_one_of_five_at_each_end():
    assert _reduce("aggregators", "trimmed-mean", [[1.0], [2.0], [3.0], [4.0], [1e6]], cut=0.2) == [3.0]


@pytest.mark.parametrize(
    ("name", "options", "enough"),
    [
        ("median", {}, 3),
        ("trimmed-mean", {"cut": 0.2}, 5),
        ("trimmed-mean", {"cut": 0.3}, 4),
        ("trimmed-mean", {"cut": 1 / 49}, 50),
        ("trimmed-mean", {"cut": 0.0}, 0),
        ("krum", {"malicious": 1}, 5),
        ("krum", {"malicious": 2}, 7),
        ("fedavg", {}, 0),
    ],
)
def test_answers_with_which_a_rule_holds(name, options, enough):
    assert _rule("aggregators", name, **options).least == enough


@pytest.mark.parametrize("garbage", range(4))
@pytest.mark.parametrize("name", ["trimmed-mean", "krum", "median"])
@pytest.mark.parametrize("count", [3, 4])
def test_of_fewer_answers_it_is_the_median(name, count, garbage):
    """One of three or four is garbage, whichever it is: the median of the others' range."""
    values = [[float(place)] for place in range(count)]
    values[garbage % count] = [1e6]
    (found,) = _reduce("aggregators", name, values)
    assert 0 <= found <= 3
    assert _reduce("aggregators", name, [[1.0], [5.0]]) == [3.0]


def test_few_answers_are_said_before_the_run():
    def said(fewest, **federation):
        return cautions(Config.model_validate({"federation": federation}), fewest)

    enough = {"": 5, "t0": 5}
    assert said(enough, aggregator="krum") == said({"": 1, "t0": 1}) == []
    (text,) = said({"": 5, "t0": 4, "t1": 2}, aggregator="krum")
    assert text.startswith("note: krum holds as it says with 5 answers or more")
    assert "of t0 4, t1 2. " in text
    (text,) = said({"": 4, "t0": 4}, aggregator="krum")  # once of trunk and modules
    assert "of the trunk 4, t0 4. " in text
    (text,) = said({"": 2, "t0": 2}, aggregator="median", merger="weighted")
    assert "of the trunk 2. " in text
    (text,) = said({"": 9, "t0": 4}, merger="trimmed-mean")
    assert text.startswith("note: trimmed-mean holds as it says with 5")
    assert said({"": 1, "t0": 1}, aggregator="krum", kind="local") == []


def test_krum_takes_the_delta_amid_its_neighbours():
    values = [[0.0, 0.0], [0.1, 0.0], [0.0, 0.3], [0.2, 0.1], [50.0, 50.0]]
    chosen = _reduce("aggregators", "krum", values, malicious=1)
    near = [sorted(sum((a - b) ** 2 for a, b in zip(v, u, strict=True)) for u in values) for v in values]
    assert chosen == pytest.approx(values[min(range(5), key=lambda i: sum(near[i][1:3]))])
    assert _reduce("aggregators", "krum", values, malicious=1, keep=4) == pytest.approx([0.075, 0.1])


def test_ties_trims_elects_and_averages_who_agrees():
    # The largest half of each: [4, 0, -3, 0], [-1, 0, -2, 0], [2, 0, 0, 5] → signs +, 0, -, +.
    values = [[4.0, 0.1, -3.0, 0.2], [-1.0, 0.3, -2.0, 0.4], [2.0, 0.1, 1.0, 5.0]]
    assert _reduce("mergers", "ties", values, keep=0.5) == pytest.approx([3.0, 0.0, -2.5, 5.0])
    # By weight the second hospital's sign wins the first value.
    assert _reduce("mergers", "ties", values, weights=[1.0, 9.0, 1.0], keep=0.5)[0] == pytest.approx(-1.0)


def test_fisher_weights_by_precision():
    values, precisions = [[1.0, 0.0], [3.0, 8.0]], [[3.0, 0.0], [1.0, 0.0]]
    found = _reduce("mergers", "fisher", values, weights=[10.0, 30.0], measured=precisions, damping=1e-9)
    assert found[0] == pytest.approx((10 * 3 * 1 + 30 * 1 * 3) / (10 * 3 + 30 * 1))
    assert found[1] == pytest.approx(30 * 8 / 40)  # nobody's predictions depend on it: the mean by samples
    along = _reduce("mergers", "fisher", values, weights=[10.0, 30.0])
    assert along == pytest.approx([(10 * 1 + 30 * 3) / 40, 30 * 8 / 40])  # nothing was measured
    huge = _reduce("mergers", "fisher", values, weights=[1e30, 30.0], measured=[[3e38, 3e38], [1.0, 1.0]])
    assert huge == pytest.approx([1.0, 0.0])


def test_attention_is_between_what_tasks_have_in_common():
    names = ("hidden", "out")
    rows = {"t0": [[1.0, 0.0], [1.0]], "t1": [[0.8, 0.6], [2.0]], "t2": [[0.0, 1.0], [3.0, 4.0]]}
    modules = {
        t: {f"tasks.{t}.{n}": torch.tensor(v) for n, v in zip(names, values, strict=True)} for t, values in rows.items()
    }
    rule = _rule("mergers", "attention", share=0.25, temperature=0.5)
    found = rule.across(modules)
    weights = torch.tensor([0.8, 0.0]).div(0.5).softmax(0)  # t0's cosines with t1 and t2
    expected = 0.75 * torch.tensor([1.0, 0.0]) + 0.25 * (weights @ torch.tensor([[0.8, 0.6], [0.0, 1.0]]))
    torch.testing.assert_close(found["t0"]["tasks.t0.hidden"], expected)
    assert found["t2"]["tasks.t2.out"].tolist() == [3.0, 4.0]  # others have no output of that shape
    assert rule.across({"t0": modules["t0"]}) == {"t0": modules["t0"]}
    apart = {"t0": {"tasks.t0.hidden": torch.ones(3)}, "t1": {"tasks.t1.hidden": torch.ones(4)}}
    assert rule.across(apart) == apart  # one of them grew


def test_a_rule_for_modules_follows_a_robust_one_for_trunks():
    def named(**federation):
        return [type(rule).__name__ for rule in rules(Config.model_validate({"federation": federation}))]

    assert named() == ["FedAvg", "Weighted"]
    assert named(aggregator="fedadam") == ["FedAdam", "Weighted"]
    assert named(aggregator="krum") == ["Krum", "Krum"]
    assert named(aggregator="krum", merger="ties") == ["Krum", "Ties"]
    assert named(merger="median") == ["FedAvg", "Median"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"aggregators": {"krum": {"malicious": 2}}}, "aggregators.krum: options of a rule"),
        ({"federation": {"aggregator": "krum"}, "aggregators": {"krum": {"evil": 2}}}, "krum.evil: no such option"),
        ({"federation": {"aggregator": "krum"}, "aggregators": {"krum": {"keep": 0}}}, "keep = 0"),
        ({"federation": {"merger": "ties"}, "mergers": {"ties": {"keep": 0.0}}}, "keep = 0.0"),
        ({"federation": {"merger": "personal"}, "model": {"heads": "shared"}}, "needs a module per task"),
    ],
)
def test_what_cannot_work_is_refused(changes, said):
    with pytest.raises(FedclError, match=said):
        rules(Config.model_validate(changes))


def test_what_was_measured_must_be_like_what_it_is_about():
    arrays = {"tasks.t0.w": torch.zeros(2)}
    assert misfit(Update(0, arrays, 1.0, {}, {MEASURED + "tasks.t0.w": torch.zeros(2)})) == ""
    assert "measured" in misfit(Update(0, arrays, 1.0, {}, {MEASURED + "tasks.t0.w": torch.zeros(3)}))
    assert "measured" in misfit(Update(0, arrays, 1.0, {}, {MEASURED + "tasks.t0.w": torch.zeros(2).long()}))
    assert "measured" in misfit(Update(0, arrays, 1.0, {}, {MEASURED + "trunk.w": torch.zeros(2)}))
    extras = {MEASURED + "tasks.t0.w": torch.zeros(2), "infer/t0": torch.zeros(1)}
    assert unmeasured(Update(0, arrays, 1.0, {}, extras), ["tasks.t0.w"]) == ""
    assert unmeasured(Update(0, arrays, 1.0, {}, {}), ["tasks.t0.w"]) == "merge/tasks.t0.w is missing"
    assert unmeasured(Update(0, arrays, 1.0, {}, extras), []) == "merge/tasks.t0.w was not asked for"


def test_one_rule_chooses_for_all_that_is_shared():
    """Krum takes the trunk and the shared head of the same hospital."""
    krum = _rule("aggregators", "krum", malicious=1)
    merge = Merge(krum, krum)
    trunks, heads = [0.0, 0.1, 0.2, 0.15, 9.0], [7.0, 0.2, 0.1, 0.15, 0.12]
    for client, (trunk, head) in enumerate(zip(trunks, heads, strict=True)):
        arrays = {"trunk.w": torch.tensor([trunk]), "tasks.shared.w": torch.tensor([head])}
        merge.add(Update(client, arrays, 1.0, {}))
    params, _ = merge.apply({"trunk.w": torch.zeros(1), "tasks.shared.w": torch.zeros(1)}, {})
    pair = (params["trunk.w"].item(), params["tasks.shared.w"].item())
    assert any(pair == pytest.approx(both) for both in zip(trunks, heads, strict=True))
