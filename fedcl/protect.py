"""The server's half of privacy: what is booked before a Job is sent, what is noted of each answer, and the budget."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fedcl import features, privacy, tasks
from fedcl.accounting.ledger import Ledger
from fedcl.accounting.release import Release
from fedcl.accounting.statement import Statement, Terms
from fedcl.audit import Audit
from fedcl.config import Config
from fedcl.contracts import Ask, FedclError, Job, Params, Update
from fedcl.federation import Federation
from fedcl.masking.roster import Advert, Roster
from fedcl.masking.roster import Terms as RosterTerms
from fedcl.mechanism import Asked
from fedcl.plan import Plan
from fedcl.privacy import Guard
from fedcl.results import PRIVACY
from fedcl.run_dir import RunDir
from fedcl.state import Group, State
from fedcl.summed import Summed

LEDGER = "ledger.json"  # in the run directory, with privacy.secure_rng


class Protection:
    """What a run's hospitals let out, and what of that a mechanism covers.

    Args:
        config: the experiment.
        federation: for how many samples there are.
        plan: for who is asked for what.
        guard: the mechanisms, settled.
        run: where the ledger is written before each round, if a round that is done again is another release.
    """

    def __init__(
        self, config: Config, federation: Federation, plan: Plan, guard: Guard, run: RunDir | None = None
    ) -> None:
        self.guard = guard
        self._config, self._federation, self._plan = config, federation, plan
        self._index = {task.id: task.index for task in federation.tasks}
        self._sets = tasks.sets(federation.tasks)
        self._ledger = ledger(config, federation, guard)
        self._audit = Audit()
        if config.data.own:
            self._audit.surveyed(range(len(federation.members)))
        self._state: dict[str, float] = {}  # of the mechanisms
        self._kept = run if config.privacy.secure_rng and self._ledger else None

    def load(self, kept: dict[str, Any]) -> None:
        """Take up what a checkpoint says."""
        if kept:
            self._ledger = Ledger.unpack(kept["ledger"]) if kept["ledger"] else None
            self._audit, self._state = Audit(kept["audit"]), kept["state"]
        if self._kept and (file := self._kept.path / LEDGER).exists():
            self._ledger = Ledger.unpack(file.read_text(encoding="utf-8"))
        begun = ledger(self._config, self._federation, self.guard)
        if kept and (begun and begun.terms) != (self._ledger and self._ledger.terms):
            raise FedclError("the run began with a budget in other terms, by another version of fedcl; take --fresh")

    def pack(self) -> dict[str, Any]:
        """For a checkpoint."""
        packed = self._ledger.pack() if self._ledger else ""
        return {"ledger": packed, "audit": self._audit.notes, "state": self._state}

    def send(self, jobs: Sequence[tuple[int, Job]]) -> list[tuple[int, Job]]:
        """Book what the answers will let out, and tell clients the terms.

        All who are asked pay, also those whose answer gets lost: it may have been seen.

        Raises:
            FedclError: the budget does not allow it; nothing was sent.
        """
        booked = [release for client, job in jobs for release in self.guard.releases(self.asked(client, job))]
        if self._ledger and booked:
            limit = self._config.privacy.max_epsilon
            if limit and (after := self._ledger.projected(booked)).spent.pld > limit:
                stage, number = jobs[0][1].stage + 1, jobs[0][1].round % self._config.train.rounds + 1
                raise FedclError(
                    f"privacy.max_epsilon = {limit:g}: stage {stage}, round {number} was not sent; with it {after}"
                )
            self._ledger.add(booked)
            if self._kept:
                self._kept.write(LEDGER, self._ledger.pack())
        terms = self.guard.terms(self._state)
        return [(client, replace(job, terms=terms)) for client, job in jobs] if terms else list(jobs)

    def way(self, ask: Ask, expected: Callable[[Job], Params]) -> Ask:
        """How clients are asked: by masked sums, where a mechanism says so."""
        return Summed(ask, self.guard.sums, expected) if self.guard.sums else ask

    def note(self, job: Job, update: Update) -> None:
        """What an answer brought."""
        scaling = self._federation.scaling
        alone = (
            self.guard.unit == "hospital" and scaling.get("how") != "train"
        )  # what a hospital measures stays its own
        open_ = self._audit.note(job, update, self.guard, [] if alone else features.measured(scaling))
        if self._ledger:
            asked = self.asked(update.client, job)
            records = asked.records(*asked.tasks, *asked.kept)
            task = next(iter(asked.tasks), "")
            self._ledger.add(Release(what, asked.client, task, asked.stage, asked.round, records) for what in open_)

    def blur(self, group: Group, number: int) -> Callable[[Params], Params]:
        """What puts noise on a round's sums of deltas."""
        return lambda sums: self.guard.blur(sums, self._state, group.clients[0], number)

    def learn(self, group: Group, reports: Sequence[Mapping[str, float]], number: int) -> None:
        """After a round, from the metrics of the answers."""
        self._state = self.guard.learn(self._state, reports, group.clients[0], number)

    def planned(self) -> Statement | None:
        """What the whole run will have let out at its end, where every client that is asked answers."""
        if self._ledger is None:
            return None
        return self._ledger.projected([one for asked in self.whole() for one in self.guard.releases(asked)])

    def whole(self) -> list[Asked]:
        """What the Jobs of the whole run reach, where every client that is asked answers."""
        plan, schedule, rounds = self._plan, self._federation.schedule, self._config.train.rounds
        state = State([Group(clients) for clients in self._federation.groups])
        found: list[Asked] = []
        for stage, now in enumerate(schedule):
            for group in state.groups:
                jobs = [each for number in range(rounds) for each in plan.training(state, group, stage, number)]
                if plan.consolidates:
                    present = [client for client in group.clients if now[client]]
                    jobs += plan.consolidation(state, group, stage, rounds - 1, present)
                found += [self.asked(client, job) for client, job in jobs]
        return found

    def asked(self, client: int, job: Job) -> Asked:
        """What a Job reaches at a client."""
        hospitals = self._federation.members[client]
        counts = {
            task: sum(self._federation.count(hospital, self._index[task], "train") for hospital in hospitals)
            for task in job.tasks
        }
        reads = frozenset(part.records for part in self._plan.method.parts.values())
        kept: list[str] = []
        if "kept" in reads:
            past = [task for stage in range(job.stage) for task in self._plan.tasks(stage, [client])]
            kept = sorted({task.id for task in past} - set(job.tasks))
        consolidates = job.phase == "consolidate" or "consolidate" in job.flags
        return Asked(client, job.phase, job.stage, job.round, consolidates, counts, tuple(kept), reads, self._sets)

    def write(self, run: RunDir) -> None:
        """What the report and other tools read: statements, the ledger, the audit."""
        told: dict[str, Any] = {"mechanisms": sorted(self.guard.parts), "audit": self._audit.table(self.guard)}
        if self._ledger:
            hospitals = range(len(self._federation.members))
            told |= {
                "overall": _told(self._ledger.overall()),
                "tasks": {task: _told(self._ledger.task(task)) for task in self._index},
                "hospitals": [_told(self._ledger.hospital(hospital)) for hospital in hospitals],
                "stages": [
                    _told(self._ledger.until(stage).overall()) for stage in range(len(self._federation.schedule))
                ],
                "ledger": json.loads(self._ledger.pack()),
            }
        run.write(PRIVACY, json.dumps(told))


def ledger(config: Config, federation: Federation, guard: Guard) -> Ledger | None:
    """An empty ledger in the terms of the mechanisms; None where none of them claims an ε.

    Raises:
        FedclError: privacy.delta is too large.
    """
    claims = [(part.unit, part.neighbours()) for part in guard.parts.values() if part.unit]
    if not claims:
        return None
    unit, relation = claims[0]
    units = len(federation.members) if unit == "hospital" else federation.records()
    try:
        return Ledger(Terms(unit, relation, config.privacy.delta, units))
    except ValueError as error:
        raise FedclError(f"privacy.delta: {error}") from error


def build(config: Config, federation: Federation, plan: Plan, net: nn.Module, run: RunDir | None = None) -> Protection:
    """The server's half for a run, with the noise that options leave open chosen for the whole run.

    Raises:
        FedclError: a mechanism cannot work with the config, the method, or the net; no noise is enough; or the run as
            planned would cost more than privacy.max_epsilon.
    """
    guard = privacy.build(config, plan.method)
    guard.fits(net, min(plan.fewest().values()))
    _summable(plan, guard)
    empty = Protection(config, federation, plan, guard)
    whole = empty.whole() if guard else []

    def cost(other: Guard) -> float:
        book = ledger(config, federation, other)
        return book.projected([one for asked in whole for one in other.releases(asked)]).spent.pld if book else 0.0

    protection = Protection(config, federation, plan, guard.settled(cost), run)
    limit, after = config.privacy.max_epsilon, protection.planned()
    if limit and not guard.unit:
        raise FedclError(
            f"privacy.max_epsilon = {limit:g}: privacy.mechanism = {config.privacy.mechanism!r} claims no ε that "
            "could be kept to it; take dp-sgd, dp-ftrl or client-dp"
        )
    if limit and after and after.spent.pld > limit:
        raise FedclError(
            f"privacy.max_epsilon = {limit:g}: as planned the run would cost {after}; take epsilon = {limit:g} of the "
            "mechanism, which chooses the noise, or more noise, or fewer rounds or epochs"
        )
    return protection


def _told(statement: Statement) -> dict[str, Any]:
    found = statement.spent
    return {"epsilon": found.pld if math.isfinite(found.pld) else None, "rdp": found.rdp, "text": str(statement)}


def _summable(plan: Plan, guard: Guard) -> None:
    """Raise FedclError where masked sums of parts that some hospitals share would give one's weight away."""
    if guard.sums is None:
        return
    for stage in range(len(plan.federation.schedule)):
        (clients,) = plan.federation.groups
        senders = plan.senders(stage, clients)
        for cohort in plan.cohorts(stage, clients):
            owned = {client: {part or "trunk": 1 for part in senders if client in senders[part]} for client in cohort}
            adverts = {client: Advert(b"", b"", parts) for client, parts in owned.items()}
            refused = Roster(b"", RosterTerms(guard.sums.cohort), adverts).refused(adverts)
            for part, why in refused.items():
                raise FedclError(
                    f"mechanism 'secagg': stage {stage + 1}: part {part!r} {why}; let the same hospitals be there, "
                    "or take a method under which modules of earlier tasks do not train along"
                )
