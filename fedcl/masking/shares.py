"""Shamir's t-of-n secret sharing of 32-byte secrets.

A secret s is the value at 0 of a random polynomial f(x) = s + a₁x + … + a_{t−1}x^{t−1} over the field of
p = 2²⁵⁶ + 297 elements, and holder h gets f(h + 1). Any t shares give s by Lagrange's formula; t − 1 say nothing of it.
Python's integers take a time that depends on their values: timing is no part of the claim.

References:
    Shamir. How to share a secret. Communications of the ACM 22 (11), 1979.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from math import prod

Draw = Callable[[int], bytes]  # n → n random bytes

PRIME = 2**256 + 297  # the smallest prime above 2²⁵⁶, so that every 32-byte secret is an element of the field
SECRET = 32  # bytes of a secret
_HEAD, _VALUE = 2, 33  # bytes of the threshold, and of an element
SHARE = _HEAD + _VALUE  # bytes of a share


def split(secret: bytes, threshold: int, holders: Sequence[int], draw: Draw = os.urandom) -> dict[int, bytes]:
    """One share for each holder.

    Args:
        secret: 32 bytes.
        threshold: t, how many shares give the secret; in [2, number of holders].
        holders: who gets one, numbers ≥ 0, each once.
        draw: where random bytes come from.

    Raises:
        ValueError: an argument is out of its range.
    """
    if len(secret) != SECRET:
        raise ValueError(f"a secret of {len(secret)} bytes: only {SECRET} can be shared")
    if len(set(holders)) != len(holders) or min(holders, default=-1) < 0:
        raise ValueError(f"holders {list(holders)} must be different numbers from 0 on")
    if not 2 <= threshold <= len(holders):
        raise ValueError(f"a threshold of {threshold} for {len(holders)} holders: it must be in [2, {len(holders)}]")
    # 64 bytes modulo p are uniform but for 2⁻²⁵⁵
    rest = [int.from_bytes(draw(64), "little") % PRIME for _ in range(threshold - 1)]
    polynomial = [int.from_bytes(secret, "little"), *rest]
    head = threshold.to_bytes(_HEAD, "little")
    return {h: head + _evaluated(polynomial, h + 1).to_bytes(_VALUE, "little") for h in holders}


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret, from at least t shares by holder; those beyond t must lie on the same polynomial.

    Raises:
        ValueError: too few shares, shares of another threshold, or shares that do not belong together.
    """
    if threshold < 2 or len(shares) < threshold:
        raise ValueError(f"{len(shares)} shares for a threshold of {threshold}: too few")
    points = {holder + 1: _element(holder, share, threshold) for holder, share in sorted(shares.items())}
    base, extra = tuple(points)[:threshold], tuple(points)[threshold:]
    secret = _interpolated(points, base, 0)
    if secret >= 2 ** (8 * SECRET) or any(_interpolated(points, base, x) != points[x] for x in extra):
        raise ValueError(f"the shares of holders {sorted(shares)} do not belong to one secret")
    return secret.to_bytes(SECRET, "little")


def _element(holder: int, share: bytes, threshold: int) -> int:
    """The share's value in the field."""
    if holder < 0 or len(share) != SHARE:
        raise ValueError(f"holder {holder}: a share has {SHARE} bytes, this has {len(share)}")
    if (made := int.from_bytes(share[:_HEAD], "little")) != threshold:
        raise ValueError(f"holder {holder}: a share of threshold {made}, not {threshold}")
    value = int.from_bytes(share[_HEAD:], "little")
    if value >= PRIME:
        raise ValueError(f"holder {holder}: the share is no element of the field")
    return value


def _evaluated(polynomial: Sequence[int], x: int) -> int:
    """f(x) by Horner's rule, the constant coefficient first."""
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % PRIME
    return value


def _interpolated(points: Mapping[int, int], base: tuple[int, ...], at: int) -> int:
    """F(at) of the polynomial through the points at `base`."""
    return sum(points[x] * weight for x, weight in zip(base, _weights(base, at), strict=True)) % PRIME


@functools.lru_cache(maxsize=4096)  # the secrets of one round have few sets of holders
def _weights(base: tuple[int, ...], at: int) -> tuple[int, ...]:
    """Lagrange's coefficients Π_{m≠x} (at − m) / (x − m)."""
    return tuple(
        prod(at - m for m in base if m != x) * pow(prod(x - m for m in base if m != x), -1, PRIME) % PRIME for x in base
    )
