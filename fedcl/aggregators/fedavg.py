"""Federated averaging: the trunk moves by the sample-weighted mean of the clients' deltas (McMahan et al. 2017)."""

from dataclasses import dataclass

from fedcl.contracts import Aggregator


@dataclass(frozen=True)
class FedAvg(Aggregator):
    """θ ← θ + Σ_c (n_c / n) Δ_c."""
