"""Gaussian noise for the privacy mechanisms: from a seeded generator, or from a cryptographic one.

`seeded` repeats a run bit for bit. Whoever guesses the seed knows the noise, and torch's generator is not a
cryptographic one: it serves experiments, not patients. `secure` draws from AES in counter mode, with a key of the
operating system's that nobody keeps.

Floating-point numbers are no real numbers: which of them a sampler can reach tells of the value beneath the noise
(Mironov 2012 for Laplace, Holohan & Braghin 2021 for Gaussian noise). `secure` draws in double precision and scales
the sum of four draws, as Holohan & Braghin propose: to undo it would take some 2¹⁵⁹ trials. That defeats the known
attack and is no proof: the guarantee is that of the real Gaussian, up to rounding; nothing is claimed about timing, or
about the rounding of sums beneath the noise. A proof needs a discrete mechanism.

References:
    Mironov. On Significance of the Least Significant Bits for Differential Privacy. CCS 2012.
    Holohan, Braghin. Secure Random Sampling in Differential Privacy. ESORICS 2021. arXiv 2107.10138.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, Sequence[int]]
Draw = Callable[[Shapes, float], "dict[str, torch.Tensor]"]  # (shapes, standard deviation) → noise by name
_WORDS = 24  # bytes before the twister's state in a generator's
_SUMMED = 4  # 2n of Holohan & Braghin's section 5.1 with n = 2


def seeded(shapes: Shapes, std: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """N(0, s²) from a generator, in the order of names, in single precision: no value is beyond ±5.8 s or so.

    Args:
        shapes: of the tensors, by name.
        std: s ≥ 0.
        generator: draws; the tensors are on its device.
    """
    import torch

    drawn = {}
    for name in sorted(shapes):
        values = torch.empty(tuple(shapes[name]), dtype=torch.float32, device=generator.device)
        drawn[name] = values.normal_(0, std, generator=generator)
    return drawn


def secure(shapes: Shapes, std: float) -> dict[str, torch.Tensor]:
    """N(0, s²) that no seed repeats, in double precision, on the CPU.

    Args:
        shapes: of the tensors, by name.
        std: s ≥ 0.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    flat = _normal(_SUMMED * sum(sizes.values())).view(_SUMMED, -1).sum(0)
    scaled = (flat * (std / _SUMMED**0.5)).split(list(sizes.values()))
    return {name: part.view(tuple(shapes[name])) for name, part in zip(sizes, scaled, strict=True)}


def unforeseen() -> torch.Generator:
    """A generator on the CPU whose whole state comes from the operating system: a seed would be 32 bits, to be tried.

    It is no cryptographic one: what it draws must not be shown.
    """
    import torch

    generator = torch.Generator()
    state = generator.get_state()
    words = state[_WORDS : _WORDS + 8 * 624].view(torch.int64)  # of the Mersenne twister, 32 bits each
    words.copy_(torch.frombuffer(bytearray(os.urandom(8 * 624)), dtype=torch.int64) & (2**32 - 1))
    generator.set_state(state)
    return generator


def added(values: Mapping[str, torch.Tensor], std: float, draw: Draw) -> dict[str, torch.Tensor]:
    """Values by name, with noise of standard deviation `std`; rounded once, to each value's own precision."""
    drawn = draw({name: value.shape for name, value in values.items()}, std)
    return {name: (value + drawn[name].to(value.device)).to(value.dtype) for name, value in values.items()}


def _normal(count: int) -> torch.Tensor:
    """Independent N(0, 1), by the transform of Box & Muller 1958 from bits that nobody can foresee."""
    import torch
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    pairs = -(-count // 2)
    stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
    bits = torch.frombuffer(bytearray(stream.update(bytes(16 * pairs))), dtype=torch.int64)
    uniform = (bits & (2**53 - 1)).double() * 2.0**-53  # [0, 1)
    radius = torch.sqrt(-2 * torch.log1p(-uniform[:pairs]))  # of 1 - u in (0, 1]: finite
    angle = uniform[pairs:] * (2 * math.pi)
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])[:count]
