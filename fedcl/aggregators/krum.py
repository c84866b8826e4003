"""The delta that is nearest to its neighbours; Flower's MultiKrum.

References:
    Blanchard, El Mhamdi, Guerraoui, Stainer. Machine Learning with Adversaries: Byzantine Tolerant Gradient
        Descent. NeurIPS 2017. arXiv 1703.02757.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.serverapp.strategy import MultiKrum

from fedcl.aggregators import _flower
from fedcl.contracts import Aggregator, Params


@dataclass(frozen=True)
class Krum(Aggregator):
    """θ ← θ + Δ_c with the smallest sum of squared distances to its n - f - 2 nearest others.

    Its guarantee asks for n ≥ 2f + 3 answers; of fewer it takes the median of each value. With `keep` above 1 it is
    Multi-Krum: the weighted mean of the best.

    Attributes:
        malicious: f, how many clients may be faulty, ≥ 0.
        keep: how many deltas are averaged, ≥ 1; 1 is Krum.
    """

    malicious: int = 1
    keep: int = 1
    linear = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.malicious < 0 or self.keep < 1:
            raise ValueError(f"malicious = {self.malicious} must be ≥ 0, and keep = {self.keep} ≥ 1")

    @property
    def least(self) -> int:  # type: ignore[override]
        """2f + 3."""
        return 2 * self.malicious + 3

    def reduce(self, deltas: Sequence[Params], weights: Sequence[float], measured: Sequence[Params]) -> Params:
        """The chosen delta, or the mean of the chosen ones; the median of fewer than `least`."""
        if len(deltas) < self.least:
            return _flower.median(deltas, weights)
        strategy = MultiKrum(num_malicious_nodes=self.malicious, num_nodes_to_select=min(self.keep, len(deltas)))
        return _flower.combine(strategy, deltas, weights)
