"""Federated averaging: the trunk moves by the sample-weighted mean of the clients' deltas.

References:
    McMahan, Moore, Ramage, Hampson, Agüera y Arcas. Communication-Efficient Learning of Deep Networks from
        Decentralized Data. AISTATS 2017. arXiv 1602.05629.
"""

from dataclasses import dataclass

from fedcl.contracts import Aggregator


@dataclass(frozen=True)
class FedAvg(Aggregator):
    """θ ← θ + Σ_c (n_c / n) Δ_c."""
