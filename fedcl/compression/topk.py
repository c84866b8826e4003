"""The largest entries of an update now, the others when they have added up (sparsified SGD with memory).

Stich, Cordonnier & Jaggi 2018, arXiv 1809.07599, algorithm 1, with a client's delta of a round in place of a gradient.
Error feedback is that of Seide et al. 2014 (1-bit SGD). Deviation: what is owed at an entry waits while the entry does
not move, so that nothing reaches a parameter that a method has frozen meanwhile.

References:
    Stich, Cordonnier, Jaggi. Sparsified SGD with Memory. NeurIPS 2018. arXiv 1809.07599.
    Seide, Fu, Droppo, Li, Yu. 1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed
        Training of Speech DNNs. Interspeech 2014.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Generator, Tensor

from fedcl import flat
from fedcl.contracts import Compression


@dataclass(frozen=True)
class TopK(Compression):
    """comp_k: of the whole update the k = keep · P entries of largest magnitude, with their places.

    Attributes:
        keep: share of the entries that are sent, in (0, 1]; papers take 0.001 to 0.1 for large nets.
    """

    keep: float = 0.1
    remembers = True

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep = {self.keep} must be in (0, 1]")

    def encode(self, deltas: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """`values` float32 [k] and their `places`; fewer where fewer are not zero."""
        entries = flat.joined(deltas)
        index = entries.abs().topk(max(round(self.keep * len(entries)), 1)).indices.sort().values
        return flat.sparse(entries, index[entries[index] != 0])

    def decode(self, sent: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Zero where nothing was sent."""
        device = next(iter(like.values())).device
        return flat.parted(flat.dense(sent, flat.count(like), device), like)
