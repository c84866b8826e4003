"""What a method may ask of the net besides the task's own logits; how deltas may travel, and where figures may go."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Generator, Tensor


class Old(Protocol):
    """(params, x [B, …]) → logits [B, outputs] of each softmax over what was learned in earlier stages, `ctx.past`.

    One for each task that has a softmax of its own, otherwise one for all; none without earlier tasks.
    """

    def __call__(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        teacher: bool = False,
        known: Collection[str] | None = None,
    ) -> list[Tensor]:
        """A teacher answers in evaluation mode and takes no gradient; `known` are the tasks to answer for, of all."""
        ...


class Each(Protocol):
    """(params, x [B, …], index [B] of each sample's task) → logits [B, outputs], each by its own task's head.

    -inf where a task has no such output. Tasks are those of now and of `ctx.past`.
    """

    def __call__(
        self, params: Mapping[str, Tensor], x: Tensor, index: Tensor, teacher: bool = False, whole: bool = False
    ) -> Tensor:
        """A teacher answers in evaluation mode and takes no gradient; `whole` opens all classes of a shared head."""
        ...


class Measure(Protocol):
    """(names of parameters, x [N, …], y [N]) → a measure of how important each is, ≥ 0 and of its shape."""

    def __call__(self, names: Collection[str], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Measure at the net's own parameters."""
        ...


@dataclass(frozen=True)
class Event:
    """Something that an observer may show: "start", "round", "growth", "stage", "fault", "alarm", "notice", "stop"."""

    kind: str
    stage: int
    round: int  # of the stage
    facts: Mapping[str, Any]


class Compression:
    """How a client's deltas travel; what a plug-in of `compression/` fills. Options are the fields of the subclass."""

    remembers: ClassVar[bool] = False  # what was not sent stays in the client's memory, for its next deltas
    exact: ClassVar[bool] = False  # what arrives is what was sent, to the bit

    def encode(self, deltas: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """A client's deltas by parameter, at least one → what is sent instead; draws are made on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} has no encode")

    def decode(self, sent: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reverse: deltas with the names, shapes and dtypes of `like`.

        Raises:
            ValueError: `encode` cannot have made this of such deltas. What comes here is not to be trusted.
        """
        raise NotImplementedError(f"{type(self).__name__} has no decode")


@dataclass(frozen=True)
class Tracked:
    """What a tracker is told of the run."""

    name: str  # of its directory
    folder: Path  # for the tracker's own files, RUN/tracking
    identity: str  # of the run, 16 hex digits; a resumed run keeps it
    settings: Mapping[str, str]  # the config, "train.lr" → "0.05"
    id: str = ""  # what the tracker called the run in an earlier sitting; "" is: this is the first


class Tracker:
    """Where a run's figures go besides its directory; what a plug-in of `trackers/` fills.

    One is made for each sitting of a run. The arguments of `__init__` after the first are the options.
    """

    needs: ClassVar[str] = ""  # the module that must be there; `pip install fedcl[<that name>]` brings it
    id: str = ""  # what the tracker calls the run, for the next sitting

    def __init__(self, run: Tracked) -> None:
        raise NotImplementedError(f"{type(self).__name__} has no __init__")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of a round (`step`, counted over the run, never falling), by names such as `end/accuracy/t0`.

        Finite ones only, and each once.
        """
        raise NotImplementedError(f"{type(self).__name__} has no log")

    def end(self, state: str) -> None:
        """The sitting is over; the run is `finished`, `interrupted` or `failed`."""
