"""What a compression sends, and what of it arrives: numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fedcl import compression, plugins, quantize
from fedcl.compression.int8 import Int8
from fedcl.compression.sparse import Sparse
from fedcl.compression.topk import TopK
from fedcl.contracts import FedclError

RULES = {name: plugins.make("compression", name, {}) for name in plugins.names("compression")}


def _draws(seed=0):
    return torch.Generator().manual_seed(seed)


def _deltas(zeros=0.0):
    """Parameters of several shapes; some entries exactly zero."""
    draws = _draws(1)
    shapes = {"trunk.b.weight": (6, 5), "trunk.a.bias": (7,), "tasks.t0.out.weight": (3, 2, 2, 2), "gates.t0.s": ()}
    made = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    return {name: value * (torch.rand(value.shape, generator=draws) >= zeros) for name, value in made.items()}


def _through(rule, deltas, seed=0):
    return rule.decode(rule.encode(deltas, _draws(seed)), deltas)


@pytest.mark.parametrize("name", RULES)
def test_names_shapes_and_dtypes_come_back(name):
    deltas = _deltas()
    found = _through(RULES[name], deltas)
    assert list(found) == list(deltas)
    assert all(found[key].shape == value.shape and found[key].dtype == value.dtype for key, value in deltas.items())


@pytest.mark.parametrize("name", RULES)
def test_the_order_of_names_does_not_matter(name):
    deltas = _deltas()
    turned = dict(reversed(deltas.items()))
    one, two = _through(RULES[name], deltas), _through(RULES[name], turned)
    assert all(torch.equal(one[key], two[key]) for key in deltas)


@pytest.mark.parametrize("name", RULES)
def test_what_did_not_move_does_not_move(name):
    deltas = _deltas(zeros=0.7)
    found = _through(RULES[name], deltas)
    assert any((value == 0).any() for value in deltas.values())
    assert all((found[key][value == 0] == 0).all() for key, value in deltas.items())
    still = {key: torch.zeros_like(value) for key, value in deltas.items()}
    assert all((value == 0).all() for value in _through(RULES[name], still).values())


# ── int8 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_eight_bits_by_hand():
    """A row up to 12.7 has scale 0.1: 0.25 becomes 0.2 or 0.3, 12.7 and −1 stay."""
    row = torch.tensor([[12.7, 0.25, -1.0, 0.0]])
    low, scale = quantize.stochastic(row, torch.full((1, 4), 0.1))
    high, _ = quantize.stochastic(row, torch.full((1, 4), 0.9))
    assert scale.tolist() == pytest.approx([0.1])
    assert low.tolist() == [[127, 2, -10, 0]]
    assert high[0, [0, 1, 3]].tolist() == [127, 3, 0]
    near, _ = quantize.nearest(torch.tensor([[12.7, 0.26, -0.94, 0.0]]))
    assert near.tolist() == [[127, 3, -9, 0]]


def test_each_output_has_its_own_scale():
    small = torch.tensor([[1000.0, 1.0], [0.001, 0.0005]])
    found = _through(Int8(), {"trunk.w": small})["trunk.w"]
    assert torch.all((found - small).abs() <= torch.tensor([[1000.0], [0.001]]) / 127)


def test_rounding_is_unbiased_and_off_by_less_than_a_scale():
    """The mean of n draws is within 5 standard errors, each draw's deviation being at most half a scale."""
    deltas, n = _deltas(), 4000
    total = {key: torch.zeros_like(value) for key, value in deltas.items()}
    scale = {
        k: (quantize.scales(quantize.rows(v))[:, None] + 0 * quantize.rows(v)).view(v.shape) for k, v in deltas.items()
    }
    draws = _draws(3)
    for _ in range(n):
        found = Int8().decode(Int8().encode(deltas, draws), deltas)
        for key, value in found.items():
            assert torch.all((value - deltas[key]).abs() <= scale[key] * 1.0001)
            total[key] += value
    for key, value in total.items():
        assert torch.all((value / n - deltas[key]).abs() <= 5 * 0.5 * scale[key] / math.sqrt(n) + 1e-6), key


def test_eight_bits_are_a_quarter():
    deltas = {"trunk.w": torch.randn(200, 300, generator=_draws())}
    sent = compression.size(Int8().encode(deltas, _draws()))
    assert 0.25 < sent / compression.size(deltas) < 0.26


# ── topk ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_largest_are_sent_and_the_rest_is_owed():
    rule = TopK(keep=0.5)
    first = {"trunk.w": torch.tensor([4.0, -1.0, 0.5, -8.0])}
    sent, memory = compression.shrink(rule, first, {"ewc/kept": torch.ones(1)}, _draws())
    assert rule.decode(sent, first)["trunk.w"].tolist() == [4.0, 0.0, 0.0, -8.0]
    assert memory[compression.RESIDUAL + "trunk.w"].tolist() == [0.0, -1.0, 0.5, 0.0]
    assert "ewc/kept" in memory
    # −1 was owed: with −1 more it is among the largest.
    second = {"trunk.w": torch.tensor([0.5, -1.0, 0.25, 3.0])}
    sent, memory = compression.shrink(rule, second, memory, _draws())
    assert rule.decode(sent, second)["trunk.w"].tolist() == [0.0, -2.0, 0.0, 3.0]
    assert memory[compression.RESIDUAL + "trunk.w"].tolist() == [0.5, 0.0, 0.75, 0.0]


def test_nothing_is_lost_and_nothing_is_sent_twice():
    """Sums of what was sent and is owed are the sums of the deltas, however few were sent each time."""
    rule, memory, draws = TopK(keep=0.1), {}, _draws()
    total, arrived = torch.zeros(50), torch.zeros(50)
    for _ in range(40):
        delta = torch.randn(50, generator=draws)
        sent, memory = compression.shrink(rule, {"trunk.w": delta}, memory, draws)
        total += delta
        arrived += rule.decode(sent, {"trunk.w": delta})["trunk.w"]
    owed = memory[compression.RESIDUAL + "trunk.w"]
    assert torch.allclose(arrived + owed, total, atol=1e-5)
    assert owed.abs().max() < total.abs().max() + 12  # it does not pile up: what waits longest is sent


def test_what_is_owed_waits_where_nothing_moves():
    rule, owed = TopK(keep=1.0), torch.tensor([5.0, 5.0])
    memory = {compression.RESIDUAL + "trunk.w": owed, compression.RESIDUAL + "tasks.t0.w": torch.ones(1)}
    moved = {"trunk.w": torch.tensor([0.0, 1.0])}
    sent, memory = compression.shrink(rule, moved, memory, _draws())
    assert rule.decode(sent, moved)["trunk.w"].tolist() == [0.0, 6.0]
    assert memory[compression.RESIDUAL + "trunk.w"].tolist() == [5.0, 0.0]
    assert memory[compression.RESIDUAL + "tasks.t0.w"].tolist() == [1.0]  # of a task that did not train
    assert compression.forget(memory) == {}


def test_a_share_of_the_entries_is_a_share_of_the_bytes():
    deltas = {"trunk.w": torch.randn(200, 300, generator=_draws())}
    sizes = [compression.size(TopK(keep).encode(deltas, _draws())) / 240_000 for keep in (0.1, 0.01)]
    assert sizes == pytest.approx([0.1 + 1 / 32, 0.02], abs=0.002)  # places: a bit an entry, or four bytes a value


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.5])
def test_a_share_is_above_0_and_at_most_1(keep):
    with pytest.raises(FedclError, match=r"compression.topk: keep = .* must be in \(0, 1\]"):
        plugins.make("compression", "topk", {"keep": keep})


# ── sparse ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.95, 0.999, 1.0])
def test_sparse_changes_no_bit_and_is_never_larger(zeros):
    draws = _draws(2)
    value = torch.randn(300, 70, generator=draws)
    value[torch.rand(300, 70, generator=draws) < zeros] = 0.0
    value[0, :3] = torch.tensor([-0.0, math.inf, 1e-45])
    deltas = {"trunk.w": value, "trunk.b": torch.zeros(7)}
    sent = Sparse().encode(deltas, draws)
    found = Sparse().decode(sent, deltas)
    assert all(torch.equal(found[key].view(torch.int32), v.view(torch.int32)) for key, v in deltas.items())
    filled = int((value != 0).sum()) + 1  # and −0
    total = value.numel() + 7
    assert sum(v.nbytes for v in sent.values()) == min(4 * total, 4 * filled + min(4 * filled, -(-total // 8)))


# ── garbage ──────────────────────────────────────────────────────────────────────────────────────────────────────────

LIKE = {"trunk.w": torch.zeros(4, 5), "trunk.b": torch.zeros(4)}  # 24 entries, 5 rows
FEW, VALUES = torch.tensor([1, 2, 3], dtype=torch.int32), torch.ones(3)
GARBAGE = {
    "int8": {
        "as if nothing were compressed": LIKE,
        "nothing": {},
        "no scales": {"values": torch.zeros(24, dtype=torch.int8)},
        "too few scales": {"values": torch.zeros(24, dtype=torch.int8), "scales": torch.ones(4)},
        "too many values": {"values": torch.zeros(25, dtype=torch.int8), "scales": torch.ones(5)},
        "floats": {"values": torch.zeros(24), "scales": torch.ones(5)},
        "a table": {"values": torch.zeros(4, 6, dtype=torch.int8), "scales": torch.ones(5)},
        "more": {"values": torch.zeros(24, dtype=torch.int8), "scales": torch.ones(5), "x": torch.ones(1)},
    },
}
GARBAGE["topk"] = GARBAGE["sparse"] = {
    "as if nothing were compressed": LIKE,
    "nothing": {},
    "no values": {"places": FEW},
    "too few values for all": {"values": VALUES},
    "more places than values": {"values": VALUES[:2], "places": FEW},
    "places outside": {"values": VALUES, "places": FEW + 22},
    "places before the first": {"values": VALUES, "places": FEW - 2},
    "places twice": {"values": VALUES, "places": torch.tensor([1, 1, 2], dtype=torch.int32)},
    "places as floats": {"values": VALUES, "places": FEW.float()},
    "places in a table": {"values": VALUES, "places": FEW[None]},
    "too many bits": {"values": VALUES, "places": torch.tensor([7, 0, 0, 0], dtype=torch.uint8)},
    "other values than bits": {"values": VALUES, "places": torch.tensor([15, 0, 0], dtype=torch.uint8)},
    "doubles": {"values": VALUES.double(), "places": FEW},
    "more": {"values": VALUES, "places": FEW, "x": VALUES},
}


@pytest.mark.parametrize(("name", "what"), [(name, what) for name, cases in GARBAGE.items() for what in cases])
def test_garbage_is_refused(name, what):
    with pytest.raises(FedclError, match="its compressed deltas cannot be read"):
        compression.restore(RULES[name], GARBAGE[name][what], LIKE)


def test_bits_outside_are_refused():
    like, sent = {"trunk.w": torch.zeros(70)}, {"values": VALUES[:1], "places": torch.zeros(9, dtype=torch.uint8)}
    sent["places"][8] = 1  # entry 71
    with pytest.raises(FedclError, match="outside of 70"):
        compression.restore(RULES["topk"], sent, like)


@pytest.mark.parametrize("name", RULES)
def test_where_nothing_moves_nothing_is_sent(name):
    assert compression.shrink(RULES[name], {}, {}, _draws()) == ({}, {})
    assert compression.restore(RULES[name], {}, {}) == {}
