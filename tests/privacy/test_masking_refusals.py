"""Where a party or the server does not go on with a masked sum."""

from __future__ import annotations

import base64
import dataclasses

import pytest
import torch
from privacy.rounds import SESSION, Round

from fedcl.errors import FedclError
from fedcl.masking import keys, party, records, sums
from fedcl.masking.records import Advert, Delivery, Masked, Refused, Request, Reveal, Roster, Sealed, Shared, Terms
from fedcl.masking.shares import SHARE

PARTS = {"trunk": 6, "module": 4}


def _round(n=5, terms=None, seed=0):
    vectors = {p: {part: torch.arange(length) + p for part, length in PARTS.items()} for p in range(n)}
    return Round(vectors, terms or Terms(), seed)


def _mask(made, p=0, vectors=None, **changes):
    delivery = dataclasses.replace(made.deliveries[p], **changes)
    return party.mask(made.states[p], delivery, made.vectors[p] if vectors is None else vectors)


def test_below_the_cohort_nobody_goes_on():
    with pytest.raises(Refused, match="2 hospitals are too few: a masked sum is over 3"):
        _round(2).keys()
    with pytest.raises(Refused, match="4 hospitals are too few: a masked sum is over 5"):
        _round(4, Terms(cohort=5)).keys()
    made = _round(3).keys()
    with pytest.raises(Refused, match="2 hospitals are too few"):
        made.share(gone=(1,))
    made = _round(3).keys().share()
    with pytest.raises(Refused, match="2 hospitals are too few"):
        made.mask(gone=(1,))


def test_nor_does_a_party_that_is_asked_to():
    made = _round(3).keys()
    two = Roster(SESSION, Terms(), {p: made.roster.adverts[p] for p in (0, 1)})
    with pytest.raises(Refused, match="2 hospitals are too few"):
        party.share(made.states[0], two)
    made.share()
    with pytest.raises(Refused, match="2 hospitals are too few"):
        _mask(made, shared=(0, 1), texts={1: made.deliveries[0].texts[1]})
    made.mask()
    with pytest.raises(Refused, match="2 hospitals are too few"):
        party.unmask(made.states[0], Request((0, 1), (2,)))


def test_terms_that_hide_nothing_are_refused():
    for bad, said in ({"cohort": 1}, "own numbers"), ({"bits": 16}, "32 or 64"), ({"threshold": -1}, "or 0"):
        with pytest.raises(FedclError, match=said):
            Terms(**bad)
    for threshold in (2, 6):
        with pytest.raises(Refused, match="of 5 holders it must be 3 or more"):
            _round(5, Terms(threshold=threshold)).keys()


def test_fewer_than_the_threshold_open_nothing():
    made = _round(5, Terms(cohort=2)).keys().share().mask()
    with pytest.raises(Refused, match="below the threshold 3"):
        party.unmask(made.states[0], Request((0, 1), (2, 3, 4)))
    with pytest.raises(Refused, match="2 shares for a threshold of 3"):
        made.unmask(gone=(0, 1, 2))


@pytest.mark.parametrize(
    ("survivors", "dropped", "said"),
    [
        ((0, 1, 2, 3), (3, 4), "never both"),
        ((0, 1, 2), (3,), "missing"),
        ((0, 1, 2, 3, 4), (7,), "others are named"),
        ((1, 2, 3, 4), (0,), "missing"),
    ],
)
def test_inconsistent_requests_are_refused(survivors, dropped, said):
    made = _round().keys().share().mask()
    with pytest.raises(Refused, match=said):
        party.unmask(made.states[0], Request(survivors, dropped))


def test_a_state_serves_one_phase():
    made = _round().keys()
    first = records.packed(made.states[0])
    made.share()
    shared = records.packed(made.states[0])
    made.mask()
    masked = records.packed(made.states[0])
    assert [list(state) for state in (first, shared, masked)] == [["Advertised"], ["Shared"], ["Masked"]]
    for kind, state in (Shared, first), (Masked, shared), (Shared, masked), (records.Advertised, masked):
        with pytest.raises(Refused, match="out of turn"):
            records.unpacked(kind, state)


def test_what_a_party_keeps_is_bytes_and_its_secrets_go():
    made = _round().keys().share()
    secrets = [made.states[0].mask_key, made.states[0].share_key, *made.states[0].seeds.values()]
    made.mask()
    (text,) = records.packed(made.states[0]).values()
    assert (text.dtype, text.dim()) == (torch.uint8, 1)
    assert base64.urlsafe_b64encode(made.states[0].held[0]) in text.numpy().tobytes()
    assert not any(base64.urlsafe_b64encode(secret)[:40] in text.numpy().tobytes() for secret in secrets)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[1]",
        b"\xff\xfe",
        b'{"survivors": [0, "x"], "dropped": []}',
        b'{"survivors": [0], "dropped": [], "more": 1}',
        b'{"survivors": 3, "dropped": []}',
    ],
)
def test_malformed_bytes_are_refused(text):
    with pytest.raises(Refused, match="malformed"):
        records.unpacked(Request, {"Request": torch.tensor(list(text), dtype=torch.uint8)})


def test_other_tensors_are_refused():
    for tensor in (torch.zeros(3), torch.zeros((2, 2), dtype=torch.uint8)):
        with pytest.raises(Refused, match="must be bytes"):
            records.unpacked(Request, {"Request": tensor})
    with pytest.raises(Refused, match="out of turn"):
        records.unpacked(Request, {})


def test_a_strange_roster_is_refused():
    made = _round().keys()
    state, roster = made.states[0], made.roster
    other = party.advertise(SESSION, 0, PARTS, Terms())[1]
    replaced = {
        "another round": dataclasses.replace(roster, session=SESSION[::-1]),
        "terms": dataclasses.replace(roster, terms=Terms(cohort=2)),
        "as it advertised": dataclasses.replace(roster, adverts=roster.adverts | {0: other}),
        "same": dataclasses.replace(roster, adverts=roster.adverts | {1: roster.adverts[2]}),  # an advert, replayed
    }
    longer = dataclasses.replace(roster.adverts[1], parts={"trunk": 7, "module": 4})
    replaced["7 entries at hospital 1"] = dataclasses.replace(roster, adverts=roster.adverts | {1: longer})
    low = dataclasses.replace(roster.adverts[1], share_key=bytes(32))
    replaced["public key of hospital 1"] = dataclasses.replace(roster, adverts=roster.adverts | {1: low})
    for said, strange in replaced.items():
        with pytest.raises(Refused, match=said):
            party.share(state, strange)
    with pytest.raises(Refused, match="16"):
        sums.roster(b"short", roster.adverts, Terms())
    with pytest.raises(Refused, match="32 bytes"):
        sums.roster(SESSION, {**roster.adverts, 1: Advert(b"x", b"y", PARTS)}, Terms())
    with pytest.raises(Refused, match="from 0"):
        sums.roster(SESSION, {-1: other} | roster.adverts, Terms())


def test_nothing_to_sum_is_refused():
    adverts = {p: party.advertise(SESSION, p, {f"only_{p}": 3}, Terms())[1] for p in range(4)}
    with pytest.raises(Refused, match="nothing to sum"):
        sums.roster(SESSION, adverts, Terms())


def test_strange_shares_are_refused():
    made, before = _round().keys().share(), _round(seed=1).keys().share()
    texts = made.deliveries[0].texts
    strange = {
        "replayed from another round": texts | {1: before.deliveries[0].texts[1]},
        "another sender's": texts | {1: texts[2]},
        "another receiver's": texts | {1: made.deliveries[3].texts[1]},
        "changed": texts | {1: texts[1][:-1] + bytes([texts[1][-1] ^ 1])},
        "cut": texts | {1: texts[1][:5]},
    }
    for changed in strange.values():
        with pytest.raises(Refused, match="shares from hospital 1"):
            _mask(made, texts=changed)
    for missing in ({p: t for p, t in texts.items() if p != 1}, texts | {0: texts[1]}, texts | {9: texts[1]}):
        with pytest.raises(Refused, match="came from hospitals"):
            _mask(made, texts=missing)
    for shared in ((0, 1, 2, 3, 4, 9), (0, 1, 2, 3, 4, 4), (1, 2, 3, 4)):
        with pytest.raises(Refused, match="some twice, or never listed"):
            _mask(made, shared=shared)


def test_other_vectors_than_were_advertised_are_refused():
    made = _round().keys().share()
    good = made.vectors[0]
    with pytest.raises(Refused, match="were advertised"):
        _mask(made, vectors={"trunk": good["trunk"]})
    for bad in (good["trunk"][:5], good["trunk"].int(), good["trunk"].double(), good["trunk"].view(2, 3)):
        with pytest.raises(Refused, match="must be"):
            _mask(made, vectors=good | {"trunk": bad})


def test_the_server_refuses_what_does_not_fit():
    made = _round().keys().share().mask()
    roster, shared = made.roster, tuple(range(5))
    with pytest.raises(Refused, match="not advertised"):
        sums.check_sealed(roster, 9, Sealed({}))
    with pytest.raises(Refused, match="not its neighbours"):
        sums.check_sealed(roster, 0, Sealed({1: b"", 9: b""}))
    with pytest.raises(Refused, match="shared no keys"):
        sums.check_masked(roster, (0, 1, 2), 3, made.masked[3])
    with pytest.raises(Refused, match="masked parts"):
        sums.check_masked(roster, shared, 3, {"trunk": made.masked[3]["trunk"]})
    with pytest.raises(Refused, match="shape"):
        sums.check_masked(roster, shared, 3, made.masked[3] | {"trunk": made.masked[3]["module"]})


def test_the_server_refuses_other_shares_than_it_asked_for():
    made = _round().keys().share().mask(gone=(4,))
    reveals = {p: party.unmask(made.states[p], made.request) for p in (0, 1, 2, 3)}
    kept = {p: made.masked[p] for p in (0, 1, 2, 3)}
    first = reveals[0]
    both = Reveal(first.seeds, first.keys | {1: first.keys[4]})
    less = Reveal({p: parts for p, parts in first.seeds.items() if p != 2}, first.keys)
    for bad in (both, less):
        with pytest.raises(Refused, match="other shares"):
            sums.opened(made.roster, made.request, kept, reveals | {0: bad})
    with pytest.raises(Refused, match="not asked"):
        sums.opened(made.roster, made.request, kept, reveals | {4: first})
    swapped = Reveal(first.seeds | {1: first.seeds[2]}, first.keys)
    with pytest.raises(Refused, match="secrets of hospital 1"):
        sums.opened(made.roster, made.request, kept, reveals | {0: swapped})
    exchanged = {p: Reveal(r.seeds, {4: r.seeds[1]["trunk"]}) for p, r in reveals.items()}
    with pytest.raises(Refused, match="do not give the key"):
        sums.opened(made.roster, made.request, kept, exchanged)
    assert sums.opened(made.roster, made.request, kept, reveals).parties["trunk"] == (0, 1, 2, 3)


def test_a_delivery_goes_to_its_receiver_alone():
    made = _round().keys().share()
    for p, delivery in made.deliveries.items():
        assert delivery == Delivery(tuple(range(5)), {s: made.sealed[s].texts[p] for s in range(5) if s != p})


def test_a_neighbour_that_seals_too_little_is_refused():
    made = _round().keys().share()
    key = party._channel(made.states[1].share_key, made.roster, 0, (1, 0))
    short = keys.seal(key, bytes(2 * SHARE), records.digest(made.roster))  # shares of two secrets; there are three
    with pytest.raises(Refused, match="hospital 1 have 70 bytes"):
        _mask(made, texts=made.deliveries[0].texts | {1: short})


def test_parties_with_different_rosters_cannot_read_each_other():
    made = _round().keys()
    fewer = dataclasses.replace(made.roster, adverts={p: made.roster.adverts[p] for p in range(4)})
    state, _ = party.share(made.states[0], fewer)
    made.share()
    texts = {p: made.sealed[p].texts[0] for p in (1, 2, 3)}
    with pytest.raises(Refused, match="does not open"):
        party.mask(state, Delivery((0, 1, 2, 3), texts), made.vectors[0])
