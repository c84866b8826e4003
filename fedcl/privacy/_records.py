"""What the mechanisms that protect single records have in common: options, refusals, and what costs what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from torch import nn

from fedcl.accounting.calibration import least
from fedcl.accounting.release import Release, Sampling
from fedcl.clipped import mixing
from fedcl.config import Config
from fedcl.contracts import Aggregator, Method
from fedcl.mechanism import Asked, Trainer
from fedcl.merge import rules
from fedcl.methods import Combination


@dataclass(frozen=True)
class Records(Trainer):
    """Each record's gradient is clipped to C, and Gaussian noise is added to their sum.

    Attributes:
        clip: C, > 0, of a record's gradient over all parameters that train.
        noise: σ by which one record hides in a step; 0 is chosen so that the run costs `epsilon`.
        epsilon: ε > 0 of the whole run for each record, at privacy.delta, where σ is not given.
        fisher_noise: σ_F by σ, > 0, of a Fisher diagonal (EWC), which all records of a task take part in once.
    """

    clip: float = 1.0
    noise: float = 0.0
    epsilon: float = 8.0
    fisher_noise: float = 4.0
    unit: ClassVar[Literal["record"]] = "record"
    name: ClassVar[str]
    covers: ClassVar[frozenset[str]] = frozenset({"update", "upload"})
    sampling: ClassVar[Sampling]
    sensitivity: ClassVar[float] = 1.0  # by C: how far one record can move a sum under the relation

    def __post_init__(self) -> None:
        if self.clip <= 0 or self.noise < 0 or self.epsilon <= 0 or self.fisher_noise <= 0:
            raise ValueError(
                f"clip = {self.clip}, epsilon = {self.epsilon} and fisher_noise = {self.fisher_noise} must be > 0, "
                f"noise = {self.noise} ≥ 0; 0 is chosen for epsilon"
            )

    @property
    def fisher_sigma(self) -> float:  # type: ignore[override]
        """σ_F."""
        return self.noise * self.fisher_noise

    def unfit(self, config: Config, method: Method) -> str:
        """What would let records show past the noise."""
        parts = method.parts if isinstance(method, Combination) else {"method": method}
        if seen := [name for name, part in parts.items() if part.records == "open"]:
            return (
                f"cannot cover method {seen[0]!r}: what it keeps or adds to the loss reads training records openly "
                "(its `records` says so)"
            )
        keep = [name for name, part in parts.items() if part.records == "kept"]
        if len(keep) > 1:
            return f"draws each record once a step, and methods {keep[0]!r} and {keep[1]!r} may keep the same ones"
        if keep and _overlap(config):
            return (
                f"draws each record once a step, and method {keep[0]!r} keeps some that other tasks of the stream have"
            )
        if any(type(rule).measure is not Aggregator.measure for rule in rules(config)):
            return f"does not cover what federation.merger = {config.federation.merger!r} measures on records"
        if config.federation.kind == "joint" or any(part.every_task for part in parts.values()):
            return "draws from one task at a time; joint training and methods that start over train on several"
        if config.train.stream != "offline" or config.train.order != "random":
            return "draws records by itself: train.stream must be 'offline' and train.order 'random'"
        return ""

    def mixes(self, net: nn.Module) -> str:
        """Layers whose statistics mix records."""
        if found := mixing(net):
            return f"needs each record's own gradient, and {found[0]} mixes records: take norm = 'group' (GroupNorm)"
        return ""

    def settled(self, cost: Callable[[Self], float]) -> Self:
        """σ for `epsilon`."""
        if self.noise:
            return self
        return self._with(least(self.epsilon, lambda sigma: cost(self._with(sigma))))

    def _with(self, sigma: float) -> Self:
        return replace(self, noise=sigma)

    def terms(self, state: Mapping[str, float]) -> dict[str, float]:
        """σ, where it was chosen for `epsilon`."""
        return {"noise": self.noise}

    def told(self, terms: Mapping[str, float]) -> Self:
        """The mechanism with the σ that the server settled."""
        return self if self.noise else self._with(terms["noise"])

    def releases(self, asked: Asked, config: Config, method: Method) -> list[Release]:
        """A round's steps, on the task and on what is kept of earlier ones; a Fisher diagonal at a task's end."""
        if asked.phase == "evaluate":
            return []
        ((task, samples),) = asked.tasks.items()
        about: dict[str, Any] = {"hospital": asked.client, "task": task, "stage": asked.stage, "round": asked.round}
        about |= {"mechanism": self.name, "clip": self.clip, "relation": self.neighbours()}
        found = []
        if asked.phase == "train" and samples:
            train = config.train
            found.append(
                Release(
                    artefact="training updates",
                    records=asked.records(task, *asked.kept),
                    sampling=self.sampling,
                    q=self.rate(samples, train.batch_size),
                    sigma=self.noise,
                    steps=self.touches(samples, train.batch_size, train.epochs),
                    **about,
                )
            )
        if asked.consolidates and samples and "fisher" in asked.reads:
            own = asked.records(task)
            found.append(Release(artefact="Fisher diagonal", records=own, sigma=self.fisher_sigma, **about))
        return found


def _overlap(config: Config) -> bool:
    """Whether tasks share records."""
    stream = config.stream
    dealt = [label for group in stream.classes for label in group]
    return stream.kind == "domain" or (stream.kind == "class" and len(set(dealt)) < len(dealt))
