"""Modules stay at their hospital; only the trunk is shared (FedPer, Arivazhagan et al. 2019, arXiv 1912.00818).

Each hospital keeps a module of its own for each task, starts it from the same weights as all, and answers with it.
"""

from dataclasses import dataclass

from fedcl.contracts import Aggregator


@dataclass(frozen=True)
class Personal(Aggregator):
    """Nothing is merged, and nothing of a module is sent."""

    stays = True
