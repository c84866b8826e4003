"""Who shares masks and secrets with whom: everybody with everybody, or a regular graph of few neighbours.

Up to `COMPLETE` parties the graph is complete (Bonawitz et al. 2017). Above, it is a Harary graph on a random order, as
in Bell et al. 2020: each party has the k/2 before and the k/2 after it on a ring. k is the least even number for which,
with n/4 parties colluding and n/4 others dropping out, chosen without knowledge of the order, each of these has a
probability ≤ 2⁻⁴⁰, by the union bound over parties. With t = ⌊(k + 1)/2⌋ + 1 and hypergeometric counts:

- some party's neighbours include t colluders;
- more than k − t of some party's neighbours drop out, so that what they hold for it is lost;
- colluders and dropouts cut the graph of the others in two: on a ring they must hold k/2 places in a row, twice.

A Harary graph is k-connected, so that up to a hundred parties the last is impossible rather than unlikely. k is 22 for
40 parties, where nothing is left to chance, 52 for 100, 178 for 1,000.

References:
    Bonawitz et al. Practical Secure Aggregation for Privacy-Preserving Machine Learning. CCS 2017.
    Bell, Bonawitz, Gascón, Lepoint, Raykova. Secure Single-Server Aggregation with (Poly)Logarithmic Overhead.
        CCS 2020.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Collection

COMPLETE = 16  # up to here a complete graph costs nothing that matters
_FAILURE = 2.0**-40


def neighbours(members: Collection[int], seed: bytes) -> dict[int, frozenset[int]]:
    """The neighbours of each member, without itself; the relation is symmetric.

    Args:
        members: different numbers.
        seed: decides the order on the ring; fresh random bytes in each round.
    """
    k = degree(len(members))
    if k == len(members) - 1:
        return {member: frozenset(members) - {member} for member in members}
    ring = sorted(members, key=lambda member: hashlib.sha256(seed + b"|%d" % member).digest())
    steps = [step for step in range(-k // 2, k // 2 + 1) if step]
    return {member: frozenset(ring[(at + s) % len(ring)] for s in steps) for at, member in enumerate(ring)}


def majority(holders: int) -> int:
    """The usual threshold t: more than half of those who hold a share."""
    return holders // 2 + 1


@functools.cache
def degree(n: int) -> int:
    """K, the neighbours of each of n parties."""
    if n <= COMPLETE:
        return max(n - 1, 0)
    bad = n // 4  # colluders, and as many dropouts
    for k in range(COMPLETE // 2, n - 1, 2):
        t = majority(k + 1)
        colluding, lost = _tail(n - 1, bad, k, t), _tail(n - 1, bad, k, k - t + 1)
        if n * max(colluding, lost, _cut(n - 1, 2 * bad, k)) <= _FAILURE:
            return k
    return n - 1


def _tail(population: int, marked: int, drawn: int, least: int) -> float:
    """P[X ≥ least] of a hypergeometric X: how many of those drawn are marked."""
    ways = sum(
        math.comb(marked, x) * math.comb(population - marked, drawn - x) for x in range(least, min(marked, drawn) + 1)
    )
    return ways / math.comb(population, drawn)


def _cut(others: int, bad: int, k: int) -> float:
    """At least P[the k/2 places after a party are all bad], and 0 where bad parties are too few for two such gaps."""
    if bad < k:
        return 0.0
    return math.comb(bad, k // 2) / math.comb(others, k // 2)
