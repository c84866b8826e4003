"""Reconstruction: likeness by hand, and what gradients, deltas and Fisher diagonals of digits give away."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call

from fedcl import fisher
from fedcl.attacks import adapter, analytic, images, inversion, labels
from fedcl.attacks.gradients import gradient

RAW = load_digits()
X, Y = torch.tensor(RAW.images / 16, dtype=torch.float32)[:, None], torch.tensor(RAW.target)


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def forward_of(net: nn.Module) -> tuple[inversion.Forward, dict[str, Tensor]]:
    return lambda params, x: functional_call(net, dict(params), (x,)), dict(net.named_parameters())


def sent(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    return gradient(*forward_of(net), x, y)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quality(x: Tensor, truth: Tensor) -> float:
    return float(images.psnr(images.matched(x.view_as(truth), truth), truth).mean())


def test_likeness_by_hand() -> None:
    black, grey, white = (torch.full((1, 1, 8, 8), value) for value in (0.0, 0.5, 1.0))
    assert images.psnr(grey, white).item() == pytest.approx(10 * math.log10(4))
    assert images.psnr(torch.cat([black, grey]), torch.cat([white, grey])).tolist() == [0.0, images.CAP]
    # flat images: no contrast, so only (2 μ_x μ_y + C1) / (μ_x² + μ_y² + C1) is left
    assert images.ssim(grey, white).item() == pytest.approx((1 + 1e-4) / (1.25 + 1e-4))
    assert images.ssim(black, white).item() == pytest.approx(1e-4 / (1 + 1e-4))


@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (2, 3, 3, 20), (2, 1, 16, 16)])
def test_ssim_is_one_for_equal_images_and_symmetric(shape: tuple[int, ...]) -> None:
    a, b = torch.rand(shape, generator=draws()), torch.rand(shape, generator=draws(1))
    torch.testing.assert_close(images.ssim(a, a), torch.ones(shape[0], dtype=torch.float64))
    torch.testing.assert_close(images.ssim(a, b), images.ssim(b, a))
    near = images.ssim(a, a + 0.05 * (b - 0.5))
    assert bool((images.ssim(a, b) < near).all() & (near < 1).all())


def test_matching_finds_the_order_and_the_mean_image_is_the_baseline() -> None:
    order = torch.tensor([3, 0, 2, 1])
    noisy = X[:4][order] + 0.01
    torch.testing.assert_close(images.matched(noisy, X[:4]), X[:4] + 0.01)
    torch.testing.assert_close(images.nearest(torch.cat([noisy, noisy]), X[1:3]), X[1:3] + 0.01)
    assert float(images.baseline(X, X).mean()) == pytest.approx(11.4, abs=0.05)


def test_a_linear_layer_tells_its_input() -> None:
    x, delta = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([2.0, 0.0, -1.0])
    dw = torch.outer(delta, x)
    torch.testing.assert_close(analytic.layer_input(1e-20 * dw, 1e-20 * delta), x)
    torch.testing.assert_close(analytic.row_inputs(dw, delta), x.expand(2, 3))
    torch.testing.assert_close(analytic.direction(dw).abs(), x / x.norm())
    torch.testing.assert_close(analytic.fisher_input(dw.square(), delta.square()), x)
    with pytest.raises(ValueError, match="no gradient"):
        analytic.layer_input(dw, 0 * delta)


def test_labels_of_single_samples() -> None:
    net = mlp()
    found = [labels.label(sent(net, X[i : i + 1], Y[i : i + 1])["3.bias"]) for i in range(200)]
    assert found == Y[:200].tolist()


def test_histograms_of_labels() -> None:
    net = mlp()
    order = torch.randperm(len(X), generator=draws())
    keep = order[(Y[order] < 7) & (Y[order] != 2)][:200]
    shares = Y[keep].bincount(minlength=10) / len(keep)
    p = net(torch.rand(500, 1, 8, 8, generator=draws())).softmax(1).mean(0).detach()
    names = [name for name, _ in net.named_parameters()]
    found = fisher.diagonal(net, net, names, X[keep], Y[keep], kind="empirical", generator=draws())
    by_fisher = labels.fisher_histogram(found["3.bias"], p)
    by_gradient = labels.histogram(sent(net, X[keep], Y[keep])["3.bias"], p)
    assert float((by_fisher - shares).abs().max()) < 0.02
    assert float((by_gradient - shares).abs().max()) < 0.03
    assert labels.histogram(torch.tensor([-0.25, 0.25]), torch.tensor([0.5, 0.5])).tolist() == [0.75, 0.25]
    with pytest.raises(ValueError, match="½"):
        labels.fisher_histogram(torch.tensor([0.25, 0.25]), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("seed", [0, 1])
def test_single_samples_are_recovered_exactly(seed: int) -> None:
    net, x, y = mlp(seed), X[seed : seed + 1], Y[seed : seed + 1]
    forward, params = forward_of(net)
    update = sent(net, x, y)
    clipped = {name: -0.01 * value for name, value in update.items()}
    assert quality(analytic.layer_input(clipped["1.weight"], clipped["1.bias"]), x) == pytest.approx(120, abs=5)
    dlg = inversion.match_gradient(forward, params, update, x.shape, 10, draws(seed))
    idlg = inversion.match_gradient(forward, params, update, x.shape, 10, draws(seed), labels=y)
    scaled = {name: 5 * value for name, value in update.items()}
    inverted = inversion.invert(forward, params, scaled, x.shape, y, draws(seed), steps=300)
    assert dlg.y.tolist() == y.tolist()
    assert min(quality(dlg.x, x), quality(idlg.x, x), quality(inverted.x, x)) >= 80


def test_a_batch_is_recovered_better_than_by_its_mean() -> None:
    net, x, y = mlp(), X[:8], Y[:8]
    found = inversion.invert(*forward_of(net), sent(net, x, y), x.shape, y, draws(), steps=300, variation=1e-3)
    assert quality(found.x, x) > float(images.baseline(X, x).mean()) + 3


def test_noise_hides_what_clipping_does_not() -> None:
    net = mlp()
    means = []
    for z in (0.0, 1e-3, 1e-2, 0.1):
        found = []
        for i in range(20):
            update = sent(net, X[i : i + 1], Y[i : i + 1])
            norm = torch.stack([value.norm() for value in update.values()]).norm()
            noisy = {
                name: value / norm + z * torch.randn(value.shape, generator=draws(i)) for name, value in update.items()
            }
            x = analytic.layer_input(noisy["1.weight"], noisy["1.bias"])
            found.append(quality(x, X[i : i + 1]))
        means.append(sorted(found)[10])
    assert means[0] == pytest.approx(120, abs=5)
    assert all(more > less + 5 for more, less in pairwise(means))
    assert means[3] < 11.4  # below the mean image


def test_fisher_of_few_samples_is_their_image() -> None:
    net, ones = mlp(), X[Y == 1]
    quality_of = {}
    for n in (1, 50):
        names = [name for name, _ in net.named_parameters()]
        found = fisher.diagonal(net, net, names, ones[:n], Y[Y == 1][:n], kind="empirical", generator=draws())
        x = analytic.fisher_input(found["1.weight"], found["1.bias"]).view(1, 1, 8, 8)
        quality_of[n] = quality(x, ones[:n].mean(0, keepdim=True))
    control = quality(X.mean(0, keepdim=True), ones[:50].mean(0, keepdim=True))
    assert quality_of[1] >= 100
    assert quality_of[50] > control + 3


def test_deltas_of_local_training_leak() -> None:
    net, x, y = mlp(), X[:8], Y[:8]
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    delta = {name: value.detach() - before[name] for name, value in net.named_parameters()}
    rows = analytic.row_inputs(delta["1.weight"], delta["1.bias"]).view(-1, 1, 8, 8)
    found = images.psnr(images.nearest(rows, x), x)
    assert float(found.mean()) > float(images.baseline(X, x).mean()) + 5


@pytest.mark.parametrize("bias", [True, False])
def test_a_task_module_alone_gives_the_sample_away(bias: bool) -> None:
    trunk = mlp(1)[:3].requires_grad_(False)
    torch.manual_seed(2)
    module = nn.Sequential(nn.Linear(128, 16, bias=bias), nn.ReLU(), nn.Linear(16, 10))
    x, y = X[3:4], Y[3:4]
    update = sent(module, trunk(x), y)
    if bias:
        h = analytic.layer_input(update["0.weight"], update["0.bias"])
    else:
        h = analytic.direction(update["0.weight"])
        h = h * h.sum().sign()  # behind a ReLU features are not negative
    assert float(F.cosine_similarity(h, trunk(x)[0], dim=0)) == pytest.approx(1, abs=1e-5)
    found = adapter.invert_features(trunk, h, x.shape[1:], draws(), scaled=bias)
    assert quality(found, x) >= 80
