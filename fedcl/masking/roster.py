"""Who takes part in a round, with which keys and parts: what all of them and the server agree on."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from fedcl.errors import FedclError
from fedcl.masking import graph
from fedcl.masking.masks import DTYPES


class Refused(FedclError):
    """A party or the server does not go on with a masked sum; the message says why."""


class Record:
    """What can be written as text, and is checked when it is read: see `records.packed`."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", ser_json_bytes="base64", val_json_bytes="base64"
    )


@dataclass(frozen=True)
class Terms(Record):
    """What every party insists on in a sum; part of the run's config, which a hospital takes from who submits the run.

    Attributes:
        cohort: the fewest parties that may be summed over, as a whole and in each part; ≥ 2. With 2, each learns the
            other's numbers.
        threshold: t, how many shares open a secret: more than half of those who hold one. 0: the least such number.
        bits: R = 2^bits, 32 or 64.
    """

    cohort: int = 3
    threshold: int = 0
    bits: int = 64

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.cohort < 2:
            raise FedclError(f"cohort = {self.cohort}: the sum over one hospital is its own numbers; take 2 or more")
        if self.bits not in DTYPES:
            raise FedclError(f"bits = {self.bits}: masked numbers have {' or '.join(map(str, DTYPES))}")
        if self.threshold < 0:
            raise FedclError(f"threshold = {self.threshold}: it must be a number of hospitals, or 0")


@dataclass(frozen=True)
class Advert(Record):
    """Phase 0, party → server: what a party says of itself.

    Attributes:
        mask_key: X25519 public key, whose agreements give the pairwise masks.
        share_key: X25519 public key, whose agreements encrypt the shares.
        parts: length of each vector that the party owns, by the part's name.
    """

    mask_key: bytes
    share_key: bytes
    parts: dict[str, int]


@dataclass(frozen=True)
class Roster(Record):
    """Phase 1, server → party: all that take part.

    Attributes:
        session: identifies the round and decides the graphs; at least 16 bytes, fresh and random.
        terms: what all agree on.
        adverts: by party, in order.
    """

    session: bytes
    terms: Terms
    adverts: dict[int, Advert]

    @functools.cached_property
    def _graph(self) -> dict[int, frozenset[int]]:
        """Who holds shares of whose secrets."""
        return graph.neighbours(sorted(self.adverts), self.session + b"|shares")

    @functools.cached_property
    def _owners(self) -> dict[str, tuple[int, ...]]:
        """Of each part that enough own: who."""
        return self.summed(self.adverts)

    @property
    def threshold(self) -> int:
        """How many shares open a secret."""
        return self.terms.threshold or graph.majority(graph.degree(len(self.adverts)) + 1)

    def holders(self, party: int) -> tuple[int, ...]:
        """Who holds a share of a party's secrets: its neighbours and itself. It holds one of each of theirs."""
        return tuple(sorted(self._graph[party] | {party}))

    def partners(self, part: str, party: int) -> frozenset[int]:
        """With whom a party shares a mask of a part: its neighbours where all own it, otherwise all other owners.

        A part that only some own has no graph of fewer pairs: colluders may be many among them.
        """
        owners = self._owners[part]
        return self._graph[party] if len(owners) == len(self.adverts) else frozenset(owners) - {party}

    def parts(self, party: int) -> tuple[str, ...]:
        """The parts that a party owns and that enough others own too, in order."""
        return tuple(part for part in sorted(self.adverts[party].parts) if part in self._owners)

    def summed(self, alive: Collection[int]) -> dict[str, tuple[int, ...]]:
        """The parts that can be summed over some parties, with their owners among them: at least a cohort.

        Each part's sum comes with that of its owners' weights. Where these would give away a single party's weight, as
        all less all but one, the smallest parts are left out, until they do not.
        """
        found = {part: who for part, who in self._having(alive).items() if len(who) >= self.terms.cohort}
        while _give_away(found.values()):
            del found[min(found, key=lambda part: (len(found[part]), part))]
        return found

    def refused(self, alive: Collection[int]) -> dict[str, str]:
        """The other parts, and why they are not summed."""
        summed, cohort = self.summed(alive), self.terms.cohort
        names = {part for advert in self.adverts.values() for part in advert.parts}
        left = sorted(names - set(summed))
        counts = {part: sum(part in self.adverts[p].parts for p in alive) for part in left}
        few, less = f"hospitals, and a sum needs {cohort}", "hospitals, and less another sum's gives away one's weight"
        return {part: f"has {count} {few if count < cohort else less}" for part, count in counts.items()}

    def _having(self, alive: Collection[int]) -> dict[str, tuple[int, ...]]:
        """The owners of each part among some parties, of those parts that all agreed to sum."""
        names = {part for party in alive for part in self.adverts[party].parts}
        if len(alive) < len(self.adverts):
            names &= set(self._owners)
        return {part: tuple(p for p in sorted(alive) if part in self.adverts[p].parts) for part in sorted(names)}

    def check(self) -> None:
        """Raise `Refused` where nobody should go on with this."""
        if len(self.session) < 16:
            raise Refused(f"a session of {len(self.session)} bytes: it needs 16 that were never used before")
        self.check_cohort(self.adverts)
        if min(self.adverts) < 0:
            raise Refused(f"party {min(self.adverts)}: parties are numbered from 0")
        most = graph.degree(len(self.adverts)) + 1
        least = graph.majority(most)
        public = [key for advert in self.adverts.values() for key in (advert.mask_key, advert.share_key)]
        if not least <= self.threshold <= most:
            raise Refused(f"a threshold of {self.threshold}: of {most} holders it must be {least} or more")
        if len(set(public)) < len(public):
            raise Refused("two public keys are the same: every key must be fresh")
        for party, advert in self.adverts.items():
            for part, length in advert.parts.items():
                wanted = next(a.parts[part] for a in self.adverts.values() if part in a.parts)
                if length != wanted or length < 1:
                    raise Refused(f"part {part!r} has {length} entries at hospital {party}, {wanted} at others")

    def check_cohort(self, alive: Collection[int]) -> None:
        """Raise `Refused` where too few are left for any sum."""
        if len(alive) < self.terms.cohort:
            raise Refused(f"{len(alive)} hospitals are too few: a masked sum is over {self.terms.cohort} or more")
        if not self.summed(alive):
            raise Refused(f"nothing to sum over hospitals {sorted(alive)}: {self.refused(alive)}")


def _give_away(sums: Collection[tuple[int, ...]]) -> bool:
    """Whether a single party's number follows from the sums over these: whether its unit vector is in their span."""
    parties = sorted({party for owners in sums for party in owners})
    patterns = Counter(tuple(party in owners for owners in sums) for party in parties)
    kinds = np.array(list(patterns), float).T  # [sums, kinds of parties]: who is in the same sums is never told apart
    rank = np.linalg.matrix_rank(kinds) if kinds.size else 0
    alone = [np.eye(len(patterns))[place] for place, count in enumerate(patterns.values()) if count == 1]
    return any(np.linalg.matrix_rank(np.vstack([kinds, one])) == rank for one in alone)
