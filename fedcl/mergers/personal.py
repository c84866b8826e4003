"""Modules stay at their hospital; only the trunk is shared (FedPer).

Each hospital keeps a module of its own for each task, starts it from the same weights as all, and answers with it.

References:
    Arivazhagan, Aggarwal, Singh, Choudhary. Federated Learning with Personalization Layers. arXiv 2019. arXiv
        1912.00818.
"""

from dataclasses import dataclass

from fedcl.contracts import Aggregator


@dataclass(frozen=True)
class Personal(Aggregator):
    """Nothing is merged, and nothing of a module is sent."""

    stays = True
