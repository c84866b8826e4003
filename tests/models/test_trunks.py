from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from fedcl import plugins
from fedcl.config import Model
from fedcl.contracts import FedclError
from fedcl.models import _layers, dynamic_net

SMALL: dict[str, dict[str, Any]] = {
    "resnet18": {"width_multiplier": 0.125},
    "vit": {"dim": 16, "depth": 2, "heads": 2},
}
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]
IMAGES = ["cnn", "resnet18", "vit"]


def trunk(name: str, shape: tuple[int, ...], **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return plugins.load("models", name)(shape, **(SMALL.get(name, {}) | options))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", plugins.names("models"))
def test_features_of_each_sample_alone(name: str, shape: tuple[int, ...]) -> None:
    net, x = trunk(name, shape).train(), torch.rand(4, *shape)
    features = net(x)
    assert features.shape == (4, net.width)
    assert features.isfinite().all()
    assert features.std(0).max() > 1e-4
    # A sample's features do not depend on its batch, also in training: no batch statistics.
    torch.testing.assert_close(net(x[:1]), features[:1], rtol=1e-4, atol=1e-5)
    assert not list(net.buffers())


@pytest.mark.parametrize("name", plugins.names("models"))
def test_no_samples_have_no_features(name: str) -> None:
    """A hospital may have none of a task to validate on."""
    net = trunk(name, (1, 8, 8))
    assert net(torch.empty(0, 1, 8, 8)).shape == (0, net.width)


@pytest.mark.parametrize("name", plugins.names("models"))
def test_weights_depend_on_the_seed_alone_and_all_learn(name: str) -> None:
    net, again = trunk(name, (1, 8, 8)), trunk(name, (1, 8, 8))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    net(torch.rand(4, 1, 8, 8)).square().sum().backward()
    idle = [key for key, value in net.named_parameters() if value.grad is None or not value.grad.any()]
    assert not idle


@pytest.mark.parametrize("name", plugins.names("models"))
def test_it_learns_with_a_head(name: str) -> None:
    torch.manual_seed(0)
    net = dynamic_net.build(Model(name=name, options=SMALL.get(name, {})), (1, 8, 8), 2)
    net.add_task("t0", 2, 8)
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 2
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(net(x, "t0"), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("name", plugins.names("models"))
def test_the_listing_has_a_line_for_it(name: str) -> None:
    line = plugins.describe("models")[name]
    assert len(line) > 20
    assert line.endswith(".")


@pytest.mark.parametrize("name", IMAGES)
def test_image_trunks_refuse_tables(name: str) -> None:
    with pytest.raises(FedclError, match=rf"model.name = '{name}' needs images .*\[13\].*'mlp'"):
        trunk(name, (13,))


def test_the_default_is_128_then_64() -> None:
    shapes = [tuple(value.shape) for value in trunk("mlp", (1, 8, 8)).parameters()]
    assert shapes == [(128, 64), (128,), (64, 128), (64,)]
    assert trunk("mlp", (13,), hidden=[]).width == 13


def test_mlp_by_hand() -> None:
    net, x = trunk("mlp", (3,), hidden=[4], activation="tanh", bias=False), torch.randn(2, 3)
    torch.testing.assert_close(net(x), torch.tanh(x @ net.layers[0].weight.T))


def test_cnn_as_one_layer_of_32_filters() -> None:
    net = trunk("cnn", (1, 28, 28), channels=[32], width=0)
    assert [tuple(value.shape) for value in net.parameters()] == [(32, 1, 3, 3), (32,)]
    assert net.width == 32 * 14 * 14
    assert trunk("cnn", (1, 28, 28), channels=[32], pool=1, width=0).width == 32 * 28 * 28


def test_resnet18_has_torchvisions_names_and_shapes() -> None:
    from torchvision.models import resnet18

    with torch.device("meta"):
        theirs = dict(resnet18().named_parameters())
        ours = dict(plugins.load("models", "resnet18")((3, 224, 224)).named_parameters())
        small = dict(plugins.load("models", "resnet18")((3, 32, 32)).named_parameters())
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items() if not name.startswith("fc.")
    }
    assert small["conv1.weight"].shape == (64, 3, 3, 3)


def test_resnet18_groups() -> None:
    for groups in (2, 8):
        norms = [m for m in trunk("resnet18", (1, 8, 8), groups=groups).modules() if isinstance(m, nn.GroupNorm)]
        assert [norm.num_groups for norm in norms] == [groups] * 20


def test_vit_class_token_and_positions() -> None:
    net, x = trunk("vit", (1, 8, 8), pool="class"), torch.rand(2, 1, 8, 8)
    assert net.positions.shape == (1, 5, 16)
    swapped = x.roll(4, dims=3)  # the same patches in other places
    assert not torch.allclose(net(x), net(swapped))
    net.positions.data.zero_()
    torch.testing.assert_close(net(x), net(swapped))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mlp", {"hidden": [0]}, "hidden: 0"),
        ("mlp", {"activation": "step"}, "'step': there are relu"),
        ("mlp", {"dropout": [0.1]}, "2, one for each layer"),
        ("mlp", {"dropout": 1.0}, "options.dropout = 1.0"),
        ("mlp", {"input_dropout": -0.1}, "options.input_dropout = -0.1"),
        ("cnn", {"kernel": 4}, "take 5"),
        ("cnn", {"channels": [8] * 4}, "8×8 pixels"),
        ("cnn", {"width": -1}, "width"),
        ("resnet18", {"groups": 3}, r"\[8, 16, 32, 64\]; take 2"),
        ("resnet18", {"stem": "tiny"}, "auto, small, large"),
        ("resnet18", {"width_multiplier": 0}, "width_multiplier = 0"),
        ("vit", {"patch": 3}, r"these do: \[2, 4, 8\]"),
        ("vit", {"dim": 9}, "no multiple"),
        ("vit", {"pool": "max"}, "mean, class"),
    ],
)
def test_mistakes_name_the_option(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(FedclError, match=words):
        trunk(name, (1, 8, 8), **options)


def test_dropout_draws_from_its_generator() -> None:
    layer, x = _layers.Dropout(0.25), torch.ones(100, 100)
    with pytest.raises(RuntimeError, match="draw_from"):
        layer(x)
    before = torch.get_rng_state()
    _layers.draw_from(layer, torch.Generator().manual_seed(1))
    first, second = layer(x), layer(x)
    torch.testing.assert_close(first.unique(), torch.tensor([0.0, 4 / 3]))
    assert (first == 0).float().mean() == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 1e4))
    assert not torch.equal(first, second)
    _layers.draw_from(layer, torch.Generator().manual_seed(1))
    assert torch.equal(layer(x), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert layer.eval()(x) is x
    assert _layers.Dropout(0.0).train()(x) is x


def test_dropout_of_a_trunk_is_on_in_training_only() -> None:
    net, x = trunk("mlp", (6,), hidden=[50, 50], dropout=[0.0, 0.5], input_dropout=0.1), torch.rand(3, 6)
    _layers.draw_from(net, torch.Generator().manual_seed(0))
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
