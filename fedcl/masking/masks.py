"""Whole numbers modulo R = 2³² or 2⁶⁴, and the streams that hide them.

A tensor of int32 or int64 stands for numbers modulo R in two's complement. Sums are taken on unsigned arrays of NumPy,
where wrapping is defined.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ring = npt.NDArray[np.unsignedinteger[Any]]  # [P] modulo R

DTYPES = {32: torch.int32, 64: torch.int64}
_UNSIGNED = {torch.int32: np.uint32, torch.int64: np.uint64}
_CHUNK = 1 << 18  # bytes of a stream made at once: what stays in a core's cache


def unsigned(values: Tensor) -> Ring:
    """A copy, modulo R: [P] int32 or int64."""
    own: Ring = values.detach().cpu().numpy().view(_UNSIGNED[values.dtype]).copy()
    return own


def signed(values: Ring) -> Tensor:
    """The reverse, on the same memory: entries in [−R/2, R/2)."""
    return torch.from_numpy(values.view(np.int32 if values.itemsize == 4 else np.int64))


def add_stream(values: Ring, key: bytes, sign: int) -> None:
    """Add (+1) or subtract (−1) the stream of a key, modulo R, in place.

    PRG(key) is ChaCha20's key stream from block 0 under a nonce of zeros, read as little-endian numbers: uniform, and a
    key must serve one vector only.

    Args:
        values: [P], contiguous.
        key: 32 bytes.
        sign: +1 or −1.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    size = min(_CHUNK, values.nbytes)
    zeros, buffer = memoryview(bytes(size)), bytearray(size)
    drawn = np.frombuffer(buffer, values.dtype.newbyteorder("<"))
    combine = np.add if sign > 0 else np.subtract
    for start in range(0, len(values), len(drawn)):
        piece = values[start : start + len(drawn)]
        stream.update_into(zeros[: piece.nbytes], buffer)
        combine(piece, drawn[: len(piece)], out=piece)
