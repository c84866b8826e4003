"""Expand where learning has stalled: (previous − current) / previous < ratio, on the hospitals' validation loss.

The server compares the mean loss of the last `window` rounds with that of the `window` before, over all hospitals that
have the task, so that all grow alike. Guards: a loss of nearly zero has nothing to gain; after an expansion the net
has `patience` rounds to use it; and no layer grows beyond `limit` units. New units start with outgoing weights of zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fedcl.config import Masks
from fedcl.contracts import Memory, Method, Moment, Params
from fedcl.structure import widen


@dataclass(frozen=True)
class Threshold(Method):
    """Growth by a threshold on the relative gain.

    Attributes:
        ratio: of the loss, in (0, 1): expand where a window gained less.
        window: rounds that a loss is averaged over, ≥ 1.
        patience: rounds after an expansion (and a stage's start) without another, ≥ 1.
        units: hidden units that an expansion adds to a layer, ≥ 1.
        limit: units of a layer, at most.
        smallest: a loss below this has nothing to gain, ≥ 0.
        where: which layers grow: the current task's own `module`, the shared `trunk`'s, or `both`.
    """

    ratio: float = 0.15
    window: int = 2
    patience: int = 5
    units: int = 16
    limit: int = 512
    smallest: float = 0.01
    where: Literal["module", "trunk", "both"] = "module"
    masks: ClassVar[Masks] = "slices"
    watches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1 or min(self.window, self.patience, self.units, self.limit) < 1 or self.smallest < 0:
            raise ValueError(f"ratio = {self.ratio} must be in (0, 1), all counts ≥ 1, smallest ≥ 0")
        if self.where not in ("module", "trunk", "both"):
            raise ValueError(f"where = {self.where!r} must be module, trunk or both")

    def merged(self, moment: Moment, before: Params, params: Params, state: Memory) -> tuple[Params, Memory]:
        """Note the round's losses, and expand where they have stalled."""
        if moment.round == 0:
            return params, {f"loss/{task}": torch.empty(0) for task in moment.current}
        stalled = []
        for task, loss in moment.losses.items():
            seen = torch.cat([state.get(f"loss/{task}", torch.empty(0)), torch.tensor([loss])])
            if self._stalls(seen) and moment.round < moment.rounds:  # the last round's growth would not be trained
                stalled.append(task)
                seen = seen[:0]
            state = state | {f"loss/{task}": seen}
        for layer in moment.layers if stalled else ():
            trunk = layer.name.startswith("trunk.")
            own = not trunk and layer.name.split(".")[1] in stalled
            if layer.kind == "units" and ((trunk and self.where != "module") or (own and self.where != "trunk")):
                more = min(self.units, self.limit - layer.units(params))
                params = widen(params, layer, max(more, 0), moment.current, moment.generator)
        return params, state

    def _stalls(self, seen: torch.Tensor) -> bool:
        """Whether the last window gained too little; `seen` are the losses since the last expansion."""
        if len(seen) < max(2 * self.window, self.patience):
            return False
        current, previous = float(seen[-self.window :].mean()), float(seen[-2 * self.window : -self.window].mean())
        return previous > self.smallest and (previous - current) / previous < self.ratio
