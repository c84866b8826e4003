"""Server momentum: v ← βv + Δ, θ ← θ + ηv; Flower's FedAvgM.

v begins anew with each stage, unless train.reset is never.

References:
    Hsu, Qi, Brown. Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification.
        arXiv 2019. arXiv 1909.06335.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from flwr.serverapp.strategy import FedAvgM as Strategy

from fedcl.aggregators import _flower
from fedcl.contracts import Aggregator, Memory, Params


@dataclass(frozen=True)
class FedAvgM(Aggregator):
    """Federated averaging with momentum at the server.

    Attributes:
        lr: η, the server's learning rate, > 0; with momentum below 1, since a constant Δ comes to Δ / (1 - β).
        momentum: β in [0, 1); typically 0.9.
    """

    lr: float = 0.3
    momentum: float = 0.9
    inertia: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.lr <= 0 or not 0 <= self.momentum < 1:
            raise ValueError(f"lr = {self.lr} must be > 0, and momentum = {self.momentum} at least 0 and below 1")

    def step(self, params: Params, delta: Params, state: Memory) -> tuple[Params, Memory]:
        """θ ← θ + ηv."""
        strategy = Strategy(server_learning_rate=self.lr, server_momentum=self.momentum)
        strategy.current_arrays = _flower.record({name: torch.zeros_like(value) for name, value in delta.items()})
        if state:
            strategy.momentum_vector = [state.get(name, torch.zeros_like(v)).numpy() for name, v in delta.items()]
        moved = _flower.combine(strategy, [delta], [1.0])
        kept = strategy.momentum_vector or []
        state = {name: torch.from_numpy(value) for name, value in zip(delta, kept, strict=False)}
        return {name: value + moved[name] for name, value in params.items()}, state
