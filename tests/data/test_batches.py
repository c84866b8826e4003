"""Which samples a round trains on: epochs, streams that pass once, and curricula."""

from __future__ import annotations

import pytest
import torch
from small import model

from fedcl import batches
from fedcl.config import Curriculum, Train
from fedcl.contracts import Batch, Task

TASK = Task("t0", 0, (0, 1))


def _part(n=10):
    return TASK, Batch(torch.arange(n).float()[:, None], torch.zeros(n).long())


def _drawn(train, part, number=0, begin=True, difficulty=(), offered=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = batches.draw(train, generator, [part], number, begin, difficulty, offered if offered is not None else {})
    return [(d.batch.x[:, 0].int().tolist(), d.first, d.progress) for d in found]


def test_offline_makes_epochs_and_offers_each_sample_once():
    train = Train(epochs=2, batch_size=4)
    drawn = _drawn(train, _part())
    assert [len(x) for x, _, _ in drawn] == [4, 4, 2, 4, 4, 2]
    assert sorted(i for x, _, _ in drawn[:3] for i in x) == list(range(10))
    assert [first is not None for _, first, _ in drawn] == [True] * 3 + [False] * 3
    assert [progress for _, _, progress in drawn] == [1 / 3, 2 / 3, 1.0] * 2
    assert all(first is None for _, first, _ in _drawn(train, _part(), begin=False))


@pytest.mark.parametrize("order", ["random", "arrival"])
def test_online_deals_each_sample_to_one_round(order):
    train = Train(stream="online", rounds=3, epochs=5, batch_size=2, order=order)
    met = []
    for number in range(3):
        part = batches.arrived(train, 0, 0, _part(), number, number + 1)
        drawn = _drawn(train, part, number)
        assert all(first is not None and bool(first.all()) for _, first, _ in drawn)
        met += [i for x, _, _ in drawn for i in x]
    assert sorted(met) == list(range(10))
    assert (met == list(range(10))) == (order == "arrival")


def test_who_sat_out_rounds_meets_what_came_meanwhile():
    train = Train(stream="online", rounds=5)
    memory = batches.remember(train, [_part()], 1, {}, {})
    assert batches.since(train, TASK, memory) == 2
    assert len(batches.arrived(train, 0, 0, _part(), 2, 5)[1].y) == 6
    assert batches.since(train, TASK, batches.forget(memory)) == 0


@pytest.mark.parametrize(
    ("pacing", "shares"),
    [
        ("linear", (0.2, 0.6, 1.0)),
        ("root", (0.2, 0.766, 1.0)),
        ("quadratic", (0.2, 0.4, 1.0)),
        ("step", (0.2, 0.2, 1.0)),
    ],
)
def test_pacing_by_hand(pacing, shares):
    curriculum = Curriculum(pacing=pacing, start=0.2, full=0.5)
    assert [round(batches.available(curriculum, u), 3) for u in (0.0, 0.25, 0.5)] == list(shares)
    assert batches.available(curriculum, 0.9) == 1.0


def test_a_curriculum_starts_with_the_easiest_and_offers_each_sample_once():
    train = Train(order="curriculum", epochs=2, rounds=2, batch_size=10, curriculum=Curriculum(start=0.3, full=0.75))
    loss = torch.arange(10.0).flip(0)  # sample 9 is the easiest
    offered = {"t0": torch.zeros(10, dtype=torch.bool)}
    rounds = [_drawn(train, _part(), number, number == 0, [loss], offered) for number in range(2)]
    epochs = [x for drawn in rounds for x, _, _ in drawn]
    assert [len(x) for x in epochs] == [3, 5, 8, 10]
    assert sorted(epochs[0]) == [7, 8, 9]
    first = [x[i] for drawn in rounds for x, mask, _ in drawn for i in range(len(x)) if mask[i]]
    assert sorted(first) == list(range(10))


def test_online_runs_see_each_sample_once(run):
    result = run("online", method="replay", train={"stream": "online", "rounds": 4, "epochs": 3})
    once = sum(r.value for r in result.records if (r.phase, r.name) == ("train", "examples"))
    held = int(result.split[:, :, 0].sum())
    assert once == held
    offline = run("offline", method="replay", train={"rounds": 4, "epochs": 3})
    assert sum(r.value for r in offline.records if (r.phase, r.name) == ("train", "examples")) == 12 * held


def test_hybrid_consolidates_on_the_way(run):
    """EWC's Fishers of both halves of each stage are folded in: the trunk is held already within a stage."""
    train = {"stream": "hybrid", "rounds": 4, "consolidate_every": 2}
    result = run("hybrid", train=train, methods={"ewc": {"form": "separate", "strength": 1.0}})
    from safetensors.torch import load_file

    newest = sorted(result.path.glob("clients/0/*.safetensors"), key=lambda file: file.stat().st_mtime)[-1]
    memory = load_file(newest)
    assert int(memory["ewc/count"]) == 6 == len(memory["ewc/importance/trunk.layers.0.bias"])
    consolidated = {(r.stage, r.round) for r in result.records if (r.phase, r.name) == ("consolidate", "memory")}
    assert consolidated == {(stage, 4 * stage + number) for stage in range(3) for number in (1, 3)}


def test_a_curriculum_trains_other_than_shuffling(run):
    easy = model(run("curriculum", method="finetune", train={"order": "curriculum"}))
    plain = model(run("plain", method="finetune"))
    assert not torch.equal(easy["trunk.layers.0.weight"], plain["trunk.layers.0.weight"])


def test_a_curriculum_over_a_stream_is_refused(run):
    with pytest.raises(ValueError, match="a curriculum"):
        run("refused", train={"order": "curriculum", "stream": "online"})
