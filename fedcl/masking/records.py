"""What passes between parties and server after the roster, and what a party keeps between its messages."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fedcl.masking.roster import Advert as Advert
from fedcl.masking.roster import Record
from fedcl.masking.roster import Refused as Refused
from fedcl.masking.roster import Roster as Roster
from fedcl.masking.roster import Terms as Terms

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Sealed(Record):
    """Phase 1, party → server: for each neighbour its shares of this party's secrets, which only that one can read."""

    texts: dict[int, bytes]


@dataclass(frozen=True)
class Delivery(Record):
    """Phase 2, server → party.

    Attributes:
        shared: all parties that have shared their keys, in order; masks are exchanged with them.
        texts: what neighbours sealed for this party, by sender.
    """

    shared: tuple[int, ...]
    texts: dict[int, bytes]


@dataclass(frozen=True)
class Request(Record):
    """Phase 3, server → party: whose masked vectors came, and whose did not. Together those of `Delivery.shared`."""

    survivors: tuple[int, ...]
    dropped: tuple[int, ...]


@dataclass(frozen=True)
class Reveal(Record):
    """Phase 3, party → server: for each party that it holds shares of, one kind of them, never both.

    Attributes:
        seeds: of survivors, by part: shares of the seed of their own mask.
        keys: of those who dropped: a share of their private masking key.
    """

    seeds: dict[int, dict[str, bytes]]
    keys: dict[int, bytes]


@dataclass(frozen=True)
class Advertised(Record):
    """A party's state after phase 0: its private keys, and what it stands for."""

    party: int
    session: bytes
    terms: Terms
    advert: Advert
    mask_key: bytes
    share_key: bytes


@dataclass(frozen=True)
class Shared(Record):
    """A party's state after phase 1: also the seeds of its own masks by part, and its own share of its secrets."""

    party: int
    roster: Roster
    mask_key: bytes
    share_key: bytes
    seeds: dict[str, bytes]
    own: bytes


@dataclass(frozen=True)
class Masked(Record):
    """A party's state after phase 2: the shares that it holds, by owner; its own secrets are forgotten."""

    party: int
    roster: Roster
    shared: tuple[int, ...]
    held: dict[int, bytes]


def packed(record: Record) -> dict[str, Tensor]:
    """A message or a state as a flat dict of tensors: its kind's name → uint8 [bytes]."""
    text = _adapter(type(record)).dump_json(record)
    return {type(record).__name__: torch.from_numpy(np.frombuffer(text, np.uint8).copy())}


def unpacked(kind: type[R], tensors: Mapping[str, Tensor]) -> R:
    """The reverse.

    Raises:
        Refused: it is of another kind (a message out of turn, a state of another phase), or not what `packed` writes.
    """
    if set(tensors) != {kind.__name__}:
        raise Refused(f"{kind.__name__} was expected, not {sorted(tensors)}: a message out of turn")
    text = tensors[kind.__name__]
    if text.dtype != torch.uint8 or text.dim() != 1:
        raise Refused(f"{kind.__name__} must be bytes, not {text.dtype} of shape {list(text.shape)}")
    try:
        record: R = _adapter(kind).validate_json(text.cpu().numpy().tobytes())
    except ValidationError as error:
        raise Refused(f"{kind.__name__} is malformed: {error.errors()[0]['msg']}") from None
    return record


def digest(roster: Roster) -> bytes:
    """SHA-256 of all that was agreed on, whatever the order in which it is listed."""
    ordered = {party: roster.adverts[party] for party in sorted(roster.adverts)}
    parts = {party: dict(sorted(advert.parts.items())) for party, advert in ordered.items()}
    adverts = {p: Advert(a.mask_key, a.share_key, parts[p]) for p, a in ordered.items()}
    return hashlib.sha256(_adapter(Roster).dump_json(Roster(roster.session, roster.terms, adverts))).digest()


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """How a kind of record is written and checked."""
    return _built(kind)


@functools.cache
def _built(kind: Any) -> TypeAdapter[Any]:
    """The same; what builds it takes long."""
    return TypeAdapter(kind)
