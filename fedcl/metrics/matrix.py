"""The accuracies that all metrics read, and what can be said task by task or hospital by hospital.

R[s, t] is the accuracy on task t after stage s, in [0, 1], else NaN. S stages, T tasks, C hospitals.
Schedules may differ between hospitals, so the literature's R[t, t] becomes R[last(t), t], last(t) being the
last stage in which anyone trained t. A task is *old* if that was before the final stage and both cells are
defined; all forgetting is over old tasks, so with one task it is NaN. Undefined cells are left out of means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Matrix:
    """One accuracy matrix with what its reading needs: a hospital's own, or that of all hospitals pooled."""

    values: Floats  # R [S, T], NaN undefined
    first: Ints  # [T] stage in which the task was first trained, -1 never
    last: Ints  # [T] stage in which it was last trained, -1 never
    baseline: Floats | None = None  # b [T], accuracy of an untrained model
    reference: Floats | None = None  # a* [T], accuracy of a model trained on all tasks jointly

    @property
    def seen(self) -> Bools:
        """[T] whether anyone has trained the task so far."""
        return self.last >= 0 if len(self.values) else np.zeros(self.last.shape, bool)

    @property
    def final(self) -> Floats:
        """[T] R[S−1, t]; NaN for unseen tasks."""
        return np.where(self.seen, self.values[-1], np.nan) if len(self.values) else np.full(len(self.last), np.nan)

    @property
    def learned(self) -> Floats:
        """[T] R[last(t), t], the literature's diagonal."""
        return self._at(self.last)

    @property
    def old(self) -> Bools:
        """[T] the tasks that can have been forgotten."""
        return (self.last < len(self.values) - 1) & np.isfinite(self.learned) & np.isfinite(self.final)

    def over(self, start: Ints, stop: int, pick: Callable[[Floats], np.float64]) -> Floats:
        """[T] `pick` over the defined R[start(t)…stop−1, t] of each old task, NaN for the others."""
        result = np.full(len(self.last), np.nan)
        for t in np.flatnonzero(self.old):
            column = self.values[start[t] : stop, t]
            if np.isfinite(column).any():
                result[t] = pick(column[np.isfinite(column)])
        return result

    def _at(self, stage: Ints) -> Floats:
        """[T] R[stage(t), t]; NaN where the stage is negative or not reached."""
        inside = (stage >= 0) & (stage < len(self.values))
        result = np.full(len(stage), np.nan)
        result[inside] = self.values[stage[inside], np.flatnonzero(inside)]
        return result

    def before(self) -> Floats:
        """[T] R[first(t)−1, t], the accuracy just before the task was met; NaN for those met at stage 0."""
        return np.where(self.seen, self._at(self.first - 1), np.nan)


@dataclass(frozen=True)
class Scores:
    """All that the metrics read, for one way of testing: task known, or task inferred."""

    accuracy: Floats  # [S, T, C], each hospital on its own test samples
    pooled: Floats  # [S, T], on the test samples of all hospitals together
    counts: Ints  # [T, C] test samples
    first: Ints  # [T, C] stage in which the hospital first trained the task, -1 never
    last: Ints  # [T, C] stage in which it last did
    local: Floats | None = None  # [S, T, C] the hospital's own model, after training and before the merge
    baseline: Floats | None = None  # b [T]
    reference: Floats | None = None  # a* [T]

    def whole(self) -> Matrix:
        """All hospitals pooled; a task counts as met when the first hospital met it."""
        never = np.iinfo(np.int64).max
        first = np.where(self.first >= 0, self.first, never).min(axis=1, initial=never)
        last = self.last.max(axis=1, initial=-1)
        return Matrix(self.pooled, np.where(last >= 0, first, -1), last, self.baseline, self.reference)

    def hospital(self, c: int) -> Matrix:
        """Hospital c's own matrix, under its own schedule."""
        return Matrix(self.accuracy[:, :, c], self.first[:, c], self.last[:, c], self.baseline, self.reference)


def mean(values: Floats) -> float:
    """Mean of the defined values; NaN where there is none (never a warning)."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


# By task: what the figures draw.


def peak_forgetting(m: Matrix) -> Floats:
    """[T] max over first(t) ≤ l < S−1 of R[l, t], less R[S−1, t]: never below just-learned."""
    return m.over(m.first, len(m.values) - 1, np.max) - m.final


def just_learned_forgetting(m: Matrix) -> Floats:
    """[T] R[last(t), t] − R[S−1, t] of old tasks."""
    return np.where(m.old, m.learned - m.final, np.nan)


def lowest(m: Matrix) -> Floats:
    """[T] min over last(t) < l ≤ S−1 of R[l, t] of old tasks: how bad it ever was."""
    return m.over(m.last + 1, len(m.values), np.min)


def seen_accuracy(m: Matrix) -> Floats:
    """[S] A_s, the mean accuracy on the tasks met up to stage s."""
    met = (m.first >= 0) & (m.first <= np.arange(len(m.values))[:, None])
    return np.array([mean(row[known]) for row, known in zip(m.values, met, strict=True)], dtype=np.float64)


def hospital_accuracy(s: Scores) -> Floats:
    """[C] a hospital's final accuracy, mean over the seen tasks that it has test samples of."""
    seen = s.whole().seen
    if not len(s.accuracy):
        return np.full(s.last.shape[1], np.nan)
    return np.array([mean(column[seen]) for column in s.accuracy[-1].T], dtype=np.float64)


def merging_drop(s: Scores) -> Floats:
    """[T, C] accuracy of the hospital's own model less that of the merged one, at last_c(t)."""
    drop = np.full(s.last.shape, np.nan)
    if s.local is None:
        return drop
    t, c = np.nonzero((s.last >= 0) & (s.last < len(s.accuracy)))
    drop[t, c] = s.local[s.last[t, c], t, c] - s.accuracy[s.last[t, c], t, c]
    return drop


def by_hospital(s: Scores, of: Callable[[Matrix], Floats]) -> Floats:
    """[C] the mean over tasks of `of`, hospital by hospital."""
    return np.array([mean(of(s.hospital(c))) for c in range(s.last.shape[1])], dtype=np.float64)
