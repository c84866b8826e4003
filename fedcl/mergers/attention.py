"""Modules of different tasks lend each other what is alike: each moves towards those that it resembles.

After Huang et al. 2021 (FedAMP, arXiv 2007.03797), whose attention is between clients' models; here it is between the
modules of tasks that are current in the same round. One task in a round is merged by its owners' mean alone, and so
are modules of earlier tasks, where the method trains them along.

References:
    Huang, Chu, Zhou, Wang, Liu, Pei, Zhang. Personalized Cross-Silo Federated Learning on Non-IID Data. AAAI 2021.
        arXiv 2007.03797.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedcl.contracts import Aggregator, Params


@dataclass(frozen=True)
class Attention(Aggregator):
    """θ_t ← (1 - share) θ_t + share Σ_{s≠t} a_ts θ_s, with a_ts = softmax_s(cos(θ_t, θ_s) / temperature).

    Values are those that have the same name and shape in all modules: not the outputs of tasks of other sizes,
    nor what grew. Where none are left, modules are what their owners' mean makes them.

    Attributes:
        share: how much of a module comes from others, in [0, 1); 0 is `weighted`. It is a round's, and compounds: of
            what a module began with, (1 - share)^R is left after R rounds, so take little where there are many.
        temperature: > 0; small listens to the nearest only.
    """

    share: float = 0.1
    temperature: float = 0.1

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.share < 1 or self.temperature <= 0:
            raise ValueError(f"share = {self.share} must be in [0, 1), and temperature = {self.temperature} > 0")

    def across(self, modules: Mapping[str, Params]) -> Mapping[str, Params]:
        """All modules of a round, each with its part of the others'."""
        if len(modules) < 2 or self.share == 0:
            return modules
        parts = {task: {_inner(name): name for name in params} for task, params in modules.items()}
        first = modules[next(iter(modules))]
        common = [
            inner
            for inner, name in parts[next(iter(modules))].items()
            if all(inner in own and modules[t][own[inner]].shape == first[name].shape for t, own in parts.items())
        ]
        if not common:  # modules that grew apart may have nothing of equal shape
            return modules
        rows = torch.stack([torch.cat([modules[t][own[i]].flatten() for i in common]) for t, own in parts.items()])
        near = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows).T
        weights = (near / self.temperature).fill_diagonal_(-torch.inf).softmax(1)
        mixed = (1 - self.share) * rows + self.share * (weights @ rows)
        result = {}
        for row, (task, own) in zip(mixed, parts.items(), strict=True):
            pieces = torch.split(row, [modules[task][own[inner]].numel() for inner in common])
            moved = {own[i]: p.view_as(modules[task][own[i]]) for i, p in zip(common, pieces, strict=True)}
            result[task] = modules[task] | moved
        return result


def _inner(name: str) -> str:
    """A parameter's name without its task: `tasks.t0.out.bias` → "tasks.out.bias"."""
    head, _, rest = name.partition(".")
    return f"{head}.{rest.partition('.')[2]}"
