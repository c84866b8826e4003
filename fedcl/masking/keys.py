"""Keys that two parties agree on, and texts that only the other can read.

Pairs of X25519 (RFC 7748), keys by HKDF-SHA256 (RFC 5869) from the agreed point, and ChaCha20-Poly1305 (RFC 8439).
A key is bound to the round, to what it is for and to both parties, so that none serves twice.
"""

from __future__ import annotations

import os

from fedcl.masking.shares import Draw

KEY = 32  # bytes of every key, private, public and derived
_NONCE, _TAG = 12, 16
SEAL = _NONCE + _TAG  # bytes that a sealed text is longer than the text


def private(draw: Draw = os.urandom) -> bytes:
    """A new private key."""
    return draw(KEY)


def public(own: bytes) -> bytes:
    """The public key of a private one."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(own).public_key().public_bytes_raw()


def agreed(own: bytes, other: bytes, session: bytes, purpose: str, parties: tuple[int, int]) -> bytes:
    """The key that a private and the other party's public key give, the same from both sides.

    Args:
        own: private key, 32 bytes.
        other: public key, 32 bytes.
        session: identifies the round.
        purpose: what the key is for.
        parties: in an order that both sides hold to.

    Raises:
        ValueError: not 32 bytes, or a point of low order, which would give everybody the same key.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    point = X25519PrivateKey.from_private_bytes(own).exchange(X25519PublicKey.from_public_bytes(other))
    return _derived(point, session, f"{purpose} {parties[0]} {parties[1]}")


def of_part(key: bytes, part: str) -> bytes:
    """A pair's key for the mask of one part."""
    return _derived(key, b"", f"part {part}")


def seal(key: bytes, text: bytes, bound: bytes, draw: Draw = os.urandom) -> bytes:
    """A nonce and the encrypted text; it opens only with the same key and the same `bound`."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    nonce = draw(_NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, text, bound)


def unseal(key: bytes, sealed: bytes, bound: bytes) -> bytes:
    """The text.

    Raises:
        ValueError: it was sealed with another key or for another use, or was changed on the way.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    if len(sealed) < SEAL:
        raise ValueError(f"a sealed text of {len(sealed)} bytes: it has at least {SEAL}")
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], bound)
    except InvalidTag:
        raise ValueError("a sealed text does not open: another key, another round, or changed on the way") from None


def _derived(secret: bytes, salt: bytes, info: str) -> bytes:
    """HKDF-SHA256."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), KEY, salt, f"fedcl masking: {info}".encode()).derive(secret)
