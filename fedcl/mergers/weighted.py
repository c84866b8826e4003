"""A task's module moves by the sample-weighted mean over the clients that trained the task; others stay untouched."""

from dataclasses import dataclass

from fedcl.contracts import Aggregator


@dataclass(frozen=True)
class Weighted(Aggregator):
    """θ_t ← θ_t + Σ_{c with task t} (n_c / n_t) Δ_c."""
