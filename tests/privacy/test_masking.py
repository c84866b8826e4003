"""Masked sums: what comes out of a round, and what the server sees on the way."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch
from privacy.rounds import Round, whole

from fedcl.errors import FedclError
from fedcl.masking import keys, masks, party
from fedcl.masking.fixed_point import FixedPoint
from fedcl.masking.records import Terms
from fedcl.masking.vectors import WeightedMean

LENGTH = 257


def _ring(n, bits=64, length=LENGTH, seed=0):
    """Numbers from the whole ring, for each of n parties."""
    draws = np.random.default_rng(seed)
    made = draws.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (n, length)).astype(f"int{bits}")
    return {p: {"trunk": torch.from_numpy(row)} for p, row in enumerate(made)}


def _sum(vectors, parties, part="trunk"):
    return sum(vectors[p][part] for p in parties)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("n", [3, 5, 8, 40])
def test_the_sum_is_exact_modulo_r(n, bits):
    vectors = _ring(n, bits)
    _, sums = whole(vectors, Terms(bits=bits))
    assert sums.parties == {"trunk": tuple(range(n))}
    assert torch.equal(sums.totals["trunk"], _sum(vectors, range(n)))
    assert sums.refused == {}


def test_numbers_of_parties_need_not_be_in_a_row():
    vectors = {7 * p + 3: parts for p, parts in _ring(4).items()}
    _, sums = whole(vectors, gone=((), (), (10,), ()))
    assert torch.equal(sums.totals["trunk"], _sum(vectors, (3, 17, 24)))


@pytest.mark.parametrize("bits", [32, 64])
def test_a_hundred_thousand_parameters(bits):
    draws, clip = torch.Generator().manual_seed(0), 2.0
    values, numbers = torch.randn(5, 100_000, generator=draws), FixedPoint(clip, 5, bits)
    _, sums = whole({p: {"trunk": numbers.encode(value)[0]} for p, value in enumerate(values)}, Terms(bits=bits))
    error = (numbers.decode(sums.totals["trunk"]) - values.double().clamp(-clip, clip).sum(0)).abs().max()
    assert error <= numbers.bound(5) <= 1e-5 * clip


def test_a_weighted_mean_of_deltas_and_metrics_beside_it():
    draws, weights = torch.Generator().manual_seed(0), (12.0, 700.0, 90.0, 3.0)
    deltas = [
        {"trunk.w": torch.randn(4, 5, generator=draws), "trunk.b": torch.randn(5, generator=draws)} for _ in "abcd"
    ]
    written, counts = WeightedMean(4.0, 1000.0, 4), FixedPoint(1e6, 4)
    vectors = {
        p: {"trunk": written.encode(d, w)[0], "metrics": counts.encode(torch.tensor([w, 2 * w]))[0]}
        for p, (d, w) in enumerate(zip(deltas, weights, strict=True))
    }
    _, sums = whole(vectors, gone=((), (), (1,), ()))
    mean, weight = written.decode(sums.totals["trunk"], deltas[0])
    assert weight == 105.0
    assert counts.decode(sums.totals["metrics"]).tolist() == [105.0, 210.0]
    for name in deltas[0]:
        plain = sum(weights[p] * deltas[p][name] for p in (0, 2, 3)) / 105
        torch.testing.assert_close(mean[name], plain)


@pytest.mark.parametrize("phase", range(4))
@pytest.mark.parametrize("n", [5, 8, 40])
def test_one_that_drops_out_in_any_phase(n, phase):
    vectors = _ring(n)
    gone = [()] * 4
    gone[phase] = (1,)
    _, sums = whole(vectors, gone=gone)
    left = [p for p in range(n) if p != 1 or phase == 3]  # in the last phase its vector is there already
    assert sums.parties == {"trunk": tuple(left)}
    assert torch.equal(sums.totals["trunk"], _sum(vectors, left))


@pytest.mark.parametrize(
    ("n", "gone"),
    [
        (5, ((), (), (0, 4), ())),
        (5, ((), (3,), (0,), ())),
        (5, ((), (), (0,), (4,))),
        (8, ((), (), (1, 2, 6), ())),
        (8, ((), (5,), (0,), (7,))),
        (8, ((0, 1), (), (2, 3), ())),
        (40, ((), (), tuple(range(10)), ())),
        (40, ((), (0, 1, 2), (10, 20, 30), (5, 6, 7, 8))),
    ],
)
def test_as_many_drop_out_as_the_threshold_allows(n, gone):
    vectors = _ring(n)
    _, sums = whole(vectors, gone=gone)
    left = sorted(set(range(n)) - set(gone[0]) - set(gone[1]) - set(gone[2]))
    assert torch.equal(sums.totals["trunk"], _sum(vectors, left))


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (((), (0, 1, 2, 3), (), ()), "needed"),
        (((), (), (0, 1, 2, 3), ()), "needed"),
        (((), (0, 1), (2, 3), ()), "needed"),
        (((), (), (0, 1), (2, 3)), "too few"),
    ],
)
def test_one_more_is_refused(gone, said):
    with pytest.raises(FedclError, match=said):
        whole(_ring(8), gone=gone)


def test_a_higher_threshold_allows_fewer():
    assert whole(_ring(5), Terms(threshold=4), gone=((), (), (1,), ()))[1].parties == {"trunk": (0, 2, 3, 4)}
    with pytest.raises(FedclError, match="4 are needed"):
        whole(_ring(5), Terms(threshold=4), gone=((), (), (1, 2), ()))


def test_each_part_is_summed_over_its_owners():
    vectors = _ring(7)
    for part, owners in {"four": (0, 2, 3, 5), "three": (1, 4, 6), "two": (0, 1)}.items():
        for p in owners:
            vectors[p][part] = _ring(7, seed=len(part), length=50)[p]["trunk"]
    made, sums = whole(vectors, gone=((), (), (4,), ()))
    assert sums.parties == {"trunk": (0, 1, 2, 3, 5, 6), "four": (0, 2, 3, 5)}
    assert all(torch.equal(total, _sum(vectors, sums.parties[part], part)) for part, total in sums.totals.items())
    assert set(sums.refused) == {"two", "three"}
    assert "2 hospitals" in sums.refused["three"]
    assert all("two" not in sent for sent in made.masked.values())  # refused before it was sent
    assert "three" in made.masked[1]  # refused when one of three had dropped out: nobody gives a seed away
    revealed = [parts for reveal in made.reveals.values() for parts in reveal.seeds.values()]
    assert {part for parts in revealed for part in parts} == {"trunk", "four"}


@pytest.mark.parametrize(
    ("n", "parts", "gone", "opened"),
    [
        (4, {"a": (0, 1, 2)}, (), {"trunk"}),  # all less all but one
        (5, {"a": (0, 1, 2)}, (), {"trunk", "a"}),
        (5, {"a": (0, 1, 2)}, (4,), {"trunk"}),
        (6, {"a": (0, 1, 2, 3), "b": (1, 4, 5)}, (), {"trunk", "a"}),  # a + b - all is what 1 has
        (9, {"a": (0, 1, 2), "b": (3, 4, 5), "c": (6, 7, 8)}, (), {"trunk", "a", "b", "c"}),
        (9, {"a": (0, 1, 2), "b": (3, 4, 5), "c": (6, 7, 8)}, (7, 8), {"trunk", "b"}),
    ],
)
def test_no_sums_are_opened_that_together_give_away_ones_own(n, parts, gone, opened):
    vectors = _ring(n)
    for part, owners in parts.items():
        for p in owners:
            vectors[p][part] = _ring(n, seed=len(part), length=50)[p]["trunk"]
    _, sums = whole(vectors, gone=((), (), gone, ()))
    assert set(sums.totals) == opened
    assert set(sums.refused) == set(parts) - opened
    assert all(torch.equal(total, _sum(vectors, sums.parties[part], part)) for part, total in sums.totals.items())


def test_a_small_part_among_many_parties():
    vectors = _ring(40)
    for p in (3, 17, 30):
        vectors[p]["module"] = _ring(40, seed=1)[p]["trunk"]
    made, sums = whole(vectors)
    assert torch.equal(sums.totals["module"], _sum(vectors, (3, 17, 30), "module"))
    assert made.roster.partners("module", 3) == {17, 30}  # whether or not they are neighbours in the graph
    assert len(made.roster.partners("trunk", 3)) == 22


def _uniform(values):
    """Whether 256 values of a byte are equally likely: χ² with 255 degrees of freedom, six deviations."""
    counts = np.bincount(np.frombuffer(values.numpy().tobytes(), np.uint8), minlength=256)
    mean = counts.mean()
    return ((counts - mean) ** 2).sum() / mean < 255 + 6 * (2 * 255) ** 0.5


def _zeros(n, bits=64):
    return {p: {"trunk": torch.zeros(8000, dtype=masks.DTYPES[bits])} for p in range(n)}


def _without_seed(made, p):
    """A masked vector less the party's own mask, as the server sees it once it has rebuilt the seed."""
    values = masks.unsigned(made.masked[p]["trunk"])
    masks.add_stream(values, made.seeds[p], -1)
    return masks.signed(values)


def _run(vectors, gone=()):
    made = Round(vectors, Terms()).keys().share()
    made.seeds = {p: state.seeds["trunk"] for p, state in made.states.items()}
    made.keys_of = {p: state.mask_key for p, state in made.states.items()}
    made.mask(gone)
    made.sums = made.unmask()
    return made


@pytest.mark.parametrize("bits", [32, 64])
def test_a_masked_vector_looks_uniform(bits):
    made, _ = whole(_zeros(3, bits), Terms(bits=bits))
    assert not _uniform(made.vectors[0]["trunk"])
    assert all(_uniform(sent["trunk"]) for sent in made.masked.values())


def test_it_still_does_when_the_server_has_the_seeds():
    made = _run(_zeros(4))
    assert all(_uniform(_without_seed(made, p)) for p in range(4))


def test_it_does_not_without_the_masks_of_pairs(monkeypatch):
    _no_pairs(monkeypatch)
    made = _run(_zeros(4))
    assert not any(_uniform(_without_seed(made, p)) for p in range(4))


def test_a_late_vector_stays_hidden_by_its_seed():
    """Party 1 is said to have dropped out, its masking key is rebuilt, and then its vector arrives."""
    made = _run(_zeros(4), gone=(1,))
    late = masks.unsigned(made.masked[1]["trunk"])
    for other in (0, 2, 3):
        pair = keys.of_part(party.pair_key(made.keys_of[1], made.roster, 1, other), "trunk")
        masks.add_stream(late, pair, -party.sign(1, other))
    assert _uniform(masks.signed(late))
    masks.add_stream(late, made.seeds[1], -1)  # which is what nobody but itself can take away
    assert not late.any()


def _no_pairs(monkeypatch):
    add = masks.add_stream
    monkeypatch.setattr(keys, "of_part", lambda key, part: b"")
    monkeypatch.setattr(masks, "add_stream", lambda values, key, sign: add(values, key, sign) if key else None)


@pytest.mark.parametrize("pairs", [True, False])
def test_other_vectors_with_the_same_sum_explain_the_same_transcript(monkeypatch, pairs):
    """x₁ + d and x₂ − d, with PRG(s₁₂) − d in place of PRG(s₁₂): all that the server sees is the same, bit for bit.

    That stream is uniform, and one as likely as the other, to all who do not hold a key of the pair. One of five drops
    out. Without masks of pairs nothing makes up for d.
    """
    if not pairs:
        _no_pairs(monkeypatch)
    vectors = _ring(5)
    first = _run(vectors, gone=(4,))
    shift = _ring(5, seed=1)[0]["trunk"]
    other = vectors | {1: {"trunk": vectors[1]["trunk"] + shift}, 2: {"trunk": vectors[2]["trunk"] - shift}}
    if pairs:
        pair = keys.of_part(party.pair_key(first.keys_of[1], first.roster, 1, 2), "trunk")
        add = masks.add_stream

        def shifted(values, key, sign):
            add(values, key, sign)
            if key == pair:
                (np.subtract if sign > 0 else np.add)(values, masks.unsigned(shift), out=values)

        monkeypatch.setattr(masks, "add_stream", shifted)
    second = _run(other, gone=(4,))
    assert first.roster == second.roster
    assert first.sealed == second.sealed
    assert first.reveals == second.reveals
    assert torch.equal(first.sums.totals["trunk"], second.sums.totals["trunk"])
    same = [torch.equal(first.masked[p]["trunk"], second.masked[p]["trunk"]) for p in range(5)]
    assert same == [True, pairs, pairs, True, True]


def test_masks_are_fresh_in_every_round():
    vectors = _ring(3)
    rounds = [Round(vectors, Terms(), seed) for seed in (0, 1)]
    for made in rounds:
        made.draw = os.urandom  # as outside of tests
        made.keys().share().mask()
    assert not torch.equal(rounds[0].masked[0]["trunk"], rounds[1].masked[0]["trunk"])
    assert torch.equal(rounds[0].unmask().totals["trunk"], rounds[1].unmask().totals["trunk"])


def test_parts_of_one_party_have_masks_of_their_own():
    vectors = {p: {"a": parts["trunk"], "b": parts["trunk"]} for p, parts in _zeros(3).items()}
    made, _ = whole(vectors)
    assert not torch.equal(made.masked[0]["a"], made.masked[0]["b"])
    assert _uniform(made.masked[0]["a"] - made.masked[0]["b"])


def test_the_seed_or_the_key_of_a_party_is_opened_never_both():
    for trial in range(10):
        gone = tuple(random.Random(trial).sample(range(8), 3))
        made, _ = whole(_ring(8, length=3), gone=((), (), gone, ()), seed=trial)
        opened = {owner for reveal in made.reveals.values() for owner in reveal.seeds}
        lost = {owner for reveal in made.reveals.values() for owner in reveal.keys}
        assert lost == set(gone)
        assert opened == set(range(8)) - lost
