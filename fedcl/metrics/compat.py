"""What a peer's own script would print for our matrix, for comparison with its published numbers.

The peers give all hospitals the same tasks in the same order, one a stage, so R must be [T, T] with task t
learned at stage t. None of these is a definition to report: each is named with what it does differently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fedcl.metrics.matrix import Floats, Ints


class Peer(NamedTuple):
    """A peer's definition of forgetting, and how it differs from ours."""

    formula: str
    note: str
    forgetting: Callable[[Floats], float]


def _just_learned(r: Floats) -> float:
    """Σ_{t<T−1} (R[t, t] − R[T−1, t])."""
    return float((np.diag(r) - r[-1])[:-1].sum())


def _over_tasks(r: Floats) -> float:
    """LANDER's script: the maximum runs over a row of the lower triangle, where it means a column."""
    return float(np.mean(np.tril(r).max(axis=1) - r[-1]))


def _peak(r: Floats) -> float:
    return float((r[:-1].max(axis=0) - r[-1])[:-1].mean()) if len(r) > 1 else float("nan")


PEERS = {
    "fot": Peer(
        "1/(T−1) Σ_{t<T−1} ( R[t, t] − R[T−1, t] )",
        "just-learned instead of peak",
        lambda r: _just_learned(r) / (len(r) - 1) if len(r) > 1 else float("nan"),
    ),
    "fed-mammoth": Peer(
        "1/T Σ_{t<T} ( R[t, t] − R[T−1, t] )",
        "just-learned, and the last task counts as 0, so that the mean shrinks by (T−1)/T; its accuracy is "
        "over all test samples, not a mean over tasks",
        lambda r: _just_learned(r) / len(r),
    ),
    "lander": Peer(
        "1/T Σ_i ( max_{j ≤ i} R[i, j] − R[T−1, i] )",
        "maximum over the tasks of stage i instead of over the stages of task i, last task included "
        "(its forgetting_calculator/forgetting_cal.py)",
        _over_tasks,
    ),
    "target": Peer(
        "1/(T−1) Σ_{t<T−1} ( max_{l<T−1} R[l, t] − R[T−1, t] )",
        "it ships no code for forgetting, as its users have asked for; this is the forgetting measure of "
        "Chaudhry et al. 2018, and we could not check it against the numbers in its paper",
        _peak,
    ),
}
COMPAT: dict[str, tuple[str, str]] = {name: (peer.formula, peer.note) for name, peer in PEERS.items()}


def compat(
    name: str, r: Floats, counts: Ints | None = None, schedule: Sequence[Sequence[Sequence[int]]] = ()
) -> dict[str, float]:
    """A peer's accuracy and forgetting, computed its way.

    Args:
        name: a key of COMPAT.
        r: R [T, T], row s after stage s, column t the task learned at stage t; cells above the
            diagonal may be NaN.
        counts: [T] test samples, for fed-mammoth's accuracy; None weighs tasks equally.
        schedule: [stage][client] → tasks, where it is known.

    Returns:
        `average_accuracy` and `forgetting`, fractions; forgetting is NaN where the peer would divide by 0.

    Raises:
        ValueError: unknown peer, or a matrix that its definition cannot read.
    """
    if name not in PEERS:
        raise ValueError(f"--metrics-compat {name!r} is unknown; there are {', '.join(sorted(PEERS))}")
    needs = f"--metrics-compat {name}: its definition needs one new task a stage, the same for all hospitals"
    if r.ndim != 2 or r.shape[0] != r.shape[1] or not len(r):
        raise ValueError(
            f"{needs} (a square matrix), and this run has {' × '.join(map(str, r.shape))}; use our own definitions"
        )
    other = (stage for stage, plan in enumerate(schedule) for now in plan if tuple(now) not in ((), (stage,)))
    if (stage := next(other, -1)) >= 0:
        raise ValueError(f"{needs}, and in stage {stage + 1} of this run some have another; use our own definitions")
    if np.isnan(r[np.tril_indices(len(r))]).any():
        raise ValueError(f"--metrics-compat {name}: a learned task has no accuracy after some stage; use ours")
    known = np.where(np.isnan(r), 0.0, r)  # above the diagonal only; the peers have zeros there
    weights = counts if counts is not None and name == "fed-mammoth" else np.ones(len(r))
    return {
        "average_accuracy": float(np.average(known[-1], weights=weights)),
        "forgetting": PEERS[name].forgetting(known),
    }
