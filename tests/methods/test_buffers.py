"""What hospitals keep: reservoirs, balanced and herded buffers, and the losses on what is drawn from them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from contexts import Linear, batch, context, params
from torch.nn import functional as F

from fedcl.contracts import Batch
from fedcl.methods import _buffer
from fedcl.methods.der import DER
from fedcl.methods.derpp import DERpp
from fedcl.methods.replay import Replay


def _numbered(n, start=0):
    """Samples that carry their own number."""
    return Batch(torch.arange(start, start + n).float()[:, None].expand(n, 4).contiguous(), torch.zeros(n).long())


def _offer(offer, n, size, seed=0, chunk=50):
    ctx, memory = context(Linear(), seed=seed), {}
    for start in range(0, n, chunk):
        memory = offer(ctx, _buffer.rows(ctx, _numbered(min(chunk, n - start), start)), memory, size, 0)
    return memory


def test_a_reservoir_is_uniform():
    """5,000 items into 100 places, 40 times: χ² of inclusion over ten bins by age, 9 degrees of freedom."""
    kept = torch.cat([_offer(_buffer.reservoir, 5000, 100, seed)["x"][:, 0] for seed in range(40)])
    counts = torch.bincount((kept / 500).long(), minlength=10).double()
    chi2 = float(((counts - 400) ** 2 / 400).sum())
    assert chi2 < 27.9  # p = 0.001


def test_a_reservoir_holds_each_sample_once_and_counts_what_it_was_offered():
    memory = _offer(_buffer.reservoir, 30, 40)
    assert memory["x"][:30, 0].tolist() == list(range(30))
    memory = _offer(_buffer.reservoir, 500, 40)
    assert len(set(memory["x"][:, 0].tolist())) == 40
    assert (int(memory["filled"]), int(memory["offered"])) == (40, 500)


def test_batches_do_not_matter_to_a_reservoir_s_law():
    """One slot: the last of B offers in a batch wins as often as its chance says."""
    wins = Counter(int(_offer(_buffer.reservoir, 4, 1, seed, chunk=4)["x"][0, 0]) for seed in range(2000))
    assert all(abs(wins[k] - 500) < 100 for k in range(4))


def test_a_balanced_buffer_gives_each_class_as_much():
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(600, generator=generator) < 0.05).long()  # 19 to 1
    ctx, memory = context(Linear()), {}
    for part in torch.split(y, 30):
        memory = _buffer.balanced(ctx, _buffer.rows(ctx, Batch(torch.randn(len(part), 4), part)), memory, 20, 0)
    assert Counter(memory["y"].tolist()) == {0: 10, 1: 10}


def test_bytes_bound_a_buffer_too():
    row = {"x": torch.zeros(1, 100), "y": torch.zeros(1).long()}  # 408 bytes
    assert _buffer.room(200, 0, row) == 200
    assert _buffer.room(200, 4080, row) == 10
    assert _buffer.room(0, 4080, row) == 10
    assert _buffer.room(5, 4080, row) == 5


def test_herding_takes_the_samples_that_keep_the_mean():
    """Features 0, 1, 2, 3, 4 along one axis (normalised away from 0): the running mean follows the class's."""
    net = Linear()
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(3))
    memory = Replay(size=6, keep="herding").end_task(context(net), params(net), Batch(x, torch.zeros(40).long()), {})
    with torch.no_grad():
        points = F.normalize(net.features(x).double())
        kept = F.normalize(net.features(memory["x"]).double())
    mean = points.mean(0)
    order = []
    for k in range(6):  # the greedy rule, one candidate at a time
        error = [float((mean - (kept[:k].sum(0) + p) / (k + 1)).norm()) for p in points]
        order.append(min((e, i) for i, e in enumerate(error) if i not in order)[1])
    torch.testing.assert_close(memory["x"], x[order])


def test_herding_makes_room_for_new_classes():
    net, method = Linear(), Replay(size=12, keep="herding")
    memory = method.end_task(context(net), params(net), batch(60), {})
    first = memory["x"].clone()
    memory = method.end_task(context(net, task=1, past=(0,)), params(net), batch(60, task=1), memory)
    sizes = Counter(zip(memory["task"].tolist(), memory["y"].tolist(), strict=True))
    assert sizes == {(0, 0): 3, (0, 1): 3, (0, 2): 2, (1, 0): 2, (1, 1): 2}
    assert all(any(torch.equal(row, old) for old in first) for row in memory["x"][:8])  # the first of the old ones


def _one(task, label, x, logits=None):
    memory = {"x": x[None], "y": torch.tensor([label]), "task": torch.tensor([task])}
    memory |= {"filled": torch.tensor(1), "offered": torch.tensor(1)}
    return memory if logits is None else memory | {"logits": logits[None]}


def test_replay_is_the_average_of_both_losses():
    net, data = Linear(), batch(task=1)
    ctx, old = context(net, task=1, past=(0,)), torch.randn(4)
    expected = 0.75 * F.cross_entropy(net(data.x, "t1"), data.y)
    expected += 0.25 * F.cross_entropy(net(old[None], "t0"), torch.tensor([2]))
    found = Replay(weight=0.25).loss(ctx, params(net), data, _one(0, 2, old))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_empty_buffer_is_plain_training():
    net, data = Linear(), batch()
    ctx = context(net)
    empty = _one(0, 0, torch.zeros(4)) | {"filled": torch.tensor(0)}
    plain = F.cross_entropy(net(data.x, "t0"), data.y).item()
    empty_logits = empty | {"logits": torch.zeros(1, 3)}
    assert Replay().loss(ctx, params(net), data, empty).item() == pytest.approx(plain)
    assert DER().loss(ctx, params(net), data, empty_logits).item() == pytest.approx(plain)
    assert DERpp().loss(ctx, params(net), data, empty_logits).item() == pytest.approx(plain)


def test_der_compares_the_outputs_that_a_sample_had():
    """Stored from a head of three: mean over its outputs of (z − z_buf)²."""
    net, data, old = Linear(), batch(task=1), torch.randn(4)
    ctx = context(net, task=1, past=(0,))
    kept = torch.tensor([1.0, -1.0, 0.5])
    expected = F.cross_entropy(net(data.x, "t1"), data.y) + 0.3 * (net(old[None], "t0")[0] - kept).square().mean()
    found = DER(alpha=0.3).loss(ctx, params(net), data, _one(0, 0, old, kept))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    narrow = _one(1, 0, old, torch.tensor([1.0, -1.0, -torch.inf]))
    expected = F.cross_entropy(net(data.x, "t1"), data.y) + 0.3 * (net(old[None], "t1")[0] - kept[:2]).square().mean()
    assert DER(alpha=0.3).loss(ctx, params(net), data, narrow).item() == pytest.approx(expected.item(), rel=1e-5)


def test_derpp_adds_the_labels_on_a_draw_of_its_own():
    net, data, old = Linear(), batch(task=1), torch.randn(4)
    ctx, kept = context(net, task=1, past=(0,)), torch.tensor([1.0, -1.0, 0.5])
    memory = _one(0, 1, old, kept)
    expected = DER(alpha=0.3).loss(ctx, params(net), data, memory)
    expected = expected + 0.7 * F.cross_entropy(net(old[None], "t0"), torch.tensor([1]))
    found = DERpp(alpha=0.3, beta=0.7).loss(ctx, params(net), data, memory)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    many = {key: value.expand(50, *value.shape[1:]).clone() for key, value in memory.items() if value.dim()}
    many |= {"x": torch.randn(50, 4), "filled": torch.tensor(50), "offered": torch.tensor(50)}
    first = _buffer.draw(replace(ctx, generator=(g := torch.Generator().manual_seed(0))), many, 8)[0]["x"]
    second = _buffer.draw(replace(ctx, generator=g), many, 8)[0]["x"]
    assert not torch.equal(first, second)


def test_stored_logits_are_those_of_the_moment():
    net, data = Linear(), batch(5)
    memory = DER(size=10).observe(context(net), params(net), data, {})
    torch.testing.assert_close(memory["logits"][:5], net(data.x, "t0").detach())
    memory = DER(size=10).observe(context(net, task=1), params(net), batch(3, task=1), memory)
    assert memory["logits"][5:8, 2].eq(-torch.inf).all()  # a head of two
