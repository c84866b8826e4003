"""The ledger of a run: every release, over all rounds and tasks, and what each unit has spent so far.

A unit pays for all releases that touch its record set, one after the other (rounds, replay, a late Fisher), and for no
other release: those depend on it only through what it has paid for already. So ε is the maximum over record sets of the
composition of the releases that touch them. That hospitals and tasks with data of their own do not add up follows, as
does that they do where a set is touched again; nobody has to say so. The unit "hospital" pays for all that its hospital
released.

A record set is public: its members may change by the neighbouring relation, but none moves to another set. Under
replace-one this is a restriction, and statements name it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from fedcl.accounting.accountant import Mechanism, Spent, epsilon, merged, rdp_epsilon
from fedcl.accounting.release import Release
from fedcl.accounting.statement import Line, Statement, Terms

_Run = tuple[int, int, int]  # first round, last round, steps of each


class Ledger:
    """Collects releases and answers in statements. Releases under other terms are kept, but count as not covered."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self._runs: dict[Release, list[_Run]] = {}  # by the release without its round and steps

    def add(self, releases: Iterable[Release]) -> None:
        """Note releases, in any order; the same one twice is two. Runs of equal rounds are kept as one."""
        for one in releases:
            runs = self._runs.setdefault(replace(one, round=0, steps=1), [])
            if runs and runs[-1][1] + 1 == one.round and runs[-1][2] == one.steps:
                runs[-1] = (runs[-1][0], one.round, one.steps)
            else:
                runs.append((one.round, one.round, one.steps))

    def plus(self, releases: Iterable[Release]) -> Ledger:
        """A copy with more releases."""
        return self._picked(lambda one: True, releases)

    def until(self, stage: int) -> Ledger:
        """A copy as it was at the end of a stage: answers of it are cumulative."""
        return self._picked(lambda one: one.stage <= stage)

    def projected(self, releases: Iterable[Release]) -> Statement:
        """What `overall` will say after these: for a stop before they are sent."""
        return self.plus(releases).overall()

    def overall(self) -> Statement:
        """Of the unit that has spent most."""
        return self._statement(atom for one in self._runs for atom in self._atoms(one))

    def hospital(self, hospital: int) -> Statement:
        """Of the unit that has spent most in a hospital; 0 for one that released nothing."""
        return self._statement(atom for one in self._runs if one.hospital == hospital for atom in self._atoms(one))

    def task(self, task: str) -> Statement:
        """Of the unit that has spent most among a task's, in the whole run so far.

        A hospital's record set belongs to the task that touched it first: to replay it in a later task costs the
        earlier one's units. A task that brought a hospital no set of its own is on those that it touches.
        """
        hospitals = {one.hospital for one in self._runs}
        return self._statement(atom for hospital in hospitals for atom in self._owned(task, hospital))

    def price(self, task: str) -> Statement:
        """Of the releases of a task's rounds alone, as if there had been no others."""
        return self._picked(lambda one: one.task == task).overall()

    def uncovered(self) -> tuple[Release, ...]:
        """What left without protection under these terms, one for each kind: first round, steps of all rounds."""
        return tuple(
            replace(one, round=min(first for first, _, _ in runs), steps=_steps(runs))
            for one, runs in self._runs.items()
            if not self._covers(one)
        )

    def pack(self) -> str:
        """As JSON, for a checkpoint."""
        releases = [
            {**{name: value for name, value in asdict(one).items() if name not in ("round", "steps")}, "rounds": runs}
            for one, runs in self._runs.items()
        ]
        return json.dumps({"terms": asdict(self.terms), "releases": releases}, ensure_ascii=False)

    @classmethod
    def unpack(cls, text: str) -> Ledger:
        """The reverse of `pack`."""
        packed: Mapping[str, Any] = json.loads(text)
        ledger = cls(Terms(**packed["terms"]))
        for one in packed["releases"]:
            runs = [(first, last, steps) for first, last, steps in one.pop("rounds")]
            ledger._runs[Release(**one, round=0)] = runs
        return ledger

    def _picked(self, keep: Callable[[Release], bool], more: Iterable[Release] = ()) -> Ledger:
        ledger = Ledger(self.terms)
        ledger._runs = {one: list(runs) for one, runs in self._runs.items() if keep(one)}
        ledger.add(more)
        return ledger

    def _covers(self, one: Release) -> bool:
        return one.noised and (one.unit, one.relation) == (self.terms.unit, self.terms.relation)

    def _atoms(self, one: Release) -> tuple[str, ...]:
        """Those who pay: the record sets that a release touches, or its hospital."""
        return (f"hospital {one.hospital}",) if self.terms.unit == "hospital" and one.records else one.records

    def _owned(self, task: str, hospital: int) -> set[str]:
        own: set[str] = set()
        touched: set[str] = set()
        firsts: dict[str, tuple[bool, int, int]] = {}
        mine = [(one, self._since(one)) for one in self._runs if one.hospital == hospital and one.task]
        for one, since in mine:
            for atom in self._atoms(one):
                firsts[atom] = min(firsts.get(atom, since), since)
        for one, since in mine:
            if one.task == task:
                touched |= set(self._atoms(one))
                own |= {atom for atom in self._atoms(one) if firsts[atom] == since}
        return own or touched

    def _since(self, one: Release) -> tuple[bool, int, int]:
        """When it was first made; what is covered goes before what is not."""
        return not self._covers(one), one.stage, min(first for first, _, _ in self._runs[one])

    def _statement(self, atoms: Iterable[str]) -> Statement:
        """Of the worst-off atom."""
        asked = set(atoms)
        relevant = [one for one in self._runs if asked.intersection(self._atoms(one))]
        covered = [one for one in relevant if self._covers(one)]
        worst, lines, check = self._worst({self._lines(atom, covered) for atom in asked})
        return Statement(
            self.terms,
            Spent(worst, check),
            lines,
            tuple(sorted({one.artefact for one in covered})),
            tuple(sorted({one.artefact for one in relevant if not self._covers(one)})),
        )

    def _worst(self, paid: Collection[tuple[Line, ...]]) -> tuple[float, tuple[Line, ...], float | None]:
        """Of what several atoms pay for: (the largest ε, what it is made of, the largest RDP).

        RDP costs a hundredth of PLD and is never below it: an atom whose RDP is below the largest ε so far is left out.
        """
        checks = {lines: self._bound(lines) for lines in sorted(paid)}
        worst, made = 0.0, tuple[Line, ...]()
        for lines, check in sorted(checks.items(), key=lambda item: -item[1]):
            if check <= worst and made:
                break
            if (found := self._spent(lines).pld) > worst or not made:
                worst, made = found, lines
        known = [self._spent(made).rdp] if self.terms.relation == "replace_one" else list(checks.values())
        return worst, made, None if None in known else max(filter(None, known), default=0.0)

    def _bound(self, lines: Iterable[Line]) -> float:
        """An upper bound of ε that is quick to find; ∞ where there is none."""
        releases = merged(Mechanism(line.sigma, line.q, line.steps) for line in lines)
        if any(one.sigma == 0 for one in releases) or (self.terms.relation == "replace_one" and releases):
            return math.inf
        return rdp_epsilon(releases, self.terms.delta) if releases else 0.0

    def _lines(self, atom: str, covered: Iterable[Release]) -> tuple[Line, ...]:
        """All that an atom pays for, equal releases as one."""
        steps: Counter[Line] = Counter()
        for one in covered:
            if atom in self._atoms(one):
                steps[Line(one.sampling, one.q, one.sigma, one.clip, 0)] += _steps(self._runs[one])
        return tuple(sorted(replace(line, steps=count) for line, count in steps.items()))

    def _spent(self, lines: Iterable[Line]) -> Spent:
        releases = (Mechanism(line.sigma, line.q, line.steps) for line in lines)
        return epsilon(releases, self.terms.delta, self.terms.relation)


def _steps(runs: Iterable[_Run]) -> int:
    return sum((last - first + 1) * steps for first, last, steps in runs)
