"""Membership: φ, scores, curves and their intervals, against numbers by hand and on digits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.func import functional_call

from fedcl.attacks import membership, stacked
from fedcl.attacks.confidence import confidence
from fedcl.attacks.intervals import two_sided
from fedcl.attacks.roc import area, rate_at, roc

NET = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def forward(params: stacked.Params, x: Tensor) -> Tensor:
    return functional_call(NET, dict(params), (x,))


def nets(count: int, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    made = [nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)) for _ in range(count)]
    return stacked.stack([dict(net.named_parameters()) for net in made])


def digits() -> tuple[Tensor, Tensor]:
    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(raw.data / 16, dtype=torch.float32)[order], torch.tensor(raw.target)[order]


def adam(leaves: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(leaves, lr=3e-3)


def coins(models: int, candidates: int, seed: int = 0) -> Tensor:
    return torch.rand(models, candidates, generator=torch.Generator().manual_seed(seed)) < 0.5


def test_confidence_by_hand() -> None:
    logits = torch.tensor([[math.log(2), 0.0, 0.0], [1.0, 3.0, -math.inf]])
    torch.testing.assert_close(confidence(logits, torch.tensor([0, 1])), torch.tensor([0.0, 2.0]))
    drawn, y = torch.randn(4, 5, 3, dtype=torch.float64), torch.arange(5) % 3
    losses = F.cross_entropy(drawn.flatten(0, 1), y.repeat(4), reduction="none").view(4, 5)
    torch.testing.assert_close(F.softplus(-confidence(drawn, y)), losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_confidence_holds_at_extremes(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e30, 0, 0], [-1e30, 0, 0], [100.0, 0, 0]], dtype=dtype)
    expected = torch.tensor([1e30, -1e30, 100 - math.log(2)], dtype=dtype)
    torch.testing.assert_close(confidence(logits, torch.tensor([0, 0, 0])), expected)
    with pytest.raises(ValueError, match="infinite or NaN"):
        confidence(torch.tensor([[math.nan, 0.0]], dtype=dtype), torch.tensor([0]))


def test_curve_by_hand() -> None:
    scores = torch.tensor([4.0, 3.0, 3.0, 2.0, 1.0])
    member = torch.tensor([True, True, False, False, True])
    curve = roc(scores, member)
    assert curve.thresholds.tolist() == [math.inf, 4, 3, 2, 1]
    torch.testing.assert_close(curve.tpr, torch.tensor([0, 1, 2, 2, 3], dtype=torch.float64) / 3)
    assert curve.fpr.tolist() == [0, 0, 0.5, 1, 1]
    assert area(scores, member).value == pytest.approx((2 + 1.5 + 0) / 6)
    none, half = rate_at(curve, 0.49), rate_at(curve, 0.5)
    assert (none.tpr, none.false_positives, none.threshold) == (pytest.approx(1 / 3), 0, 4.0)
    assert (half.tpr, half.fpr, half.false_positives, half.members) == (pytest.approx(2 / 3), 0.5, 1, 3)


def test_interval_by_hand() -> None:
    assert two_sided(0, 10) == (0.0, pytest.approx(1 - 0.025**0.1))
    assert two_sided(10, 10) == (pytest.approx(0.025**0.1), 1.0)
    assert two_sided(2, 10) == (pytest.approx(0.0252, abs=1e-4), pytest.approx(0.5561, abs=1e-4))
    separated = area(torch.tensor([1.0, 2, 3, 4]), torch.tensor([False, False, True, True]))
    assert (separated.value, separated.low, separated.high) == (1.0, pytest.approx(0.025**0.5), 1.0)


def test_area_is_that_of_scikit_learn_and_covers() -> None:
    generator, covered, truth = torch.Generator().manual_seed(0), 0, 0.5 * math.erfc(-0.5)  # Φ(1/√2)
    for _ in range(200):
        member = torch.arange(80) < 30
        scores = torch.randn(80, generator=generator) + member
        found = area(scores, member)
        assert found.value == pytest.approx(roc_auc_score(member, scores))
        covered += found.low <= truth <= found.high
    assert 182 <= covered <= 198  # of 95 %: two and a half standard deviations


def test_clusters_widen_the_interval_to_what_repeats_tell() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, member = torch.randn(60, generator=generator), torch.arange(60) % 2 == 0
    alone = area(scores, member)
    again = torch.arange(60).repeat(9)
    thrice = area(scores.repeat(9), member.repeat(9), [again])
    assert thrice.value == pytest.approx(alone.value)
    assert (thrice.low, thrice.high) == (pytest.approx(alone.low, abs=2e-3), pytest.approx(alone.high, abs=2e-3))
    blind = area(scores.repeat(9), member.repeat(9))
    assert blind.high - blind.low < (alone.high - alone.low) / 2.8


def test_lira_is_the_definition() -> None:
    phi, member = torch.randn(9, 4, dtype=torch.float64), coins(9, 4, seed=3)
    scores = membership.lira(phi, member)
    for i in range(9):
        for j in range(4):
            others = torch.arange(9) != i
            inside, outside = phi[others & member[:, j], j], phi[others & ~member[:, j], j]
            expected = 0.0
            if min(len(inside), len(outside)) >= 2:
                laws = [
                    torch.distributions.Normal(part.mean(), part.std(correction=0) + 1e-6) for part in (inside, outside)
                ]
                expected = float(laws[0].log_prob(phi[i, j]) - laws[1].log_prob(phi[i, j]))
            assert float(scores[i, j]) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_calibrated_and_rmia_by_hand() -> None:
    p = torch.tensor([[0.9, 0.5], [0.6, 0.5], [0.4, 0.5]], dtype=torch.float64)
    member = torch.tensor([[True, False], [False, True], [False, True]])
    phi = p.logit()
    expected = float(phi[0, 0] - (phi[1, 0] + phi[2, 0]) / 2)
    found = membership.calibrated(phi, member)
    assert float(found[0, 0]) == pytest.approx(expected)
    assert float(found[0, 1]) == 0.0  # nobody else has it out
    population = torch.tensor([[0.8, 0.6, 0.3], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], dtype=torch.float64).logit()
    # x of model 0: 0.9 / ½(1.3 · 0.5 + 0.7) = 1.333; z: 0.8, 0.6, 0.3 over the same
    assert membership.rmia(phi, member, population)[0].tolist() == [1.0, 0.5]
    assert membership.rmia(phi, member, population, gamma=1.2)[0, 0] == pytest.approx(2 / 3)


@pytest.mark.parametrize("models", [4, 24])
def test_scores_that_know_nothing_are_at_chance(models: int) -> None:
    generator = torch.Generator().manual_seed(models)
    phi, member = torch.randn(models, 200, generator=generator), coins(models, 200)
    population = torch.randn(models, 100, generator=generator)
    found = [
        phi,
        membership.lira(phi, member),
        membership.lira(phi, member, pooled=True),
        membership.calibrated(phi, member),
        membership.rmia(phi, member, population),
        membership.rmia(phi, member, population, online=True),
    ]
    for scores in found:
        chance = area(scores, member, level=0.99)
        assert chance.low <= 0.5 <= chance.high  # equal where so few shadows leave every score at 0


@pytest.mark.parametrize("batch", [0, 8])
@pytest.mark.parametrize("same", [True, False])
def test_a_stack_trains_like_its_nets_one_by_one(batch: int, same: bool) -> None:
    x, y = digits()
    x, y, member, start = x[:60], y[:60], coins(3, 60), nets(3)
    if same:
        start = {name: value[:1].expand_as(value) for name, value in start.items()}
    rows = stacked.batches(member, batch, 12, torch.Generator().manual_seed(1)) if batch else None
    together = stacked.train(forward, start, x, y, member, adam, steps=12, rows=rows)
    for i in range(3):
        leaves = {name: value[i].clone().requires_grad_() for name, value in start.items()}
        optimizer = adam(list(leaves.values()))
        for step in range(12):
            own = member[i].nonzero()[:, 0] if rows is None else rows[step, i]
            assert bool(member[i, own].all())
            optimizer.zero_grad()
            F.cross_entropy(forward(leaves, x[own]), y[own]).backward()
            optimizer.step()
        for name, leaf in leaves.items():
            torch.testing.assert_close(together[name][i], leaf.detach(), rtol=1e-5, atol=1e-5)


def test_attacks_on_overfit_nets_of_digits() -> None:
    x, y = digits()
    first = (y < 5).nonzero()[:, 0]
    own, fresh = first[:200], first[300:500]
    member = coins(24, 200, seed=1)
    params = stacked.train(forward, nets(24), x[own], y[own], member, adam, steps=300)
    phi = confidence(stacked.logits(forward, params, x[own]), y[own])
    population = confidence(stacked.logits(forward, params, x[fresh]), y[fresh])
    clusters = [torch.arange(24)[:, None].expand(24, 200), torch.arange(200).expand(24, 200)]
    threshold, lira = area(phi, member, clusters), area(membership.lira(phi, member, pooled=True), member, clusters)
    assert lira.value >= 0.65
    assert threshold.value < 0.6 < lira.low
    assert area(membership.rmia(phi, member, population), member).low > 0.55
    assert area(membership.calibrated(phi, member), member).low > 0.55
