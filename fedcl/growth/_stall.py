"""Has learning stalled? (previous − current) / previous < ratio, on the hospitals' mean validation loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedcl.contracts import Memory, Moment


@dataclass(frozen=True)
class Stall:
    """When to call it so.

    Attributes:
        ratio: of the loss, in (0, 1): stalled where a window gained less.
        window: rounds that a loss is averaged over, ≥ 1.
        patience: rounds after a growth, or a stage's start, without another, ≥ 1: of a task's module for that task,
            of the trunk for all.
        smallest: a loss below this has nothing to gain, ≥ 0.
    """

    ratio: float
    window: int
    patience: int
    smallest: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.ratio < 1 or self.smallest < 0:
            raise ValueError(f"ratio = {self.ratio} must be in (0, 1), smallest = {self.smallest} ≥ 0")
        if min(self.window, self.patience) < 1:
            raise ValueError(f"window = {self.window} and patience = {self.patience} must be ≥ 1")

    def note(self, moment: Moment, state: Memory) -> tuple[list[str], Memory]:
        """(tasks that have stalled with this round's losses, the state with them); a stage starts anew."""
        if moment.round == 0:
            return [], state | {f"loss/{task}": torch.empty(0) for task in moment.current}
        stalled, kept = [], dict(state)
        for task, loss in moment.losses.items():
            seen = torch.cat([kept.get(f"loss/{task}", torch.empty(0)), torch.tensor([loss])])
            if self._stalls(seen) and moment.round < moment.rounds:  # what grows in the last round is never trained
                stalled.append(task)
                seen = seen[:0]
            kept[f"loss/{task}"] = seen
        return stalled, kept

    def unfit(self, rounds: int) -> str:
        """Why it can find nothing in a stage of so many rounds; "" if it can."""
        first = self._needs()
        if first < rounds:
            return ""
        return (
            f"sees a stall after {first} rounds at the earliest (two windows of {self.window}, patience "
            f"{self.patience}), and what grows in the last of train.rounds = {rounds} is never trained: "
            "take more rounds, or less of these"
        )

    @staticmethod
    def again(state: Memory) -> Memory:
        """Every task's window anew: what they share has grown."""
        return {key: value[:0] if key.startswith("loss/") else value for key, value in state.items()}

    def _needs(self) -> int:
        return max(2 * self.window, self.patience)

    def _stalls(self, seen: torch.Tensor) -> bool:
        """`seen` are the losses since the last growth."""
        if len(seen) < self._needs():
            return False
        current, previous = float(seen[-self.window :].mean()), float(seen[-2 * self.window : -self.window].mean())
        return previous > self.smallest and (previous - current) / previous < self.ratio
