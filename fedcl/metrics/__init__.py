"""What a number means: `matrix` (the accuracies), `table` (the metrics), `compat` (the peers')."""

from fedcl.metrics.compat import COMPAT, compat
from fedcl.metrics.matrix import (
    Bools,
    Floats,
    Ints,
    Matrix,
    Scores,
    by_hospital,
    hospital_accuracy,
    just_learned_forgetting,
    lowest,
    mean,
    merging_drop,
    peak_forgetting,
    seen_accuracy,
)
from fedcl.metrics.table import DEFINITIONS, FEDERATED, INFERRED, POOLED, summary

__all__ = [
    "COMPAT",
    "DEFINITIONS",
    "FEDERATED",
    "INFERRED",
    "POOLED",
    "Bools",
    "Floats",
    "Ints",
    "Matrix",
    "Scores",
    "by_hospital",
    "compat",
    "hospital_accuracy",
    "just_learned_forgetting",
    "lowest",
    "mean",
    "merging_drop",
    "peak_forgetting",
    "seen_accuracy",
    "summary",
]
