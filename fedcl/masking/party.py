"""A hospital's side of a round: four pure functions, each from the state that the one before left.

    advertise ─► share ─► mask ─► unmask

A state serves once: a caller keeps the new one in place of the old before it answers, and nothing after `unmask`. A
party that answered two different requests of phase 3 would give away its neighbours' vectors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor

from fedcl.masking import keys, masks, shares
from fedcl.masking.records import (
    Advert,
    Advertised,
    Delivery,
    Masked,
    Refused,
    Request,
    Reveal,
    Roster,
    Sealed,
    Shared,
    Terms,
    digest,
)
from fedcl.masking.shares import SHARE, Draw


def advertise(
    session: bytes, party: int, parts: Mapping[str, int], terms: Terms, draw: Draw = os.urandom
) -> tuple[Advertised, Advert]:
    """Phase 0: two fresh pairs of keys.

    Args:
        session: identifies the round; at least 16 bytes, fresh and random, from the server.
        party: this hospital's number.
        parts: length of each vector that it will send, by the part's name.
        terms: what it insists on.
        draw: where random bytes come from; anything but the system's source is for tests.
    """
    mask_key, share_key = keys.private(draw), keys.private(draw)
    advert = Advert(keys.public(mask_key), keys.public(share_key), dict(sorted(parts.items())))
    return Advertised(party, session, terms, advert, mask_key, share_key), advert


def share(state: Advertised, roster: Roster, draw: Draw = os.urandom) -> tuple[Shared, Sealed]:
    """Phase 1: Shamir shares of the masking key, and of a seed b_{i,part} for each part, encrypted to each neighbour.

    Raises:
        Refused: the roster is of another round, has other terms or another advert of this party, or too few parties.
    """
    if roster.session != state.session:
        raise Refused("the roster is of another round")
    if roster.terms != state.terms:
        raise Refused(f"the server's terms {roster.terms} are not this hospital's {state.terms}")
    if roster.adverts.get(state.party) != state.advert:
        raise Refused(f"the roster does not list hospital {state.party} as it advertised itself")
    roster.check()
    seeds = {part: draw(shares.SECRET) for part in roster.parts(state.party)}
    holders = roster.holders(state.party)
    split = [shares.split(secret, roster.threshold, holders, draw) for secret in (state.mask_key, *seeds.values())]
    texts = {holder: b"".join(each[holder] for each in split) for holder in holders}
    own, bound = texts.pop(state.party), digest(roster)
    sealed = {
        holder: keys.seal(_channel(state.share_key, roster, holder, (state.party, holder)), text, bound, draw)
        for holder, text in texts.items()
    }
    return Shared(state.party, roster, state.mask_key, state.share_key, seeds, own), Sealed(sealed)


def mask(state: Shared, delivery: Delivery, vectors: Mapping[str, Tensor]) -> tuple[Masked, dict[str, Tensor]]:
    """Phase 2: y_i = x_i + PRG(b_i) + Σ_{j>i} PRG(s_ij) − Σ_{j<i} PRG(s_ij) mod R, for each part by itself.

    j runs over the parties that share the part's masks with i and have shared their keys; s_ij is the pair's key for
    this part.

    Args:
        state: of phase 1.
        delivery: who shared, and what they sealed for this party.
        vectors: [length] int32 or int64 of each part that was advertised, `fixed_point` writes them.

    Returns:
        The state, and y_i of the parts that at least a cohort of those who shared owns.

    Raises:
        Refused: too few parties, shares that are missing, strange or do not open, or vectors of other parts.
    """
    roster, party = state.roster, state.party
    held = {party: state.own} | _opened(state, delivery)
    _check_vectors(state, vectors)
    pairs: dict[int, bytes] = {}
    masked = {}
    for part, owners in roster.summed(delivery.shared).items():
        if party not in owners:
            continue
        values = masks.unsigned(vectors[part])
        masks.add_stream(values, state.seeds[part], 1)
        for other in sorted(roster.partners(part, party) & set(owners)):
            if other not in pairs:
                pairs[other] = pair_key(state.mask_key, roster, party, other)
            masks.add_stream(values, keys.of_part(pairs[other], part), sign(party, other))
        masked[part] = masks.signed(values)
    return Masked(party, roster, delivery.shared, held), masked


def unmask(state: Masked, request: Request) -> Reveal:
    """Phase 3: shares of each survivor's seeds, or of a dropped party's masking key.

    Seeds are given of the parts that at least a cohort of survivors owns, so that no other can be summed.

    Raises:
        Refused: a party is listed twice, is neither or was never there, or too few survive.
    """
    roster, survivors, dropped = state.roster, set(request.survivors), set(request.dropped)
    if both := survivors & dropped:
        raise Refused(f"hospitals {sorted(both)} are said to have answered and to have dropped out: never both shares")
    if survivors | dropped != set(state.shared) or state.party not in survivors:
        raise Refused(f"of hospitals {list(state.shared)} some are missing in the request, or others are named")
    _check_alive(roster, state.party, survivors)
    summed, seeds = roster.summed(survivors), {}
    for owner in sorted(survivors & state.held.keys()):
        given = opened(roster, owner, state.held[owner])[1]
        seeds[owner] = {part: text for part, text in given.items() if part in summed}
    gone = {owner: opened(roster, owner, state.held[owner])[0] for owner in sorted(dropped & state.held.keys())}
    return Reveal(seeds, gone)


def sign(party: int, other: int) -> int:
    """+1 for the party with the smaller number of a pair, −1 for the other: their masks cancel."""
    return 1 if party < other else -1


def pair_key(mask_key: bytes, roster: Roster, party: int, other: int) -> bytes:
    """s_ij, from one party's private key and the other's public one."""
    pair = (min(party, other), max(party, other))
    return _agreed(mask_key, roster.adverts[other].mask_key, roster, other, "mask", pair)


def opened(roster: Roster, owner: int, text: bytes) -> tuple[bytes, dict[str, bytes]]:
    """A holder's shares of a party's secrets: (of its masking key, of its seeds by part)."""
    first, *rest = (text[at : at + SHARE] for at in range(0, len(text), SHARE))
    return first, dict(zip(roster.parts(owner), rest, strict=True))


def _opened(state: Shared, delivery: Delivery) -> dict[int, bytes]:
    """The neighbours' shares for this party, by sender, when all is as it should be."""
    roster, party = state.roster, state.party
    alive = set(delivery.shared)
    if alive - roster.adverts.keys() or len(alive) < len(delivery.shared) or party not in alive:
        raise Refused(f"hospitals {list(delivery.shared)} are said to have shared keys: some twice, or never listed")
    _check_alive(roster, party, alive)
    wanted = (set(roster.holders(party)) & alive) - {party}
    if set(delivery.texts) != wanted:
        raise Refused(f"shares came from hospitals {sorted(delivery.texts)} and not from {sorted(wanted)}")
    found, bound = {}, digest(roster)
    for sender, sealed in delivery.texts.items():
        try:
            text = keys.unseal(_channel(state.share_key, roster, sender, (sender, party)), sealed, bound)
        except ValueError as error:
            raise Refused(f"shares from hospital {sender}: {error}") from error
        if len(text) != SHARE * (1 + len(roster.parts(sender))):
            raise Refused(f"shares from hospital {sender} have {len(text)} bytes")
        found[sender] = text
    return found


def _channel(share_key: bytes, roster: Roster, other: int, way: tuple[int, int]) -> bytes:
    """The key of what one party sends to another: `way` is (sender, receiver)."""
    return _agreed(share_key, roster.adverts[other].share_key, roster, other, "share", way)


def _agreed(own: bytes, public: bytes, roster: Roster, other: int, purpose: str, parties: tuple[int, int]) -> bytes:
    """`keys.agreed`, or `Refused` where the other's public key is none."""
    try:
        return keys.agreed(own, public, roster.session, purpose, parties)
    except ValueError as error:
        raise Refused(f"the public key of hospital {other}: {error}") from error


def _check_alive(roster: Roster, party: int, alive: set[int]) -> None:
    """Raise `Refused` where a sum over these parties would show too much, or could not be opened."""
    roster.check_cohort(alive)
    if (there := len(alive & set(roster.holders(party)))) < roster.threshold:
        raise Refused(f"{there} holders of hospital {party}'s shares are left, below the threshold {roster.threshold}")


def _check_vectors(state: Shared, vectors: Mapping[str, Tensor]) -> None:
    """Raise `Refused` where they are not those that were advertised."""
    roster, dtype = state.roster, masks.DTYPES[state.roster.terms.bits]
    wanted = roster.adverts[state.party].parts
    if set(vectors) != set(wanted):
        raise Refused(f"vectors of parts {sorted(vectors)}: {sorted(wanted)} were advertised")
    for part, vector in vectors.items():
        if vector.dtype != dtype or tuple(vector.shape) != (wanted[part],):
            raise Refused(f"part {part!r} must be {dtype} of shape [{wanted[part]}], not {vector.dtype} {vector.shape}")
