"""Secure aggregation: the server opens the sum of the hospitals' updates, and none of them alone.

SecAgg+ (Bonawitz et al. 2017; Bell et al. 2020, see `fedcl.masking` for what is claimed and what is not): keys, shares
of secrets, masked vectors, and the shares that open the sum, each a message of its own; hospitals may drop out at each
phase. Trunk, task modules, the training loss, the weights themselves and counts of right answers on test samples are
summed; other figures stay at the hospital. Which tasks it trains, and that it took part, stay in the open. No noise,
and so no ε.

References:
    Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth. Practical Secure Aggregation for
        Privacy-Preserving Machine Learning. CCS 2017.
    Bell, Bonawitz, Gascón, Lepoint, Raykova. Secure Single-Server Aggregation with (Poly)Logarithmic Overhead. CCS
        2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from fedcl.config import Config
from fedcl.contracts import Method, Phase, Update
from fedcl.masking.roster import Terms
from fedcl.masking.vectors import WeightedMean
from fedcl.mechanism import Mechanism
from fedcl.noise import Draw

_STAY = ("memory", "loss")
FIGURES, ANSWERS = "figures", "answers"  # parts beside the trunk and tasks' modules
_LARGEST = 1e4  # a figure beyond it is cut off, such as the loss of a net that diverges
_MOST = 2.0**24  # test samples of a hospital


@dataclass(frozen=True)
class SecAgg(Mechanism):
    """Masked sums.

    Attributes:
        cohort: the fewest hospitals that are summed over, as a whole and in each task's module, ≥ 2; with 2, each
            learns the other's update.
        clip: C > 0: entries of an update beyond ±C are cut off, and counted.
        most: W > 0: no hospital has more training samples of a task than this.
        answers: on test samples: `summed` as well, so that no figure of a single hospital is known, such as the worst
            one's; or `open`, one by one.
    """

    cohort: int = 3
    clip: float = 16.0
    most: float = 1e6
    answers: Literal["summed", "open"] = "summed"
    linear: ClassVar[bool] = True
    quiet: ClassVar[bool] = True
    mutes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Terms(self.cohort)
        for name, value in (("clip", self.clip), ("most", self.most)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} = {value} must be > 0, and finite")
        if self.answers not in ("summed", "open"):
            raise ValueError(f"answers = {self.answers!r} must be 'summed' or 'open'")
        for part in ("", FIGURES, ANSWERS):
            self.written(part, 2)

    @property
    def hides(self) -> frozenset[str]:  # type: ignore[override]
        """What is summed."""
        return frozenset({"update", "figure", "count", *(["answers"] if self.sums("evaluate") else [])})

    @property
    def covers(self) -> frozenset[str]:  # type: ignore[override]
        """The same."""
        return self.hides

    def sums(self, phase: Phase) -> bool:
        """Whether answers to Jobs of this phase are summed."""
        return phase == "train" or (phase == "evaluate" and self.answers == "summed")

    def written(self, part: str, parties: int) -> WeightedMean:
        """How a part's vectors of so many parties are written: C bounds updates alone; counts are exact."""
        if part == ANSWERS:
            return WeightedMean(_MOST, 1.0, parties)
        return WeightedMean(_LARGEST if part == FIGURES else self.clip, self.most, parties)

    def unfit(self, config: Config, method: Method) -> str:
        """What would reach the server one by one."""
        if "upload" in method.hooks():
            return "sums updates, and this method uploads more than that, one by one"
        if method.watches:
            return "sums losses of training alone, and growth is decided by the validation loss"
        if config.federation.compress != "none":
            return "adds up whole numbers of all entries; take federation.compress = 'none'"
        if config.federation.kind != "federated":
            return f"needs hospitals to sum over; federation.kind is {config.federation.kind!r}"
        return ""

    def meets(self, smallest: int) -> str:
        """Too few hospitals train a task at once."""
        if smallest < self.cohort:
            return (
                f"sums over {self.cohort} hospitals or more, and in some stage only {smallest} of them train a task "
                "in a round; let more do so, or lower its cohort"
            )
        return ""

    def seal(self, update: Update, phase: Phase, terms: Mapping[str, float], draw: Draw) -> Update:
        """What is not summed, and need not leave, stays."""
        told = {name: value for name, value in update.metrics.items() if name in _STAY}
        return replace(update, metrics=told, weight=update.weight if phase == "train" else float(update.weight > 0))
