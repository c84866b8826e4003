"""One release of something that was computed from the data: what left, how it was protected, and whose data it saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fedcl.accounting.accountant import Mechanism, Relation

Unit = Literal["record", "patient", "hospital"]
Sampling = Literal["poisson", "without_replacement", "none"]
UNPROTECTED = "none"  # as the name of a mechanism


@dataclass(frozen=True)
class Release:
    """Something that left a hospital, or that shaped what will.

    `records` decides what adds up. Each identifier names a set of units (records, or patients) that is fixed by public
    knowledge, such as hospital and task; two identifiers name sets that share no unit. A release lists all sets that
    it was computed from, with the replayed ones. None at all says: not from the data.

    A release by sampling is logged in each round for every set that was sampled from, whether or not a unit was drawn.
    """

    artefact: str  # "trunk", "task module", "Fisher", "label counts" …
    hospital: int  # client
    task: str  # the current one, "" for none
    stage: int
    round: int  # counted over the whole run
    records: tuple[str, ...] = ()  # a set: sorted, each once
    unit: Unit = "record"
    relation: Relation = "add_remove"
    mechanism: str = UNPROTECTED  # or a name: "DP-SGD", "DP Fisher" …
    sampling: Sampling = "none"
    q: float = 1.0  # of one step, in (0, 1]
    sigma: float = 0.0  # std / sensitivity under the relation
    clip: float = 0.0  # C > 0
    steps: int = 1  # equal releases of this round

    def __post_init__(self) -> None:
        object.__setattr__(self, "records", tuple(sorted(set(self.records))))
        for name, value, known in (
            ("unit", self.unit, get_args(Unit)),
            ("neighbouring relation", self.relation, get_args(Relation)),
            ("sampling", self.sampling, get_args(Sampling)),
        ):
            if value not in known:
                raise ValueError(f"{self.artefact}: {name} {value!r} is none of {', '.join(known)}")
        if self.noised:
            self._check_noised()

    @property
    def noised(self) -> bool:
        """Whether a mechanism protects it."""
        return self.mechanism != UNPROTECTED

    def _check_noised(self) -> None:
        Mechanism(self.sigma, self.q, self.steps)
        if not self.clip > 0:
            raise ValueError(f"{self.artefact}: clip norm C = {self.clip} must be above 0, or σ says nothing")
        if not self.records:
            raise ValueError(
                f"{self.artefact}: {self.mechanism} without the record sets that it touches would cost "
                "nobody anything; name them in records"
            )
        if self.sampling == "none" and self.q < 1:
            raise ValueError(f"{self.artefact}: q = {self.q:g} needs sampling: say how, or set q = 1")
        if self.sampling == "without_replacement" and self.q < 1:
            raise ValueError(
                f"{self.artefact}: sampling without replacement at q = {self.q:g} has no privacy loss distribution in "
                "dp-accounting. Sample by Poisson, or set q = 1 under replace_one: no amplification is then counted"
            )
