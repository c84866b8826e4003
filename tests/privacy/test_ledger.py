"""Who pays for what: decided by the record sets that releases touch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fedcl.accounting.accountant import Mechanism, epsilon
from fedcl.accounting.ledger import Ledger
from fedcl.accounting.release import Release
from fedcl.accounting.statement import Terms

TERMS = Terms("record", "add_remove", 1e-5, 1437)
SIGMAS = (0.8, 1.0, 1.0, 1.2, 1.5)
GAUSSIAN = {"mechanism": "DP-SGD", "sigma": 10.0, "clip": 1.0}
DP_SGD = {"mechanism": "DP-SGD", "sampling": "poisson", "q": 0.05, "clip": 1.0}


def _release(hospital=0, stage=0, round=0, records=None, artefact="trunk", **terms):
    records = (f"{hospital}/{stage}",) if records is None else records
    return Release(artefact, hospital, f"t{stage}", stage, round, records, **{**GAUSSIAN, **terms})


def _ledger(*releases, terms=TERMS):
    ledger = Ledger(terms)
    ledger.add(releases)
    return ledger


def _exact(steps, sigma=10.0):
    return epsilon([Mechanism(sigma, 1, steps)], 1e-5).pld


def _stream(records):
    return [
        _release(0, stage, 4 * stage + k, records(stage), sigma=sigma, steps=75, **DP_SGD)
        for stage, sigma in enumerate(SIGMAS)
        for k in range(4)
    ]


def test_five_tasks_on_the_same_records_are_sequential():
    ledger = _ledger(*_stream(lambda stage: ("all",)))
    said = [ledger.until(stage).overall().spent for stage in range(5)]
    assert [one.pld for one in said] == pytest.approx([9.310, 11.096, 12.773, 13.695, 14.196], abs=1.5e-3)
    assert [one.rdp for one in said] == pytest.approx([10.478, 12.341, 14.101, 15.068, 15.579], abs=1.5e-3)
    prices = [ledger.price(f"t{stage}").spent.pld for stage in range(5)]
    assert prices == pytest.approx([9.310, 5.795, 5.795, 4.139, 2.890], abs=1.5e-3)
    assert ledger.overall().spent.pld < sum(prices) / 1.9
    assert ledger.task("t3") == ledger.overall(), "the records of the fourth task are those of all"


def test_five_tasks_on_records_of_their_own_are_parallel():
    ledger = _ledger(*_stream(lambda stage: (f"{stage}",)))
    assert ledger.overall().spent.pld == pytest.approx(9.310, abs=1e-3)
    assert ledger.task("t3").spent.pld == pytest.approx(4.139, abs=1e-3)


def test_hospitals_with_records_of_their_own_are_parallel_and_who_sat_out_pays_nothing():
    ledger = _ledger(*(_release(h, 0, r) for h in range(2) for r in range(10)), _release(2, 0, 0, sigma=20.0))
    assert ledger.overall().spent.pld == _exact(10) == ledger.hospital(1).spent.pld
    assert ledger.hospital(2).spent.pld == _exact(1, 20.0)
    assert ledger.hospital(3).spent.pld == 0
    shared = _ledger(*(_release(h, 0, r, ("shared",)) for h in range(2) for r in range(10)))
    assert shared.overall().spent.pld == shared.hospital(0).spent.pld == _exact(20)


def test_replay_costs_the_old_tasks_records_only():
    ledger = _ledger(*(_release(0, stage, stage) for stage in range(3)))
    replayed = ledger.plus([_release(0, 2, 3, ("0/0", "0/2"))])
    assert [replayed.task(f"t{k}").spent.pld for k in range(3)] == [_exact(2), _exact(1), _exact(2)]
    assert replayed.overall().spent.pld == _exact(2), "no unit is in both sets"


def test_a_late_fisher_costs():
    ledger = _ledger(_release(0, 0, 0), _release(0, 1, 1))
    late = _release(0, 1, 2, ("0/0",), artefact="Fisher", mechanism="DP Fisher", sigma=2.0)
    assert ledger.projected([late]).spent == epsilon([Mechanism(10.0), Mechanism(2.0)], 1e-5)
    assert ledger.overall().spent.pld == _exact(1), "what is projected is not yet spent"


def test_a_hospital_as_unit_pays_for_all_its_tasks():
    terms = Terms("hospital", "add_remove", 1e-5, 5)
    ledger = _ledger(*(_release(h, s, s, unit="hospital") for h in range(5) for s in range(3)), terms=terms)
    assert ledger.overall().spent.pld == ledger.hospital(4).spent.pld == _exact(3)
    assert ledger.price("t1").spent.pld == _exact(1)


def test_order_does_not_matter_and_a_checkpoint_keeps_all():
    releases = [*_stream(lambda stage: (f"{stage}", "all")), _release(1, 0, 3, mechanism="none", artefact="counts")]
    ledger, reverse = _ledger(*releases), _ledger(*reversed(releases))
    back = Ledger.unpack(ledger.pack())
    assert ledger.overall() == reverse.overall() == back.overall()
    assert ledger.hospital(1) == reverse.hospital(1) == back.hospital(1)
    assert back.uncovered() == ledger.uncovered()
    assert back.pack() == ledger.pack()
    more = [_release(0, 5, 20)]
    assert back.projected(more) == ledger.projected(more)


def test_a_long_run_stays_small_and_what_came_twice_counts_twice():
    rounds = [_release(h, 0, r) for r in range(3000) for h in range(3)]
    ledger = _ledger(*rounds)
    assert len(ledger.pack()) < 2000
    assert ledger.overall().lines[0].steps == 3000
    assert ledger.plus([rounds[0]]).overall().lines[0].steps == 3001


def test_a_statement_has_its_terms():
    ledger = _ledger(*(_release(0, 0, r, sigma=1.464, steps=100, **DP_SGD) for r in range(3)))
    assert str(ledger.overall()) == (
        "ε = 2.999 at δ = 1e-5 per record (add/remove, Poisson q = 0.05, σ = 1.464, C = 1, 300 steps; PLD; RDP 3.305)"
    )
    bare = _ledger(_release(sigma=0.0))
    assert str(bare.overall()).startswith("ε = ∞ at δ = 1e-5 per record (add/remove, q = 1, σ = 0, C = 1, 1 step;")


def test_replace_one_says_within_what():
    terms = replace(TERMS, relation="replace_one")
    said = str(_ledger(_release(relation="replace_one", sigma=2.0, **DP_SGD), terms=terms).overall())
    assert "replace-one within a record set" in said
    assert "no RDP of this sampling" in said


def test_what_is_not_protected_is_listed_and_limits_the_statement():
    counts = _release(0, 0, 0, mechanism="none", artefact="label counts")
    public = _release(0, 0, 0, (), mechanism="none", artefact="task id")
    other = _release(0, 0, 0, unit="hospital", artefact="mean")
    ledger = _ledger(_release(), counts, public, other, _release(1))
    assert ledger.uncovered() == (counts, public, other)
    assert str(ledger.hospital(0)).endswith("it holds for trunk only, and says nothing about label counts and mean")
    assert ledger.hospital(0).spent.pld == _exact(1)
    assert not ledger.hospital(1).uncovered, "what a hospital's neighbour sent is not about its records"
    assert str(_ledger(counts).overall()).endswith("for nothing that was released, and says nothing about label counts")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": 0.0}, "clip norm C = 0.0"),
        ({"sigma": -1.0}, "σ = -1.0"),
        ({"q": 0.5}, "q = 0.5 needs sampling"),
        ({"q": 0.0, "sampling": "poisson"}, "q = 0.0"),
        ({"q": 0.5, "sampling": "without_replacement"}, "without replacement"),
        ({"records": ()}, "record sets"),
        ({"unit": "client"}, "'client'"),
    ],
)
def test_a_release_that_means_nothing_says_why(change, message):
    with pytest.raises(ValueError, match=message):
        _release(**change)


@pytest.mark.parametrize(
    ("delta", "units", "message"), [(0.2, 5, "δ = 0.2 with n = 5"), (0.0, 5, "δ = 0.0"), (1e-5, 0, "n = 0")]
)
def test_delta_is_below_one_unit(delta, units, message):
    with pytest.raises(ValueError, match=message):
        Terms("record", "add_remove", delta, units)


def test_no_noise_is_no_privacy():
    assert _ledger(_release(), _release(sigma=0.0)).overall().spent.pld == math.inf
