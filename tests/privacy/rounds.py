"""A whole round of masked sums in one process; every message and state goes through its tensors."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from fedcl.masking import party, records, sums
from fedcl.masking.records import Terms

SESSION = bytes(range(32))


def through(record):
    """What comes out at the other end."""
    return records.unpacked(type(record), records.packed(record))


@dataclass
class Round:
    """All that was said in a round, for tests to look at."""

    vectors: dict  # by party: by part
    terms: Terms
    seed: int = 0
    states: dict = field(default_factory=dict)
    sealed: dict = field(default_factory=dict)
    masked: dict = field(default_factory=dict)
    reveals: dict = field(default_factory=dict)

    def __post_init__(self):
        self.draw = random.Random(self.seed).randbytes

    def keys(self, gone=()):
        """Phase 0."""
        adverts = {}
        for p, parts in self.vectors.items():
            lengths = {name: len(vector) for name, vector in parts.items()}
            state, advert = party.advertise(SESSION, p, lengths, self.terms, self.draw)
            self.states[p], adverts[p] = through(state), through(advert)
        self.roster = through(sums.roster(SESSION, _without(adverts, gone), self.terms))
        return self

    def share(self, gone=()):
        """Phase 1."""
        for p in self.roster.adverts:
            state, sealed = party.share(self.states[p], self.roster, self.draw)
            self.states[p], self.sealed[p] = through(state), through(sealed)
        self.deliveries = sums.deliver(self.roster, _without(self.sealed, gone))
        return self

    def mask(self, gone=()):
        """Phase 2."""
        for p, delivery in self.deliveries.items():
            state, masked = party.mask(self.states[p], through(delivery), self.vectors[p])
            self.states[p], self.masked[p] = through(state), masked
        self.request = sums.request(self.roster, self.deliveries, _without(self.masked, gone))
        return self

    def unmask(self, gone=()):
        """Phase 3."""
        for p in self.request.survivors:
            self.reveals[p] = through(party.unmask(self.states[p], through(self.request)))
        kept = {p: self.masked[p] for p in self.request.survivors}
        return sums.opened(self.roster, self.request, kept, _without(self.reveals, gone))


def whole(vectors, terms=None, gone=((), (), (), ()), seed=0):
    """All four phases: who drops out in each of them."""
    made = Round(vectors, terms or Terms(), seed).keys(gone[0]).share(gone[1]).mask(gone[2])
    return made, made.unmask(gone[3])


def _without(answers, gone):
    return {p: answer for p, answer in answers.items() if p not in gone}
