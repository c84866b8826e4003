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
from fedcl.contracts import Answer, Ask, FedclError, Job, Memory, Params, Update, role
from fedcl.evaluate import SUM
from fedcl.masking import sums
from fedcl.masking.records import Advert, Reveal, Sealed, packed, unpacked
from fedcl.masking.roster import Record, Terms
from fedcl.masking.sums import Sums
from fedcl.privacy.secagg import ANSWERS, FIGURES, SecAgg

R = TypeVar("R")
M = TypeVar("M", bound=Record)


@dataclass(frozen=True)
class _Mean:
    """What sums come to: the mean of everything by name; by part, the sum of the weights and how many are in it."""

    arrays: Params
    weights: Mapping[str, float]
    parties: Mapping[str, int]
    error: float  # of an entry of an update's mean, at most, since entries are whole numbers of steps
    refused: Mapping[str, str]  # parts that were not summed, and why


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
        """Answers by client; of Jobs that are not summed, as they come.

        Raises:
            Refused: too few hospitals are left for a sum.
        """
        if not jobs or not self._rule.sums(jobs[0][1].phase):
            yield from self._ask(jobs, timeout)
            return
        asked = dict(jobs)
        talk = _Talk({client: job.version for client, job in jobs})
        mean = self._sum(asked, talk, timeout)
        for client, job in jobs:
            down, up = talk.down.get(client, 0), talk.up.get(client, 0)
            if client in talk.errors:
                yield Answer(client, None, talk.errors[client], down, up)
                continue
            like = self._expected(job)
            if closed := [name for name in like if name not in mean.arrays]:
                part = role(closed[0]) or "trunk"
                why = mean.refused.get(part, "was not summed")
                yield Answer(client, None, f"part {part!r}, with {closed[0]}, {why}", down, up)
                continue
            update = _counts(client, like, mean) if job.phase == "evaluate" else _deltas(client, like, mean)
            yield Answer(client, replace(update, version=talk.versions[client]), "", down, up)

    def _sum(self, asked: Mapping[int, Job], talk: _Talk, timeout: float) -> _Mean:
        (phased,) = {job.phase for job in asked.values()}
        session, likes = masked.fresh(), {client: self._expected(job) for client, job in asked.items()}
        opening = {client: masked.opening(session, like, phased) for client, like in likes.items()}

        def phase(
            name: str, kind: type[M], content: Mapping[int, Memory], check: Callable[[int, M], None]
        ) -> dict[int, M]:
            jobs = {
                client: replace(
                    asked[client], phase="mask", arrays={}, broadcast={}, flags=(name, phased), sealed=sealed
                )
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
        found, shapes = sums.opened(roster, request, hidden, reveals), Params()
        for like in likes.values():
            shapes |= like
        return self._read(found, masked.parts(shapes, phased), len(adverts))

    def _read(self, found: Sums, shapes: Mapping[str, Params], parties: int) -> _Mean:
        """What the sums say."""
        arrays, weights, errors = Params(), {}, [0.0]
        there = {part: len(those) for part, those in found.parties.items()}
        for part, total in found.totals.items():
            written = self._rule.written(part, parties)
            mean, weights[part] = written.decode(total, shapes[part])
            arrays |= mean
            if part not in (FIGURES, ANSWERS) and weights[part]:
                errors.append(written.bound(there[part], weights[part]))
        return _Mean(arrays, weights, there, max(errors), found.refused)

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


def _deltas(client: int, like: Params, mean: _Mean) -> Update:
    """An update in a hospital's name: the mean of all, and their mean weight."""
    told = {
        "loss": float(mean.arrays["loss"]),
        "secagg/clipped": float(mean.arrays["clipped"]),
        "secagg/error": mean.error,
    }
    weight = mean.weights[FIGURES] / mean.parties[FIGURES]
    return Update(client, {name: mean.arrays[name] for name in like} if weight else {}, weight, told)


def _counts(client: int, like: Params, mean: _Mean) -> Update:
    """Right answers on test samples, of all hospitals together; tasks that none has samples of are left out."""
    sums = {name: (mean.arrays[name] * mean.weights[ANSWERS]).round().long() for name in like}
    tasks = [name.rpartition(".")[0] for name, value in sums.items() if name.endswith(".answers") and bool(value.any())]
    return Update(
        client, {f"{SUM}.{name}": value for name, value in sums.items() if name.rpartition(".")[0] in tasks}, 0, {}
    )
