"""A hospital's part in a masked sum: what it answers in each phase, and what it remembers from one to the next."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedcl.contracts import Job, Memory, Params, Phase, Update, role
from fedcl.masking import party
from fedcl.masking.records import Advertised, Delivery, Masked, Refused, Request, Roster, Shared, packed, unpacked
from fedcl.masking.roster import Terms
from fedcl.masking.vectors import by_part, length
from fedcl.privacy.secagg import ANSWERS, FIGURES, SecAgg

KEYS, SHARES, UNMASK = "keys", "shares", "unmask"  # the phases beside training, as flags of a Job
SESSION = "session"
_STATE = "secagg/"  # in the client's memory


def parts(arrays: Params, phase: Phase) -> dict[str, Params]:
    """What is summed, by part: the trunk "trunk", tasks' modules, and figures; or answers on test samples."""
    if phase == "evaluate":
        return {ANSWERS: {name: value.double() for name, value in arrays.items()}}
    found = by_part(arrays, lambda name: role(name) or "trunk")
    return found | {FIGURES: {"clipped": torch.zeros(()), "loss": torch.zeros(())}}


def opening(session: Tensor, arrays: Params, phase: Phase) -> Memory:
    """What the server begins a sum with: its session, and how long each part's vector is to be."""
    entries = {f"length/{name}": torch.tensor(length(own)) for name, own in parts(arrays, phase).items()}
    return {SESSION: session, **entries}


def answer(client: int, job: Job, memory: Memory, rule: SecAgg | None) -> tuple[Update, Memory]:
    """A phase beside training: (what is sent, the client's memory).

    Raises:
        Refused: the hospital does not go on with this sum.
    """
    if rule is None:
        raise Refused("this hospital's config names no secure aggregation")
    state, rest = _own(memory)
    if KEYS in job.flags:
        wanted = {name.partition("/")[2]: int(v) for name, v in job.sealed.items() if name != SESSION}
        session = bytes(job.sealed[SESSION].tolist())
        new, said = party.advertise(session, client, wanted, Terms(rule.cohort))
        return _sent(client, packed(said)), rest | _kept(packed(new))
    if SHARES in job.flags:
        shared, sealed = party.share(unpacked(Advertised, state), unpacked(Roster, job.sealed))
        return _sent(client, packed(sealed)), rest | _kept(packed(shared))
    reveal = party.unmask(unpacked(Masked, state), unpacked(Request, job.sealed))
    return _sent(client, packed(reveal)), rest


def goes_on(job: Job) -> bool:
    """Whether a Job is a later phase of a sum."""
    return bool(job.sealed) and SESSION not in job.sealed


def hide(update: Update, job: Job, memory: Memory, rule: SecAgg | None) -> tuple[Update, Memory]:
    """An answer as masked vectors; as it is where nothing is summed."""
    if not (rule and rule.sums(job.phase)):
        return update, memory
    state, rest = _own(memory)
    shared = unpacked(Shared, state)
    parties = len(shared.roster.adverts)
    vectors, cut, entries = {}, 0, 0
    whole, weight = parts(update.arrays, job.phase), update.weight if job.phase == "train" else 1.0
    whole.pop(FIGURES, None)
    for name, own in whole.items():
        vectors[name], clipped = rule.written(name, parties).encode(own, weight)
        cut, entries = cut + clipped, entries + len(vectors[name]) - 1
    if job.phase == "train":
        told = {"clipped": torch.tensor(cut / max(entries, 1)), "loss": torch.tensor(update.metrics.get("loss", 0.0))}
        vectors[FIGURES], _ = rule.written(FIGURES, parties).encode(told, weight)
    new, masked = party.mask(shared, unpacked(Delivery, job.sealed), vectors)
    return replace(update, arrays=masked, weight=0.0, metrics={}, extras={}), rest | _kept(packed(new))


def nothing(params: Params, rule: SecAgg | None) -> Params:
    """The deltas of a client without samples in a round: zeros where they go into a sum, which has a place for them."""
    return {name: torch.zeros_like(value.detach()) for name, value in params.items()} if rule else {}


def fresh() -> Tensor:
    """What names a round's sum: never used before."""
    return torch.frombuffer(bytearray(os.urandom(32)), dtype=torch.uint8)


def _own(memory: Memory) -> tuple[Memory, Memory]:
    """(what the last phase left, all else)."""
    state = {key.removeprefix(_STATE): value for key, value in memory.items() if key.startswith(_STATE)}
    return state, {key: value for key, value in memory.items() if not key.startswith(_STATE)}


def _kept(state: Mapping[str, Tensor]) -> Memory:
    return {_STATE + key: value for key, value in state.items()}


def _sent(client: int, arrays: Params) -> Update:
    return Update(client, arrays, 0.0, {})
