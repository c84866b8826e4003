"""The server's side of a round: it routes what it cannot read, and opens the sum alone.

    adverts ─► roster ─► deliver ─► request ─► opened

Each function takes the answers of one phase by party; who is not among them has dropped out. An answer that does not
fit is refused with its hospital's number; each has a check of its own, so that a caller may leave that answer out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from fedcl.masking import keys, masks, party, shares
from fedcl.masking.masks import Ring
from fedcl.masking.records import Advert, Delivery, Refused, Request, Reveal, Roster, Sealed, Terms


@dataclass(frozen=True)
class Sums:
    """What the server learns.

    Attributes:
        totals: Σ_i x_i mod R of each part, [length] int32 or int64.
        parties: over which parties.
        refused: parts that were not summed, and why.
    """

    totals: dict[str, Tensor]
    parties: dict[str, tuple[int, ...]]
    refused: dict[str, str]


def roster(session: bytes, adverts: Mapping[int, Advert], terms: Terms) -> Roster:
    """After phase 0: all that advertised.

    Raises:
        Refused: fewer than the cohort, keys that are none, or parts whose lengths differ between parties.
    """
    for sender, advert in adverts.items():
        check_advert(sender, advert)
    made = Roster(session, terms, dict(sorted(adverts.items())))
    made.check()
    return made


def deliver(roster: Roster, sealed: Mapping[int, Sealed]) -> dict[int, Delivery]:
    """After phase 1: what goes to whom, for all that shared.

    Raises:
        Refused: fewer than the cohort, or too few to open somebody's secrets later.
    """
    for sender, answer in sealed.items():
        check_sealed(roster, sender, answer)
    shared = tuple(sorted(sealed))
    _check_alive(roster, shared, shared)
    texts = {p: {s: sealed[s].texts[p] for s in shared if s != p and p in sealed[s].texts} for p in shared}
    return {p: Delivery(shared, texts[p]) for p in shared}


def request(roster: Roster, shared: Collection[int], masked: Mapping[int, Mapping[str, Tensor]]) -> Request:
    """After phase 2: whose masked vectors came, and whose did not.

    Raises:
        Refused: fewer than the cohort are left, or too few to open the secrets of all that shared.
    """
    for sender, vectors in masked.items():
        check_masked(roster, shared, sender, vectors)
    survivors = tuple(sorted(masked))
    _check_alive(roster, shared, survivors)
    return Request(survivors, tuple(sorted(set(shared) - set(survivors))))


def opened(
    roster: Roster, request: Request, masked: Mapping[int, Mapping[str, Tensor]], reveals: Mapping[int, Reveal]
) -> Sums:
    """After phase 3: Σ_i y_i − Σ_i PRG(b_i) − the pairwise masks that the dropped parties left without a partner.

    Raises:
        Refused: fewer than t shares of a secret came, or shares that do not belong together.
    """
    for sender, reveal in reveals.items():
        check_reveal(roster, request, sender, reveal)
    there = {part for vectors in masked.values() for part in vectors}  # one that was left out before stays so
    summed = {part: owners for part, owners in roster.summed(request.survivors).items() if part in there}
    lost = {p: _mask_key(roster, p, reveals) for p in request.dropped}
    totals = {}
    for part, owners in summed.items():
        total = masks.unsigned(masked[owners[0]][part])
        for owner in owners[1:]:
            total += masks.unsigned(masked[owner][part])
        for owner in owners:
            given = {holder: r.seeds[owner][part] for holder, r in reveals.items() if owner in r.seeds}
            masks.add_stream(total, _combined(roster, owner, given), -1)
        _cancel(roster, part, owners, lost, total)
        totals[part] = masks.signed(total)
    late = roster.summed(request.survivors).keys() - summed
    return Sums(totals, summed, roster.refused(request.survivors) | dict.fromkeys(late, "was left out before"))


def check_advert(sender: int, advert: Advert) -> None:
    """Raise `Refused` where the keys are none."""
    if len(advert.mask_key) != keys.KEY or len(advert.share_key) != keys.KEY:
        raise Refused(f"hospital {sender}: public keys have {keys.KEY} bytes")


def check_sealed(roster: Roster, sender: int, answer: Sealed) -> None:
    """Raise `Refused` where the sender is not on the roster, or did not seal for exactly its neighbours."""
    if sender not in roster.adverts:
        raise Refused(f"hospital {sender} shares keys and has not advertised any")
    if set(answer.texts) != set(roster.holders(sender)) - {sender}:
        raise Refused(f"hospital {sender} sealed shares for {sorted(answer.texts)}, who are not its neighbours")


def check_masked(roster: Roster, shared: Collection[int], sender: int, vectors: Mapping[str, Tensor]) -> None:
    """Raise `Refused` where the sender did not share keys, or sends other vectors than were agreed on."""
    if sender not in shared:
        raise Refused(f"hospital {sender} sends masked vectors and has shared no keys")
    wanted = {part for part, owners in roster.summed(shared).items() if sender in owners}
    if set(vectors) != wanted:
        raise Refused(f"hospital {sender} masked parts {sorted(vectors)}, not {sorted(wanted)}")
    dtype, lengths = masks.DTYPES[roster.terms.bits], roster.adverts[sender].parts
    for part, vector in vectors.items():
        if vector.dtype != dtype or tuple(vector.shape) != (lengths[part],):
            raise Refused(f"hospital {sender}, part {part!r}: {vector.dtype} of shape {list(vector.shape)}")


def check_reveal(roster: Roster, request: Request, sender: int, reveal: Reveal) -> None:
    """Raise `Refused` where the sender was not asked, or gives other shares than it was asked for."""
    if sender not in request.survivors:
        raise Refused(f"hospital {sender} reveals shares and was not asked to")
    held, summed = set(roster.holders(sender)), roster.summed(request.survivors)
    seeds = {p: {part for part in roster.parts(p) if part in summed} for p in request.survivors if p in held}
    given = {owner: set(by_part) for owner, by_part in reveal.seeds.items()}
    if given != seeds or set(reveal.keys) != held & set(request.dropped):
        raise Refused(f"hospital {sender} reveals other shares than it was asked for")


def _check_alive(roster: Roster, shared: Collection[int], alive: Collection[int]) -> None:
    """Raise `Refused` where too few are left for a sum, or to open the secrets of all that shared."""
    roster.check_cohort(alive)
    for owner in shared:
        if (there := len(set(roster.holders(owner)) & set(alive))) < roster.threshold:
            raise Refused(f"{there} holders of hospital {owner}'s shares are left, and {roster.threshold} are needed")


def _combined(roster: Roster, owner: int, given: Mapping[int, bytes]) -> bytes:
    """A secret from its shares by holder."""
    try:
        return shares.combine(given, roster.threshold)
    except ValueError as error:
        raise Refused(f"the secrets of hospital {owner}: {error}") from error


def _mask_key(roster: Roster, owner: int, reveals: Mapping[int, Reveal]) -> bytes:
    """The private masking key of a party that dropped out."""
    given = {holder: reveal.keys[owner] for holder, reveal in reveals.items() if owner in reveal.keys}
    key = _combined(roster, owner, given)
    if keys.public(key) != roster.adverts[owner].mask_key:
        raise Refused(f"the shares of hospital {owner}'s masking key do not give the key that it advertised")
    return key


def _cancel(roster: Roster, part: str, owners: tuple[int, ...], lost: Mapping[int, bytes], total: Ring) -> None:
    """Take away what survivors added for pairs whose other half dropped out."""
    for gone, key in lost.items():
        if part not in roster.adverts[gone].parts:
            continue
        for other in sorted(roster.partners(part, gone) & set(owners)):
            pair = party.pair_key(key, roster, gone, other)
            masks.add_stream(total, keys.of_part(pair, part), -party.sign(other, gone))
