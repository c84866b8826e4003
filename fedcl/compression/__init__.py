"""How the deltas of training travel from a hospital to the server: one file each, see `contracts.Compression`.

Only the deltas of parameters are compressed. What a method sends beside them, counts and sums are exact, and so is all
that comes from the server.
"""

from __future__ import annotations

import torch

from fedcl import plugins
from fedcl.config import Config
from fedcl.contracts import Compression, FedclError, Memory, Params

RESIDUAL = "residual/"  # before a parameter's name, in the client's memory: of its deltas, what was not sent yet
_HEADER = 128  # bytes before an array's values on the wire, beside its name


def build(config: Config) -> Compression | None:
    """The compression of a config; None where deltas travel as they are.

    Raises:
        FedclError: there is no such option, or options of another compression are given.
        UnknownPlugin: there is no such compression.
    """
    name = config.federation.compress
    if unused := sorted(set(config.compression) - {name}):
        raise FedclError(f"compression.{unused[0]}: options of a rule that federation.compress = {name!r} does not use")
    if name == "none":
        return None
    made: Compression = plugins.make("compression", name, config.compression.get(name, {}))
    return made


def shrink(rule: Compression, deltas: Params, memory: Memory, generator: torch.Generator) -> tuple[Params, Memory]:
    """A client's deltas → (what it sends, its memory).

    A rule that remembers sends the deltas plus what it still owes, and owes what of that it does not send (error
    feedback: Seide et al. 2014; Stich et al. 2018, arXiv 1809.07599, algorithm 1). An entry that did not move in this
    round is sent nothing: what a method froze stays as it is, and what is owed there waits.
    """
    if not deltas:
        return {}, memory
    if not rule.remembers:
        return rule.encode(deltas, generator), memory
    owed = {name: memory.get(RESIDUAL + name, torch.zeros_like(delta)) for name, delta in deltas.items()}
    wanted = {name: torch.where(delta != 0, delta + owed[name], 0.0) for name, delta in deltas.items()}
    sent = rule.encode(wanted, generator)
    arrived = rule.decode(sent, deltas)
    left = {n: torch.where(delta != 0, wanted[n] - arrived[n], owed[n]) for n, delta in deltas.items()}
    return sent, memory | {RESIDUAL + name: value for name, value in left.items()}


def forget(memory: Memory) -> Memory:
    """The memory without what is owed: the parameters that it was owed to are no more."""
    return {name: value for name, value in memory.items() if not name.startswith(RESIDUAL)}


def restore(rule: Compression, sent: Params, like: Params) -> Params:
    """What a client sent → its deltas, by the names, shapes and dtypes of `like`. Values may be any.

    Raises:
        FedclError: it is not what this compression sends.
    """
    if not like:
        return sent  # nothing was to move, and whatever came is too much
    try:
        return rule.decode(sent, like)
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise FedclError(f"its compressed deltas cannot be read: {error}") from error


def size(arrays: Params) -> int:
    """Bytes that arrays take on the wire, with their names and heads."""
    return sum(value.nbytes + _HEADER + len(name) for name, value in arrays.items())
