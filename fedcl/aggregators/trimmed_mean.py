"""Mean of each value without the extremes; Flower's FedTrimmedAvg.

References:
    Yin, Chen, Kannan, Bartlett. Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates. ICML
        2018. arXiv 1803.01498.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.serverapp.strategy import FedTrimmedAvg

from fedcl.aggregators import _flower
from fedcl.contracts import Aggregator, Params


@dataclass(frozen=True)
class TrimmedMean(Aggregator):
    """θ ← θ + the unweighted mean of what is left of Δ_c at each coordinate.

    Attributes:
        cut: share of the clients left out at each end, in [0, 0.5), rounded down to clients; 0.2 is one of five. Of so
            few that none would be left out it takes the median; 0 is the mean of all.
    """

    cut: float = 0.2
    linear = False

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.cut < 0.5:
            raise ValueError(f"cut = {self.cut} must be at least 0 and below 0.5")

    @property
    def least(self) -> int:  # type: ignore[override]
        """⌈1 / cut⌉, of which one is left out at each end."""
        if not self.cut:
            return 0
        count = math.ceil(1 / self.cut)
        return count if int(self.cut * count) else count + 1  # 49 · (1 / 49) is below 1

    def reduce(self, deltas: Sequence[Params], weights: Sequence[float], measured: Sequence[Params]) -> Params:
        """The trimmed mean of each value; the median of fewer than `least`."""
        if len(deltas) < self.least:
            return _flower.median(deltas, weights)
        return _flower.combine(FedTrimmedAvg(beta=self.cut), deltas, weights)
