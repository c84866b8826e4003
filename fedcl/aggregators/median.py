"""Coordinate-wise median of the clients' deltas; Flower's FedMedian.

References:
    Yin, Chen, Kannan, Bartlett. Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates. ICML
        2018. arXiv 1803.01498.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedcl.aggregators import _flower
from fedcl.contracts import Aggregator, Params


@dataclass(frozen=True)
class Median(Aggregator):
    """θ ← θ + median_c Δ_c, unweighted: holds while fewer than half of the clients are faulty, of three or more."""

    linear = False
    least: ClassVar[int] = 3

    def reduce(self, deltas: Sequence[Params], weights: Sequence[float], measured: Sequence[Params]) -> Params:
        """The median of each value."""
        return _flower.median(deltas, weights)
