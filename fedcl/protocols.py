"""What a method may ask of the net besides the task's own logits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from torch import Tensor


class Old(Protocol):
    """(params, x [B, …]) → logits [B, outputs] of each softmax over what was learned in earlier stages, `ctx.past`.

    One for each task that has a softmax of its own, otherwise one for all; none without earlier tasks.
    """

    def __call__(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        teacher: bool = False,
        known: Collection[str] | None = None,
    ) -> list[Tensor]:
        """A teacher answers in evaluation mode and takes no gradient; `known` are the tasks to answer for, of all."""
        ...


class Each(Protocol):
    """(params, x [B, …], index [B] of each sample's task) → logits [B, outputs], each by its own task's head.

    -inf where a task has no such output. Tasks are those of now and of `ctx.past`.
    """

    def __call__(self, params: Mapping[str, Tensor], x: Tensor, index: Tensor, teacher: bool = False) -> Tensor:
        """A teacher answers in evaluation mode and takes no gradient."""
        ...
