"""The server's side of masked sums, as a way to ask: Jobs of training go out, answers that hold the mean come back.

All survivors' answers hold the same numbers, the mean of each part over its owners, with equal weights: whatever the
server does with them, it does with the sum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fedcl import masked
from fedcl.contracts import Answer, Ask, FedclError, Job, Memory, Params, Update
from fedcl.masking import sums
from fedcl.masking.records import Advert, Reveal, Sealed, packed, unpacked
from fedcl.masking.roster import Record, Terms
from fedcl.masking.sums import Sums
from fedcl.privacy.secagg import SecAgg

R = TypeVar("R")
M = TypeVar("M", bound=Record)


@dataclass
class _Talk:
    """What has passed between the server and its hospitals in one round."""

    versions: dict[int, str]
    down: dict[int, int] = field(default_factory=dict)
    up: dict[int, int] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)


class Summed:
    """Asks for masked sums instead of updates.

    Args:
        ask: the clients.
        rule: the mechanism.
        expected: of a Job, the tensors whose deltas come back.
    """

    def __init__(self, ask: Ask, rule: SecAgg, expected: Callable[[Job], Params]) -> None:
        self._ask, self._rule, self._expected = ask, rule, expected

    def __call__(self, jobs: Sequence[tuple[int, Job]], timeout: float) -> Iterator[Answer]:
        """Answers by client; of Jobs other than training, as they come.

        Raises:
            Refused: too few hospitals are left for a sum.
        """
        if not jobs or jobs[0][1].phase != "train":
            yield from self._ask(jobs, timeout)
            return
        asked = dict(jobs)
        talk = _Talk({client: job.version for client, job in jobs})
        means, weights = self._sum(asked, talk, timeout)
        for client, job in jobs:
            down, up = talk.down.get(client, 0), talk.up.get(client, 0)
            if client in talk.errors:
                yield Answer(client, None, talk.errors[client], down, up)
                continue
            like = self._expected(job)
            if closed := [name for name in like if name not in means]:
                yield Answer(client, None, f"too few hospitals were left to sum {closed[0]} over", down, up)
                continue
            own = {name: means[name] for name in like}
            told = {"loss": float(means["loss"]), "secagg/clipped": float(means["clipped"])}
            yield Answer(client, Update(client, own, weights, told, version=talk.versions[client]), "", down, up)

    def _sum(self, asked: Mapping[int, Job], talk: _Talk, timeout: float) -> tuple[Params, float]:
        """(the mean of everything by name, the mean weight)."""
        session, likes = masked.fresh(), {client: self._expected(job) for client, job in asked.items()}
        opening = {client: masked.opening(session, like) for client, like in likes.items()}

        def phase(
            name: str, kind: type[M], content: Mapping[int, Memory], check: Callable[[int, M], None]
        ) -> dict[int, M]:
            jobs = {
                client: replace(asked[client], phase="mask", arrays={}, broadcast={}, flags=(name,), sealed=sealed)
                for client, sealed in content.items()
            }

            def read(client: int, arrays: Params) -> M:
                said = unpacked(kind, arrays)
                check(client, said)
                return said

            return self._exchange(jobs, talk, timeout, read)

        adverts = phase(masked.KEYS, Advert, opening, sums.check_advert)
        roster = sums.roster(bytes(session.tolist()), adverts, Terms(self._rule.cohort))
        if refused := roster.refused(adverts):
            part, why = next(iter(refused.items()))
            raise FedclError(f"secagg: part {part!r} {why}; an owner alone would show what it learned")
        whole = dict.fromkeys(adverts, packed(roster))
        sealed = phase(masked.SHARES, Sealed, whole, functools.partial(sums.check_sealed, roster))
        shared = sums.deliver(roster, sealed)

        def vectors(client: int, arrays: Params) -> Params:
            sums.check_masked(roster, tuple(shared), client, arrays)
            return arrays

        trained = {client: replace(asked[client], sealed=packed(text)) for client, text in shared.items()}
        hidden = self._exchange(trained, talk, timeout, vectors)
        request = sums.request(roster, tuple(shared), hidden)
        whole = dict.fromkeys(hidden, packed(request))
        reveals = phase(masked.UNMASK, Reveal, whole, functools.partial(sums.check_reveal, roster, request))
        for client in hidden:
            talk.errors.pop(client, None)  # who did not unmask is in the sum all the same
        return self._read(sums.opened(roster, request, hidden, reveals), likes, len(adverts))

    def _read(self, found: Sums, likes: Mapping[int, Params], parties: int) -> tuple[Params, float]:
        """What the sums say."""
        means, weight = Params(), 0.0
        shapes = {name: like for every in likes.values() for name, like in masked.parts(every).items()}
        for part, total in found.totals.items():
            figures = part == masked.FIGURES
            numbers = self._rule.figures(parties) if figures else self._rule.numbers(parties)
            mean, weights = numbers.decode(total, shapes[part])
            means |= mean
            weight = weights / len(found.parties[part]) if figures else weight
        return means, weight

    def _exchange(
        self, jobs: Mapping[int, Job], talk: _Talk, timeout: float, read: Callable[[int, Params], R]
    ) -> dict[int, R]:
        """One phase: what came, by client. Who is silent, or says what does not fit, has dropped out."""
        found = {}
        now = [(client, replace(job, version=talk.versions[client])) for client, job in jobs.items()]
        for answer in self._ask(now, timeout):
            talk.down[answer.client] = talk.down.get(answer.client, 0) + answer.bytes_down
            talk.up[answer.client] = talk.up.get(answer.client, 0) + answer.bytes_up
            if answer.update is None:
                talk.errors[answer.client] = answer.error or "no answer"
                continue
            talk.versions[answer.client] = answer.update.version
            try:
                found[answer.client] = read(answer.client, answer.update.arrays)
            except FedclError as error:
                talk.errors[answer.client] = str(error)
        return found
