from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sample_by_sample import TRUNKS, assert_near, by_hand, images, names_of, of
from torch import nn

from fedcl.clipped import clipped_sum, mixing
from fedcl.config import Model
from fedcl.models import dynamic_net


def test_two_samples_by_hand() -> None:
    net = nn.Linear(2, 1)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    x, y = torch.tensor([[2.0, 2.0], [0.0, 0.0]]), torch.tensor([1.0, 0.5])
    # ½ (w x + b - y)² has the gradient -y (x, 1): -(2, 2, 1) of length 3, and -½ (0, 0, 1) of length ½
    sums, norms = clipped_sum(net, ["weight", "bias"], lambda x, y: 0.5 * (net(x)[:, 0] - y).square(), (x, y), 1.5)
    torch.testing.assert_close(norms, torch.tensor([3.0, 0.5]))
    torch.testing.assert_close(sums["weight"], torch.tensor([[-1.0, -1.0]]))
    torch.testing.assert_close(sums["bias"], torch.tensor([-1.0]))
    # over the bias alone: lengths 1 and ½
    sums, norms = clipped_sum(net, ["bias"], lambda x, y: 0.5 * (net(x)[:, 0] - y).square(), (x, y), 0.75)
    torch.testing.assert_close(norms, torch.tensor([1.0, 0.5]))
    assert sums["bias"].item() == -1.25


def test_an_enormous_clip_gives_the_batch_gradient() -> None:
    torch.manual_seed(0)
    net = dynamic_net.build(Model(options={"hidden": [5]}), (1, 8, 8), 3).double()
    net.add_task("t0", 3, 4)
    x, y = images(7)
    sums, _ = clipped_sum(net, names_of(net), of(net, "t0"), (x.double(), y), 1e30)
    F.cross_entropy(net(x.double(), "t0"), y).backward()
    for name, value in net.named_parameters():
        torch.testing.assert_close(sums[name], 7 * value.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("clip", [1e-3, 0.3, 10.0])
def test_no_sample_moves_the_sum_by_more_than_the_clip(clip: float) -> None:
    torch.manual_seed(0)
    net = dynamic_net.build(Model(name="cnn", options={"channels": [3], "width": 4}), (1, 8, 8), 3).double()
    net.add_task("t0", 3, 4)
    x, y = images(6)
    x = x.double() * torch.tensor([1e-3, 1.0, 1.0, 10.0, 100.0, 1e4])[:, None, None, None]
    whole, _ = clipped_sum(net, names_of(net), of(net, "t0"), (x, y), clip)
    for left_out in range(6):
        kept = torch.arange(6) != left_out
        less, _ = clipped_sum(net, names_of(net), of(net, "t0"), (x[kept], y[kept]), clip)
        moved = torch.stack([(whole[name] - less[name]).norm() for name in whole]).norm()
        assert 0 < float(moved) <= clip * (1 + 1e-6)


def test_no_samples_and_no_gradients() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.PReLU())
    sums, norms = clipped_sum(net, names_of(net), of(net), (torch.zeros(0, 4), torch.zeros(0).long()), 1.0)
    assert norms.shape == (0,)
    assert all(value.shape == net.get_parameter(name).shape and not value.any() for name, value in sums.items())
    sums, norms = clipped_sum(net, names_of(net), lambda x: 0 * net(x).sum(1), (torch.randn(3, 4),), 1.0)
    assert norms.tolist() == [0, 0, 0]
    assert all(not value.any() for value in sums.values())


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.PReLU()])
def test_a_gradient_that_is_not_finite_counts_as_zero(activation: nn.Module) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), activation, nn.Linear(3, 3))
    x, y = torch.randn(4, 4), torch.tensor([0, 1, 2, 0])
    x[2, 1] = torch.inf
    sums, norms = clipped_sum(net, names_of(net), of(net), (x, y), 0.5)
    assert norms.isfinite().tolist() == [True, True, False, True]
    kept = [0, 1, 3]
    assert_near((sums, norms[kept]), by_hand(net, of(net), (x[kept], y[kept]), 0.5), 1e-6)
    sums, _ = clipped_sum(net, names_of(net), of(net), (x[2:3], y[2:3]), 0.5)
    assert all(not value.any() for value in sums.values())


def test_only_the_named_parameters_and_the_net_stays_as_it_is() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).requires_grad_(False)
    before = {name: value.clone() for name, value in net.named_parameters()}
    rows = (torch.randn(5, 4), torch.arange(5) % 3)
    sums, norms = clipped_sum(net, ["0.bias", "2.weight"], of(net), rows, 1e9)
    whole, more = clipped_sum(net, names_of(net), of(net), rows, 1e9)
    assert sums.keys() == {"0.bias", "2.weight"}
    for name, value in sums.items():
        torch.testing.assert_close(value, whole[name])
    assert bool((norms < more).all())
    assert all(value.grad is None and not value.requires_grad for value in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters())


def test_mixing_layers_are_named() -> None:
    apart = [nn.GroupNorm(1, 2), nn.LayerNorm(2), nn.InstanceNorm2d(2), nn.Dropout(0.1)]
    assert mixing(nn.Sequential(*apart)) == []
    mixed = [nn.BatchNorm1d(2), nn.InstanceNorm2d(2, track_running_stats=True)]
    mixed += [nn.BatchNorm2d(2, track_running_stats=False), nn.SyncBatchNorm(2)]
    assert mixing(nn.Sequential(*apart, nn.Sequential(*mixed))) == ["4.0", "4.1", "4.2", "4.3"]
    for name, options in TRUNKS:
        assert mixing(dynamic_net.build(Model(name=name, options=options), (1, 8, 8), 3)) == []


def test_mistakes_are_refused() -> None:
    net, x, y = nn.Linear(4, 3), torch.randn(3, 4), torch.zeros(3).long()
    with pytest.raises(ValueError, match="nothing"):
        clipped_sum(net, ["nothing"], of(net), (x, y), 1.0)
    with pytest.raises(ValueError, match="clip 0"):
        clipped_sum(net, ["weight"], of(net), (x, y), 0)
    with pytest.raises(ValueError, match=r"shape \[\] for 3 samples"):
        clipped_sum(net, ["weight"], lambda x, y: of(net)(x, y).mean(), (x, y), 1.0)
    copies = {name: value.detach().clone().requires_grad_() for name, value in net.named_parameters()}
    with pytest.raises(ValueError, match="copies"):
        clipped_sum(net, ["weight"], lambda x: torch.func.functional_call(net, copies, (x,)).sum(1), (x,), 1.0)
