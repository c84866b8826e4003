"""What protects the hospitals' records; what a plug-in of `privacy/` fills.

A mechanism has two faces: what it does at a hospital before anything leaves, and what it does at the server. Beside
them it says what each Job releases, before the Job is sent, so that a budget can be planned and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from fedcl.accounting.accountant import Relation
from fedcl.accounting.release import Release, Unit
from fedcl.config import Config
from fedcl.contracts import Method, Params, Phase, Update
from fedcl.noise import Draw

_COUNTS = ("samples", "examples", "n", "tested")
LABELS = (
    "labels/"  # before the figures that are counts of a hospital's samples, by class and by what is wrong with them
)


def is_count(name: str) -> bool:
    """Whether a figure of an answer says how many samples the hospital has: "examples", "labels/samples.3"."""
    return name.rpartition("/")[2].partition(".")[0] in _COUNTS


@dataclass(frozen=True)
class Asked:
    """What a Job reaches at a client: all that accounting needs to know of it."""

    client: int
    phase: Phase
    stage: int
    round: int  # counted over the whole run
    consolidates: bool  # also: "consolidate" is the phase, or comes with training
    tasks: Mapping[str, int]  # the Job's tasks → training samples that the client has of them
    kept: tuple[str, ...]  # earlier tasks whose records the method keeps and trains on
    reads: frozenset[str]  # `Method.records` of the methods
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # task → record sets, see `tasks.sets`

    def records(self, *tasks: str) -> tuple[str, ...]:
        """The client's record sets of these tasks, as the ledger names them; tasks that share records share some."""
        names = {name for task in tasks for name in self.sets.get(task, (task,))}
        return tuple(f"{name} of hospital {self.client}" for name in sorted(names))


class Mechanism:
    """A privacy mechanism. Every hook is optional; options are the fields of the (frozen) subclass."""

    unit: ClassVar[Unit | None] = None  # what its ε is about; None: it claims none
    trains: ClassVar[bool] = False  # it draws the batches and hides each record's gradient: it is a `Trainer`
    linear: ClassVar[bool] = False  # it works on sums: rules that merge must be linear
    covers: ClassVar[frozenset[str]] = frozenset()  # kinds of artefacts that it protects, see `audit`
    hides: ClassVar[frozenset[str]] = frozenset()  # those of which the server sees sums alone
    quiet: ClassVar[bool] = False  # no hospital's number of samples may be told, in whatever form
    mutes: ClassVar[bool] = False  # it takes away figures
    unshown: ClassVar[frozenset[str]] = frozenset()  # figures that it adds to answers, which only its server half sees
    asks: ClassVar[bool] = False  # its server half learns from a figure that it adds to answers

    def neighbours(self) -> Relation:
        """The relation between neighbouring data sets that its ε is about."""
        return "add_remove"

    def unfit(self, config: Config, method: Method) -> str:
        """Why it cannot work, or would protect nothing, with this method or this config; "" if it can."""
        return ""

    def mixes(self, net: torch.nn.Module) -> str:
        """Why it cannot work with this net; "" if it can."""
        return ""

    def meets(self, smallest: int) -> str:
        """Why it cannot work where so few clients train a task in some round; "" if it can."""
        return ""

    def settled(self, cost: Callable[[Self], float]) -> Self:
        """The mechanism with its open options chosen: `cost` is the ε of the whole run with one."""
        return self

    def terms(self, state: Mapping[str, float]) -> dict[str, float]:
        """What clients are told with each Job of training: the clip norm of this round."""
        return {}

    def seal(self, update: Update, phase: Phase, terms: Mapping[str, float], draw: Draw) -> Update:
        """At a hospital, the last thing before an answer leaves."""
        return update

    def blur(self, sums: Params, terms: Mapping[str, float], draw: Draw) -> Params:
        """At the server: the sum over clients of one part's deltas, with noise."""
        return sums

    def learn(self, state: Mapping[str, float], reports: Sequence[Mapping[str, float]], draw: Draw) -> dict[str, float]:
        """At the server, after a round: the state from what the clients' metrics say."""
        return dict(state)

    def releases(self, asked: Asked, config: Config, method: Method) -> list[Release]:
        """What the answer to a Job lets out under this mechanism."""
        return []


class Trainer(Mechanism):
    """A mechanism that protects each record in training: which records a step draws, and what hides them."""

    trains: ClassVar[bool] = True
    clip: float
    fisher_sigma: float  # noise multiplier of a Fisher diagonal, by its sensitivity
    sensitivity: ClassVar[float]  # by C: how far one record can move a sum under the relation

    def told(self, terms: Mapping[str, float]) -> Self:
        """The mechanism as the server settled it."""
        return self

    def fitted(self, samples: int, batch_size: int) -> Self:
        """The mechanism for a client with so many samples of a task."""
        return self

    def rate(self, samples: int, batch_size: int) -> float:
        """q, the chance of a record to be in a step, in (0, 1]; 1 is counted where the draw is not random."""
        raise NotImplementedError(f"{type(self).__name__} has no rate")

    def size(self, samples: int, batch_size: int) -> float:
        """Records of a step, on average: the sum of gradients is divided by it."""
        raise NotImplementedError(f"{type(self).__name__} has no size")

    def touches(self, samples: int, batch_size: int, epochs: int) -> int:
        """How many steps of a round can touch one record."""
        raise NotImplementedError(f"{type(self).__name__} has no touches")

    def rows(self, samples: int, batch_size: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
        """The rows of each step of a round, int64, maybe none."""
        raise NotImplementedError(f"{type(self).__name__} has no rows")

    def noised(self, sums: Params, state: Params, draw: Draw) -> tuple[Params, Params]:
        """A step's sums of clipped gradients with noise, and what is kept for the next step's."""
        raise NotImplementedError(f"{type(self).__name__} has no noised")
