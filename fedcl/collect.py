"""Answers to Jobs, checked one by one: what cannot be used is noted, and the round goes on without it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from fedcl import compression, growing
from fedcl.contracts import Answer, Ask, Compression, FedclError, Job, Params, Update
from fedcl.merge import check

Expected = Callable[[Job], Params]  # the parameters whose deltas must come back


class Collection:
    """The answers of one phase, and what there is to record of them.

    Args:
        jobs: by client.
        expected: of a Job, what must come back.
        on_fault: told (client, what, why) of every answer that cannot be used.
        unfit: of a client, its Job and its update, why what came beside deltas cannot be used, or "".
        compressed: how the deltas of training travel; None is as they are.
        note: told of every answer that can be used.
    """

    def __init__(
        self,
        jobs: Sequence[tuple[int, Job]],
        expected: Expected,
        on_fault: Callable[[int, str, str], None],
        unfit: Callable[[int, Job, Update], str] = lambda client, job, update: "",
        compressed: Compression | None = None,
        note: Callable[[Job, Update], None] = lambda job, update: None,
    ) -> None:
        self.jobs = jobs
        self.records: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.bytes_down = self.bytes_up = self.answered = 0
        self.bytes_up_raw = 0  # what bytes_up would be if nothing were compressed
        self.compressed = compressed
        self._expected, self._on_fault, self._unfit, self._tell = expected, on_fault, unfit, note

    def updates(self, ask: Ask, timeout: float) -> Iterator[Update]:
        """Send the Jobs; yield the updates that can be used, by client index."""
        asked = dict(self.jobs)
        for answer in ask(self.jobs, timeout):
            self.bytes_down += answer.bytes_down
            self.bytes_up += answer.bytes_up
            self.bytes_up_raw += answer.bytes_up
            try:
                update = self._accepted(answer, asked[answer.client])
            except FedclError as error:
                self._note(answer, str(error))
            else:
                self.answered += 1
                self._tell(asked[answer.client], update)
                yield update

    def _accepted(self, answer: Answer, job: Job) -> Update:
        """The update, with its deltas as they were before they travelled; FedclError where it cannot be used."""
        update = answer.update
        if update is None:
            raise FedclError(answer.error or "no answer")
        if error := _misfit(update):
            raise FedclError(error)
        if job.phase != "evaluate":
            like = self._expected(job) if update.weight > 0 else {}
            if self.compressed and job.phase == "train":
                sent = update.arrays
                update = replace(update, arrays=compression.restore(self.compressed, sent, like))
                self.bytes_up_raw += compression.size(update.arrays) - compression.size(sent)
            if error := check(update.arrays, like):
                raise FedclError(error)
        if error := self._unfit(answer.client, job, update):
            raise FedclError(error)
        return update

    def _note(self, answer: Answer, error: str) -> None:
        what = "missing" if answer.update is None else "rejected"
        self.errors.append(f"client {answer.client}: {error}")
        self.records.append({"phase": "fault", "client": answer.client, "name": what, "value": 1, "note": error})
        self._on_fault(answer.client, what, error)


def _misfit(update: Update) -> str:
    """Why the numbers beside its arrays cannot be used; "" if they can."""
    if not (math.isfinite(update.weight) and update.weight >= 0):
        return f"its weight is {update.weight}"
    if bad := [name for name, value in update.metrics.items() if not math.isfinite(value)]:
        return f"its {bad[0]} is {update.metrics[bad[0]]}"
    return growing.misfit(update.metrics)


def require(collections: Sequence[Collection], quorum: float, where: str) -> None:
    """Raise FedclError where fewer than this share of all asked clients gave a valid answer."""
    asked, valid = sum(len(c.jobs) for c in collections), sum(c.answered for c in collections)
    needed = max(math.ceil(quorum * asked), 1)
    if asked and valid < needed:
        errors = [error for collection in collections for error in collection.errors]
        raise FedclError(
            f"{where}: {valid} of {asked} clients gave a valid answer, {needed} are needed "
            f"(federation.quorum); {'; '.join(errors[:5])}"
        )
