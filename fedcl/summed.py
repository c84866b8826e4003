"""The server's side of masked sums, as a way to ask: Jobs of training go out, answers that hold the mean come back.

All survivors' answers hold the same numbers, the mean of each part over its owners, with equal weights: whatever the
server does with them, it does with the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from fedcl import masked
from fedcl.contracts import Answer, Ask, FedclError, Job, Memory, Params, Update
from fedcl.masking import sums
from fedcl.masking.records import Advert, Delivery, Reveal, Sealed, packed, unpacked
from fedcl.masking.roster import Terms
from fedcl.privacy.secagg import SecAgg


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
            own = {name: means[name] for name in like}
            told = {"loss": float(means["loss"]), "secagg/clipped": float(means["clipped"])}
            yield Answer(client, Update(client, own, weights, told, version=talk.versions[client]), "", down, up)

    def _sum(self, asked: Mapping[int, Job], talk: _Talk, timeout: float) -> tuple[Params, float]:
        """(the mean of everything by name, the mean weight)."""
        session, likes = masked.fresh(), {client: self._expected(job) for client, job in asked.items()}
        opening = {
            client: {masked.SESSION: session}
            | {f"length/{name}": torch.tensor(n) for name, n in masked.lengths(like).items()}
            for client, like in likes.items()
        }
        said = self._phase(masked.KEYS, asked, opening, talk, timeout)
        adverts = {client: unpacked(Advert, arrays) for client, arrays in said.items()}
        roster = sums.roster(bytes(session.tolist()), adverts, Terms(self._rule.cohort))
        if refused := roster.refused(adverts):
            part, why = next(iter(refused.items()))
            raise FedclError(f"secagg: part {part!r} {why}; an owner alone would show what it learned")
        said = self._phase(masked.SHARES, asked, dict.fromkeys(adverts, packed(roster)), talk, timeout)
        delivered = sums.deliver(roster, {client: unpacked(Sealed, arrays) for client, arrays in said.items()})
        vectors = self._train(asked, delivered, talk, timeout)
        request = sums.request(roster, tuple(delivered), vectors)
        said = self._phase(masked.UNMASK, asked, dict.fromkeys(vectors, packed(request)), talk, timeout)
        reveals = {client: unpacked(Reveal, arrays) for client, arrays in said.items()}
        found = sums.opened(roster, request, vectors, reveals)
        for client in vectors:
            talk.errors.pop(client, None)  # who did not unmask is in the sum all the same
        numbers, means, weight = self._rule.numbers(len(adverts)), Params(), 0.0
        shapes = {name: like for every in likes.values() for name, like in masked.parts(every).items()}
        for part, total in found.totals.items():
            mean, weight_of = numbers.decode(total, shapes[part])
            means |= mean
            weight = weight_of / len(found.parties[part]) if part == masked.FIGURES else weight
        return means, weight

    def _phase(
        self, name: str, asked: Mapping[int, Job], sealed: Mapping[int, Memory], talk: _Talk, timeout: float
    ) -> dict[int, Params]:
        """One phase beside training: what came, by client."""
        jobs = [
            (client, replace(asked[client], phase="mask", arrays={}, broadcast={}, flags=(name,), sealed=content))
            for client, content in sealed.items()
        ]
        return self._exchange(jobs, talk, timeout)

    def _train(
        self, asked: Mapping[int, Job], delivered: Mapping[int, Delivery], talk: _Talk, timeout: float
    ) -> dict[int, Params]:
        jobs = [(client, replace(asked[client], sealed=packed(text))) for client, text in delivered.items()]
        return self._exchange(jobs, talk, timeout)

    def _exchange(self, jobs: Sequence[tuple[int, Job]], talk: _Talk, timeout: float) -> dict[int, Params]:
        found = {}
        now = [(client, replace(job, version=talk.versions[client])) for client, job in jobs]
        for answer in self._ask(now, timeout):
            talk.down[answer.client] = talk.down.get(answer.client, 0) + answer.bytes_down
            talk.up[answer.client] = talk.up.get(answer.client, 0) + answer.bytes_up
            if answer.update is None:
                talk.errors[answer.client] = answer.error or "no answer"
            else:
                talk.versions[answer.client] = answer.update.version
                found[answer.client] = answer.update.arrays
        return found
