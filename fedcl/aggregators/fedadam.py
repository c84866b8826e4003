"""Adam at the server, on the clients' mean delta (Alg. 2); Flower's FedAdam.

The moments begin anew with each stage, unless train.reset is never.

References:
    Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan. Adaptive Federated Optimization. ICLR 2021.
        arXiv 2003.00295.
"""

from dataclasses import dataclass
from typing import ClassVar

from flwr.serverapp.strategy import FedAdam as Strategy

from fedcl.aggregators import _flower
from fedcl.contracts import Aggregator, Memory, Params


@dataclass(frozen=True)
class FedAdam(Aggregator):
    """m ← β₁m + (1 - β₁)Δ, v ← β₂v + (1 - β₂)Δ², θ ← θ + ηm / (√v + τ); Flower's corrects the bias of both moments.

    Attributes:
        lr: η, the server's learning rate, > 0; typically 0.001 to 0.1.
        beta1: β₁ in [0, 1).
        beta2: β₂ in [0, 1).
        tau: τ > 0, how far it adapts: the larger, the more like momentum; typically 1e-4 to 1e-1.
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    inertia: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        _flower.check_moments(self.lr, self.beta1, self.beta2, self.tau)

    def step(self, params: Params, delta: Params, state: Memory) -> tuple[Params, Memory]:
        """θ ← θ + ηm / (√v + τ)."""
        strategy = Strategy(eta=self.lr, beta_1=self.beta1, beta_2=self.beta2, tau=self.tau)
        moved, state = _flower.move(strategy, delta, state)
        return {name: value + moved[name] for name, value in params.items()}, state
