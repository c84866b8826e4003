"""Shamir shares, keys that pairs agree on, streams, and the graph of neighbours."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from fedcl.masking import graph, keys, masks, shares

SECRET = bytes(range(32))


def _draw(seed=0):
    return random.Random(seed).randbytes


def test_any_t_shares_give_the_secret():
    made = shares.split(SECRET, 3, [0, 2, 5, 7, 11], _draw())
    assert list(made) == [0, 2, 5, 7, 11]
    for size in (3, 4, 5):
        for some in itertools.combinations(made, size):
            assert shares.combine({holder: made[holder] for holder in some}, 3) == SECRET


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, SECRET])
def test_every_secret_can_be_shared(secret):
    assert shares.combine(shares.split(secret, 2, [0, 1], _draw()), 2) == secret


def test_a_share_by_hand():
    # f(x) = 1 + 2 x: both coefficients are given, and holder h has f(h + 1)
    made = shares.split((1).to_bytes(32, "little"), 2, [0, 1, 9], lambda n: (2).to_bytes(n, "little"))
    assert [int.from_bytes(share[2:], "little") for share in made.values()] == [3, 5, 21]


def test_fewer_than_t_shares_fit_every_secret():
    """For t − 1 shares and any other secret there is one polynomial: they say nothing of which it was."""
    made = shares.split(SECRET, 3, [0, 1, 2, 3], _draw())
    kept = {holder: int.from_bytes(made[holder][2:], "little") for holder in (0, 1)}
    for other in (bytes(32), b"\x07" * 32):
        points = {0: int.from_bytes(other, "little"), **{h + 1: value for h, value in kept.items()}}
        at = shares._interpolated(points, (0, 1, 2), 4)
        forged = {h: made[h] for h in (0, 1)} | {3: made[3][:2] + at.to_bytes(33, "little")}
        assert shares.combine(forged, 3) == other


def test_shares_that_do_not_fit_are_refused():
    made = shares.split(SECRET, 3, range(5), _draw())
    other = shares.split(SECRET, 3, range(5), _draw(1))
    with pytest.raises(ValueError, match="too few"):
        shares.combine({h: made[h] for h in (0, 1)}, 3)
    with pytest.raises(ValueError, match="of threshold 3, not 2"):
        shares.combine(made, 2)
    with pytest.raises(ValueError, match="do not belong"):
        shares.combine(made | {4: other[4]}, 3)
    with pytest.raises(ValueError, match="35 bytes"):
        shares.combine(made | {4: made[4][:-1]}, 3)
    with pytest.raises(ValueError, match="no element"):
        shares.combine(made | {4: made[4][:2] + b"\xff" * 33}, 3)


@pytest.mark.parametrize(
    ("secret", "threshold", "holders", "said"),
    [
        (SECRET[:31], 2, [0, 1], "31 bytes"),
        (SECRET, 2, [0, 1, 1], "different"),
        (SECRET, 2, [-1, 1], "from 0"),
        (SECRET, 3, [0, 1], "threshold of 3"),
        (SECRET, 1, [0, 1], "threshold of 1"),
        (SECRET, 2, [], "from 0"),
    ],
)
def test_what_cannot_be_shared_is_refused(secret, threshold, holders, said):
    with pytest.raises(ValueError, match=said):
        shares.split(secret, threshold, holders)


def test_the_field_is_one():
    """Fermat: a^(p − 1) = 1 for every base, which no composite of this size passes for all of these."""
    assert all(pow(base, shares.PRIME - 1, shares.PRIME) == 1 for base in (2, 3, 5, 7, 11, 13, 17, 19, 23))
    assert shares.PRIME > 2**256


def test_agreed_keys_are_the_same_from_both_sides_and_bound_to_their_use():
    one, two = keys.private(_draw(1)), keys.private(_draw(2))
    made = keys.agreed(one, keys.public(two), b"session", "mask", (0, 1))
    assert made == keys.agreed(two, keys.public(one), b"session", "mask", (0, 1))
    others = [
        keys.agreed(one, keys.public(two), b"other", "mask", (0, 1)),
        keys.agreed(one, keys.public(two), b"session", "share", (0, 1)),
        keys.agreed(one, keys.public(two), b"session", "mask", (1, 0)),
        keys.of_part(made, "a"),
        keys.of_part(made, "b"),
    ]
    assert len({made, *others}) == 6
    with pytest.raises(ValueError, match="shared key"):
        keys.agreed(one, bytes(32), b"session", "mask", (0, 1))


def test_x25519_gives_the_keys_of_its_standard():
    """RFC 7748, section 6.1."""
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert keys.public(bob).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"


def test_sealed_texts_open_only_as_they_were_sealed():
    key, sealed = bytes(32), keys.seal(bytes(32), b"text", b"bound", _draw())
    assert keys.unseal(key, sealed, b"bound") == b"text"
    assert len(sealed) == len(b"text") + keys.SEAL
    assert sealed != keys.seal(key, b"text", b"bound", _draw(1))
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for wrong in ((bytes(31) + b"\1", sealed, b"bound"), (key, changed, b"bound"), (key, sealed, b"other")):
        with pytest.raises(ValueError, match="does not open"):
            keys.unseal(*wrong)
    with pytest.raises(ValueError, match="at least"):
        keys.unseal(key, b"short", b"bound")


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("length", [1, 1000, 100_001])
def test_streams_are_those_of_chacha20_and_cancel(bits, length):
    dtype = masks.DTYPES[bits]
    start = torch.arange(length, dtype=dtype) - 5
    values = masks.unsigned(start)
    masks.add_stream(values, SECRET, 1)
    assert not torch.equal(masks.signed(values), start)
    masks.add_stream(values, SECRET, -1)
    assert torch.equal(masks.signed(values), start)


def test_the_stream_of_the_standard():
    """RFC 8439, appendix A.1, test vectors 1 and 2: blocks 0 and 1 of a key and a nonce of zeros."""
    stream = masks.unsigned(torch.zeros(16, dtype=torch.int64))
    masks.add_stream(stream, bytes(32), 1)
    assert stream.tobytes()[:16].hex() == "76b8e0ada0f13d90405d6ae55386bd28"
    assert stream.tobytes()[64:80].hex() == "9f07e7be5551387a98ba977c732d080d"


def test_streams_do_not_depend_on_pieces():
    long, short = (np.zeros(n, np.uint64) for n in (200_000, 50_000))
    masks.add_stream(long, SECRET, 1)
    masks.add_stream(short, SECRET, 1)
    assert (long[:50_000] == short).all()
    assert len(np.unique(long)) == len(long)


@pytest.mark.parametrize("n", [1, 2, 5, 16, 17, 40, 101, 1000])
def test_graphs_are_symmetric_and_regular(n):
    found = graph.neighbours(range(10, 10 + n), b"seed")
    assert {len(others) for others in found.values()} == {graph.degree(n)}
    assert all(me in found[other] and other != me for me, others in found.items() for other in others)
    if n <= graph.COMPLETE:
        assert graph.degree(n) == n - 1
    else:
        assert found != graph.neighbours(range(10, 10 + n), b"other")


def test_the_order_of_members_does_not_matter():
    assert graph.neighbours(range(40), b"s") == graph.neighbours(list(reversed(range(40))), b"s")


def test_forty_parties_stay_connected_whoever_colludes_or_drops_out():
    """22 neighbours, t = 12: fewer than 22 bad parties cannot cut the graph, nor 10 hold 12 shares or take 11 away."""
    k, t = graph.degree(40), graph.majority(graph.degree(40) + 1)
    assert (k, t) == (22, 12)
    bad = 40 // 4
    assert 2 * bad < k
    assert bad < t
    assert bad <= k - t
    found = graph.neighbours(range(40), b"seed")
    draws = random.Random(0)
    for _ in range(200):
        good = set(draws.sample(range(40), 40 - 2 * bad))
        reached, frontier = set(), {min(good)}
        while frontier:
            reached |= frontier
            frontier = {other for me in frontier for other in found[me]} & good - reached
        assert reached == good


def test_chances_of_failure_by_hand():
    # 5 of 10 marked, 3 drawn: P[X ≥ 2] = (C(5,2) C(5,1) + C(5,3)) / C(10,3) = 60 / 120
    assert graph._tail(10, 5, 3, 2) == 0.5
    assert graph._tail(10, 1, 3, 2) == 0.0
    assert graph._cut(9, 5, 4) == math.comb(5, 2) / math.comb(9, 2)
    assert graph._cut(9, 3, 4) == 0.0
    drawn = Counter(sum(x < 5 for x in random.Random(i).sample(range(10), 3)) >= 2 for i in range(4000))
    assert drawn[True] / 4000 == pytest.approx(0.5, abs=0.03)
