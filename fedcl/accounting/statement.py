"""An ε with the terms that it is void without."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from typing import get_args

from fedcl.accounting.accountant import Relation, Spent
from fedcl.accounting.gaussian import check_delta
from fedcl.accounting.release import Sampling, Unit

_RELATIONS = {
    "add_remove": "add/remove",
    "zero_out": "zero-out: that it takes part is not hidden",
    "replace_one": "replace-one within a record set",
}
_WHOLE = ("hospital", "replace_one")  # no record set to stay in
_SAMPLINGS = {"poisson": "Poisson q = ", "without_replacement": "without replacement, counted as q = ", "none": "q = "}
_DIGITS = Context(prec=4, rounding=ROUND_CEILING)


@dataclass(frozen=True)
class Terms:
    """What all answers of a ledger are about. Raises ValueError where they would mean nothing.

    `delta`: δ < 1 / `units`.
    `units`: how many records, patients or hospitals there are.
    """

    unit: Unit
    relation: Relation
    delta: float
    units: int

    def __post_init__(self) -> None:
        for name, known in (("unit", get_args(Unit)), ("relation", get_args(Relation))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")
        check_delta(self.delta)
        if self.units < 1 or self.delta * self.units >= 1:
            raise ValueError(
                f"δ = {self.delta:g} with n = {self.units} {self.unit}s: δ must be below 1 / n"
                f"{f' = {1 / self.units:.3g}' if self.units > 0 else ''}, or publishing one of them whole would count "
                "as private. Choose a smaller δ"
            )


@dataclass(frozen=True, order=True)
class Line:
    """Equal releases behind an ε."""

    sampling: Sampling
    q: float
    sigma: float
    clip: float
    steps: int

    def __str__(self) -> str:
        steps = f"{self.steps} step{'s' if self.steps != 1 else ''}"
        return f"{_SAMPLINGS[self.sampling]}{self.q:g}, σ = {self.sigma:g}, C = {self.clip:g}, {steps}"


@dataclass(frozen=True)
class Statement:
    """What may be said of somebody's privacy; `str` of it is a sentence that is complete."""

    terms: Terms
    spent: Spent
    lines: tuple[Line, ...]  # what the worst-off unit's ε is made of
    covered: tuple[str, ...]  # artefacts
    uncovered: tuple[str, ...]  # artefacts from the same data that the ε says nothing about

    def __str__(self) -> str:
        unit, made_of = self.terms.unit, " + ".join(map(str, self.lines)) or "no protected release"
        relation = "replace-one" if (unit, self.terms.relation) == _WHOLE else _RELATIONS[self.terms.relation]
        rdp = "no RDP of this sampling" if self.spent.rdp is None else f"RDP {up(self.spent.rdp)}"
        text = f"ε = {up(self.spent.pld)} at δ = {_short(self.terms.delta)} per {unit} "
        text += f"({relation}, {made_of}; PLD; {rdp})"
        if self.uncovered:
            covered = f"for {_list(self.covered)} only" if self.covered else "for nothing that was released"
            text += f"; it holds {covered}, and says nothing about {_list(self.uncovered)}"
        return text


def up(value: float) -> str:
    """An ε as text: four digits, rounded up: what is printed is never less than what was spent."""
    return "∞" if value == math.inf else _short(float(_DIGITS.create_decimal_from_float(value)))


def _short(value: float) -> str:
    """1e-05 → 1e-5."""
    return re.sub(r"e([+-])0+", lambda found: f"e{found[1].strip('+')}", f"{value:.4g}").replace("e+", "e")


def _list(names: tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
