"""Grow in three steps, one whenever learning stalls: wider layers, then attention heads, then adapters.

Step 1 widens the trunk's fully connected and convolutional layers, step 2 adds heads to every attention, step 3 units
to every adapter (`vit` with `adapters = true`; Houlsby et al. 2019, from none); a step that the trunk has no layers
for is left out, after the last comes the first again, and a new stage goes on where the one before it ended. All new
paths start with outgoing weights of zero, so nothing changes at the moment of growth. A task keeps the slice that it
met: later heads, units and adapters cost it nothing. The server decides on the loss of all hospitals' validation
samples (see `threshold`), so that all grow alike.

References:
    Houlsby, Giurgiu, Jastrzebski, Morrone, others. Parameter-Efficient Transfer Learning for NLP. ICML 2019. arXiv
        1902.00751.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedcl.config import Config, Masks
from fedcl.contracts import Memory, Method, Moment, Params
from fedcl.growth._stall import Stall
from fedcl.structure import Kind, widen


@dataclass(frozen=True)
class Progressive(Method):
    """Growth from wider layers over more heads to adapters.

    Attributes:
        units: hidden units or channels that step 1 adds to a layer, ≥ 0; 0 leaves the step out.
        heads: that step 2 adds to an attention, ≥ 0.
        adapter: units that step 3 adds to an adapter, ≥ 0.
        limit: units of a layer, at most.
        ratio: of the loss, in (0, 1): grow where a window gained less.
        window: rounds that a loss is averaged over, ≥ 1.
        patience: rounds after a growth (and a stage's start) without another, ≥ 1.
        smallest: a loss below this has nothing to gain, ≥ 0.
    """

    units: int = 16
    heads: int = 1
    adapter: int = 8
    limit: int = 1024
    ratio: float = 0.15
    window: int = 2
    patience: int = 5
    smallest: float = 0.01
    masks: ClassVar[Masks] = "slices"
    watches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._stall()
        if min(self.units, self.heads, self.adapter) < 0 or self.limit < 1:
            raise ValueError(f"units, heads and adapter must be ≥ 0, limit = {self.limit} ≥ 1")
        if not (self.units or self.heads or self.adapter):
            raise ValueError("units, heads and adapter are all 0: nothing would ever grow")

    def unfit(self, config: Config) -> str:
        """All steps are in the trunk."""
        if config.model.name == "resnet18":
            return "grows the trunk; take model.name = 'mlp', 'cnn' or 'vit'"
        return self._stall().unfit(config.train.rounds)

    def merged(self, moment: Moment, before: Params, params: Params, state: Memory) -> tuple[Params, Memory]:
        """Note the round's losses, and take the next step where they have stalled."""
        stalled, state = self._stall().note(moment, state)
        if not stalled:
            return params, state
        state = self._stall().again(state)
        trunk = [layer for layer in moment.layers if layer.name.startswith("trunk.")]
        there = {layer.kind for layer in trunk}
        more: dict[Kind, int] = {"units": self.units, "heads": self.heads, "adapter": self.adapter}
        steps = [kind for kind, count in more.items() if count and kind in there]
        if not steps:
            return params, state
        step = state.get("step", torch.tensor(0))
        kind = steps[int(step) % len(steps)]
        for layer in (layer for layer in trunk if layer.kind == kind):
            count = min(more[kind], self.limit - layer.units(params))
            params = widen(params, layer, max(count, 0), moment.current, moment.generator)
        return params, state | {"step": step + 1}

    def _stall(self) -> Stall:
        return Stall(self.ratio, self.window, self.patience, self.smallest)
