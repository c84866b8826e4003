from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sample_by_sample import TRUNKS, Losses, assert_near, by_hand, images, names_of, of
from torch import Tensor, nn

from fedcl import _clipped_layers, clipped
from fedcl.clipped import clipped_sum
from fedcl.config import Model
from fedcl.models import dynamic_net
from fedcl.models._layers import Dropout, draw_from


def check(net: nn.Module, losses: Losses, rows: tuple[Tensor, ...]) -> None:
    """Against the definition: to 1e-12 in double precision, to 1e-6 in single; some clipped, some not."""
    net.double()
    wide = tuple(row.double() if row.is_floating_point() else row for row in rows)
    clip = float(by_hand(net, losses, wide, 1.0)[1].median())
    reference = by_hand(net, losses, wide, clip)
    assert 0 < int((reference[1] > clip).sum()) < len(rows[0])
    assert_near(clipped_sum(net, names_of(net), losses, wide, clip), reference, 1e-12)
    assert_near(clipped_sum(net, names_of(net), losses, wide, clip, chunk=2), reference, 1e-12)
    net.float()
    assert_near(clipped_sum(net, names_of(net), losses, rows, clip), reference, 1e-6)


def closed_of(net: nn.Module, losses: Losses, rows: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The layers that were measured by a rule."""
    seen: set[int] = set()
    original = clipped.part

    def part(layer: nn.Module, *rest: Any) -> Any:
        seen.add(id(layer))
        return original(layer, *rest)

    monkeypatch.setattr(clipped, "part", part)
    clipped_sum(net, names_of(net), losses, rows, 1.0)
    return {name for name, layer in net.named_modules() if id(layer) in seen}


@pytest.mark.parametrize(("name", "options"), TRUNKS)
@pytest.mark.parametrize("weight_norm", [False, True])
def test_trunk_module_and_gate_equal_the_definition(name: str, options: dict[str, Any], weight_norm: bool) -> None:
    torch.manual_seed(1)
    net = dynamic_net.build(Model(name=name, options=options, weight_norm=weight_norm), (1, 8, 8), 3)
    for task in ("t0", "t1"):
        net.add_task(task, 3, 4)
    net.gates["t0"].logits.data.normal_()
    net.gates["t0"].mask[1] = 0
    check(net, of(net, "t0"), images())


@pytest.mark.parametrize("masks", ["units", "weights", "adaptive", "slices"])
@pytest.mark.parametrize("heads", ["task", "shared"])
def test_masked_trunks_equal_the_definition(masks: str, heads: str) -> None:
    torch.manual_seed(1)
    model = Model(name="cnn", options={"channels": [3], "width": 6}, masks=masks, heads=heads)
    net = dynamic_net.build(model, (1, 8, 8), 3)
    net.add_task("t0", 3, 4)
    for name, value in net.named_parameters():
        if ".trunk." in name:
            value.data.normal_(std=0.1)
    for name, value in net.named_buffers():
        if name.endswith("owner"):
            value[0] = 0
        if name.endswith("scale"):
            value.fill_(1.0)
    check(net, of(net, "t0"), images())


def test_a_shared_head_with_closed_classes() -> None:
    torch.manual_seed(1)
    net = dynamic_net.build(Model(heads="shared", options={"hidden": [5]}), (6,), 4)
    net.allow([1, 3])
    check(net, of(net, "t0"), (torch.randn(5, 6), torch.tensor([1, 3, 1, 3, 1])))


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.PReLU()])  # PReLU has no rule
def test_dropout_draws_once_for_all(activation: nn.Module) -> None:
    torch.manual_seed(1)
    layers = [
        nn.Linear(6, 8),
        activation,
        Dropout(0.5),
        nn.Linear(8, 8),
        Dropout(0.5),
        nn.Linear(8, 3),
    ]
    net = nn.Sequential(*layers).train().double()
    rows = (torch.randn(8, 6).double(), torch.arange(8) % 3)

    def seeded(x: Tensor, y: Tensor) -> Tensor:
        if not torch._C._functorch.is_batchedtensor(x):
            draw_from(net, torch.Generator().manual_seed(5))
        return of(net)(x, y)

    reference = by_hand(net, seeded, rows, 1.0)
    assert_near(clipped_sum(net, names_of(net), seeded, rows, 1.0), reference, 1e-12)
    assert all(module.training for module in net.modules())
    net.eval()
    other = by_hand(net, of(net), rows, 1.0)
    assert_near(clipped_sum(net, names_of(net), of(net), rows, 1.0), other, 1e-12)
    assert not torch.allclose(other[1], reference[1])


def test_dropout_that_is_no_layer_is_refused_where_vmap_would_draw_again() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 3))
    with pytest.raises(RuntimeError, match="random"):
        clipped_sum(net, names_of(net), lambda x: F.dropout(net(x)).sum(1), (torch.randn(3, 4),), 1.0)


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)


def teacher(net: Three, x: Tensor) -> Tensor:
    with torch.no_grad():
        old = net.c(net.a(x))
    return net.c(torch.tanh(net.a(x))) * old


USES: dict[str, Callable[[Three, Tensor], Tensor]] = {
    "a layer twice": lambda net, x: net.c(torch.tanh(net.a(torch.tanh(net.a(x))))),
    "two layers with one weight": lambda net, x: net.c(torch.tanh(net.b(torch.tanh(net.a(x))))),
    "a weight without its layer": lambda net, x: net.c(torch.tanh(F.linear(x, net.a.weight, net.a.bias))),
    "a weight at another value": lambda net, x: torch.func.functional_call(net.c, {"weight": 2 * net.c.weight}, (x,)),
    "an output changed in place": lambda net, x: net.c(net.a(x).relu_()),
    "a teacher": teacher,
}


@pytest.mark.parametrize("use", USES)
def test_unusual_uses_of_layers(use: str) -> None:
    torch.manual_seed(2)
    net = Three()
    if use == "two layers with one weight":
        net.b.weight = net.a.weight
    check(
        net,
        lambda x, y: F.cross_entropy(USES[use](net, x), y, reduction="none"),
        (torch.randn(5, 4), torch.arange(5) % 3),
    )


@pytest.mark.parametrize("small", ["grams", "gradients", "streamed"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2), bias=False),
        nn.Conv2d(2, 4, 3, groups=2),
        nn.Conv2d(2, 4, 3, padding="valid"),
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
        nn.Sequential(nn.Flatten(2), nn.Linear(30, 5), nn.LayerNorm(5), nn.Linear(5, 4, bias=False)),
    ],
)
def test_every_way_to_measure_a_layer(layer: nn.Module, small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(_clipped_layers, "_GRAM", 1e9 if small == "grams" else 0)
    if small == "streamed":
        monkeypatch.setattr(_clipped_layers, "_BLOCK", 1)
    x = torch.randn(5, 2, 6, 5)
    net = nn.Sequential(
        layer, nn.Tanh(), nn.GroupNorm(2, layer(x).shape[1]), nn.Flatten(), nn.Linear(layer(x)[0].numel(), 3)
    )
    check(net.double().float(), of(net), (x, torch.arange(5) % 3))


def test_layers_with_a_rule_are_measured_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net = dynamic_net.build(Model(name="vit", options={"dim": 8, "depth": 1, "heads": 2}), (1, 8, 8), 3)
    net.add_task("t0", 3, 4)
    layers = {"embed", "blocks.0.norm1", "blocks.0.attention.qkv", "blocks.0.attention.proj", "blocks.0.norm2"}
    layers |= {"blocks.0.up", "blocks.0.down", "norm"}
    expected = {f"trunk.{name}" for name in layers} | {"tasks.t0.hidden", "tasks.t0.out", "gates.t0"}
    assert closed_of(net, of(net, "t0"), images(), monkeypatch) == expected
