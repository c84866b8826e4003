"""Secure aggregation: the server opens the sum of the hospitals' updates, and none of them alone.

SecAgg+ (Bonawitz et al. 2017; Bell et al. 2020, see `fedcl.masking` for what is claimed and what is not): keys, shares
of secrets, masked vectors, and the shares that open the sum, each a message of its own; hospitals may drop out at each
phase. Trunk, task modules, the training loss and the weights themselves are summed; other figures stay at the hospital.
Answers on test samples, which tasks a hospital has, and that it took part stay in the open. No noise, and so no ε.

References:
    Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth. Practical Secure Aggregation for
        Privacy-Preserving Machine Learning. CCS 2017.
    Bell, Bonawitz, Gascón, Lepoint, Raykova. Secure Single-Server Aggregation with (Poly)Logarithmic Overhead. CCS
        2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from fedcl.config import Config
from fedcl.contracts import Method, Phase, Update
from fedcl.masking.roster import Terms
from fedcl.masking.vectors import WeightedMean
from fedcl.mechanism import Mechanism
from fedcl.noise import Draw

_STAY = ("memory", "loss")
_LARGEST = 1e4  # a figure beyond it is cut off, such as the loss of a net that diverges


@dataclass(frozen=True)
class SecAgg(Mechanism):
    """Masked sums.

    Attributes:
        cohort: the fewest hospitals that are summed over, as a whole and in each task's module, ≥ 2; with 2, each
            learns the other's update.
        clip: C > 0: entries of an update beyond ±C are cut off, and counted.
        most: W > 0: no hospital has more training samples of a task than this.
    """

    cohort: int = 3
    clip: float = 16.0
    most: float = 1e6
    linear: ClassVar[bool] = True
    hides: ClassVar[frozenset[str]] = frozenset({"update", "figure", "count"})
    covers: ClassVar[frozenset[str]] = frozenset({"update", "figure", "count"})

    def __post_init__(self) -> None:
        Terms(self.cohort)
        self.numbers(2)
        self.figures(2)

    def numbers(self, parties: int) -> WeightedMean:
        """How vectors of so many parties are written."""
        return WeightedMean(self.clip, self.most, parties)

    def figures(self, parties: int) -> WeightedMean:
        """How the figures of so many parties are written: whatever C is."""
        return WeightedMean(_LARGEST, self.most, parties)

    def unfit(self, config: Config, method: Method) -> str:
        """What would reach the server one by one."""
        if "upload" in method.hooks():
            return "sums updates, and this method uploads more than that, one by one"
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
