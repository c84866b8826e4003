"""Only what is not zero, with its places, where that is smaller: no number changes.

For methods that hold most entries still (masks, projections, ℓ1 penalties), and inputs that are always zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from fedcl import flat
from fedcl.contracts import Compression


@dataclass(frozen=True)
class Sparse(Compression):
    """Values that are not zero and one bit an entry, or a whole number a value, or all of them: the smallest."""

    exact: ClassVar[bool] = True

    def encode(self, deltas: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """`values` float32 [n], and their `places` unless all are sent."""
        entries = flat.joined(deltas)
        index = ((entries != 0) | entries.signbit()).nonzero().flatten()  # −0 is a value: not a bit may change
        return flat.sparse(entries, index)

    def decode(self, sent: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Zero where nothing was sent."""
        device = next(iter(like.values())).device
        return flat.parted(flat.dense(sent, flat.count(like), device), like)
