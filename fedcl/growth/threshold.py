"""Expand where learning has stalled: (previous − current) / previous < ratio, on the hospitals' validation loss.

The server compares the mean loss of the last `window` rounds with that of the `window` before, over all hospitals that
have the task, so that all grow alike. Guards: a loss of nearly zero has nothing to gain; after an expansion the net
has `patience` rounds to use it; and no layer grows beyond `limit` units. New units start with outgoing weights of zero.
Where modules stay at their hospital (merger `personal`) each hospital widens its own, on its own validation loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedcl.config import Config, Masks
from fedcl.contracts import Memory, Method, Moment, Params
from fedcl.growth._stall import Stall
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
        self._stall()
        if min(self.units, self.limit) < 1 or self.where not in ("module", "trunk", "both"):
            raise ValueError(f"units = {self.units} and limit = {self.limit} must be ≥ 1, where = {self.where!r} known")

    def unfit(self, config: Config) -> str:
        """There must be something to widen."""
        if self.where == "module" and config.model.heads != "task":
            return "widens modules, and tasks that share a head have none; take growth.threshold.where = 'trunk'"
        alone = self.where == "trunk" or config.model.heads != "task"
        if alone and config.model.name == "resnet18":
            return "widens no 'resnet18', and here nothing else; take model.name = 'mlp', 'cnn' or 'vit'"
        return self._stall().unfit(config.train.rounds)

    def merged(self, moment: Moment, before: Params, params: Params, state: Memory) -> tuple[Params, Memory]:
        """Note the round's losses, and expand where they have stalled."""
        stalled, state = self._stall().note(moment, state)
        if stalled and self.where != "module":
            state = self._stall().again(state)
        for layer in moment.layers if stalled else ():
            trunk = layer.name.startswith("trunk.")
            own = not trunk and layer.name.split(".")[1] in stalled
            if layer.kind == "units" and ((trunk and self.where != "module") or (own and self.where != "trunk")):
                more = min(self.units, self.limit - layer.units(params))
                params = widen(params, layer, max(more, 0), moment.current, moment.generator)
        return params, state

    def _stall(self) -> Stall:
        return Stall(self.ratio, self.window, self.patience, self.smallest)
