"""Eight bits an entry and one scale for each output: a quarter of the bytes, right on average (QSGD).

Alistarh et al. 2017, arXiv 1610.02132, section 3.1: each entry becomes one of the two levels beside it, by a draw whose
mean is the entry. Deviations: 2·127 + 1 even levels in a fixed number of bits instead of few levels in an Elias code;
scaled by the largest entry of each row (the paper: the 2-norm of the vector, or of buckets of it).

References:
    Alistarh, Grubic, Li, Tomioka, Vojnovic. QSGD: Communication-Efficient SGD via Gradient Quantization and
        Encoding. NeurIPS 2017. arXiv 1610.02132.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fedcl import flat, quantize
from fedcl.contracts import Compression

_SCALES = "scales"


@dataclass(frozen=True)
class Int8(Compression):
    """Q(x) = s · ⌊x / s + u⌋ with u uniform in [0, 1) and s = max |row| / 127.

    E Q(x) = x, |Q(x) − x| < s, and the variance of an entry is at most s² / 4. Zero stays zero. Unbiased rounding was
    chosen over the nearest level with error feedback: errors of hospitals and rounds average out, and nothing is to be
    remembered, so that an answer that was lost or a hospital that sat out leaves no debt.
    """

    def encode(self, deltas: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """`values` int8 [P] and `scales` float32 [rows of all arrays]."""
        draws = flat.parted(torch.rand(flat.count(deltas), generator=generator), deltas)
        pairs = [quantize.stochastic(deltas[name], draws[name].to(deltas[name].device)) for name in sorted(deltas)]
        values = torch.cat([levels.reshape(-1) for levels, _ in pairs])
        return {flat.VALUES: values, _SCALES: torch.cat([scale for _, scale in pairs])}

    def decode(self, sent: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Levels times scales."""
        flat.only(sent, flat.VALUES, _SCALES)
        names = sorted(like)
        lengths = [len(quantize.rows(like[name])) for name in names]
        scales = torch.split(flat.vector(sent, _SCALES, torch.float32, sum(lengths)), lengths)
        values = flat.vector(sent, flat.VALUES, torch.int8, flat.count(like))
        pieces = torch.split(values, [like[name].numel() for name in names])
        found = {
            name: quantize.restored(piece.view(like[name].shape), scale)
            for name, piece, scale in zip(names, pieces, scales, strict=True)
        }
        return {name: found[name].to(value) for name, value in like.items()}
