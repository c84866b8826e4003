"""Privacy mechanisms, one file each, and their combination (`dp-sgd+secagg`).

Without any, nothing but isolation protects the records.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from fedcl import infer, methods, noise, plugins, rng
from fedcl.accounting.release import Release
from fedcl.config import WATCHING, Config
from fedcl.contracts import FedclError, Job, Memory, Params, Update
from fedcl.mechanism import Asked, Mechanism, Trainer
from fedcl.merge import rules
from fedcl.methods import Combination
from fedcl.noise import Draw
from fedcl.privacy.secagg import SecAgg

_NOT_FINITE = 1e4  # a figure in the place of one that is none


class Guard:
    """The mechanisms of a run, in the order written; without any it lets everything through.

    Args:
        config: the experiment.
        method: what is protected.
        parts: by name, each with its options.

    Raises:
        FedclError: one of them cannot work with another, the method, or the config.
    """

    def __init__(self, config: Config, method: Combination, parts: Mapping[str, Mechanism]) -> None:
        self.config, self.method, self.parts = config, method, dict(parts)
        trains = [name for name, part in self.parts.items() if part.trains]
        if len(trains) > 1:
            raise FedclError(f"mechanisms {' and '.join(trains)} both make the gradients of training; at most one may")
        if len(units := {part.unit: name for name, part in self.parts.items() if part.unit}) > 1:
            raise FedclError(
                f"mechanisms {' and '.join(units.values())} claim an ε for each {' and each '.join(map(str, units))}; "
                "a run's budget is about one of them: take one"
            )
        if units and config.data.own and not config.privacy.secure_rng:
            raise FedclError(
                "data.own: noise that follows from the run's seed hides nobody's data; take --secure-rng "
                "(privacy.secure_rng = true)"
            )
        self._trainer = trains[0] if trains else ""
        # What hides updates in a sum.
        self.sums = next((part for part in self.parts.values() if isinstance(part, SecAgg)), None)
        self._check()

    def _check(self) -> None:
        aggregator, merger = rules(self.config)
        asked = self.config.model.infer != "auto" and infer.needs_statistics(self.config.model)  # "auto" asks nothing
        for name, part in self.parts.items():
            if part.linear and not (aggregator.linear and (merger.linear or merger.stays)):
                raise FedclError(
                    f"mechanism {name!r} works on sums: take federation.aggregator and merger that are linear"
                )
            if (part.unit or part.hides) and asked:
                raise FedclError(
                    f"mechanism {name!r} does not cover the sums by which model.infer = {self.config.model.infer!r} "
                    "finds a sample's task; take 'entropy' or 'energy'"
                )
            if why := part.unfit(self.config, self.method):
                raise FedclError(f"mechanism {name!r} {why}")
        names = list(self.parts)
        for place, name in enumerate(names):
            after = {*names[place + 1 :], *(n for n in names if self.parts[n] is self.sums)}
            mute = [n for n in names if n in after and self.parts[n].mutes]
            if self.parts[name].asks and mute:
                raise FedclError(f"mechanism {name!r} learns its clip norm from a figure that {mute[0]!r} takes away")

    def __bool__(self) -> bool:
        return bool(self.parts)

    def trainer(self, job: Job) -> Trainer | None:
        """The part that makes the gradients, as the server settled it."""
        part = self.parts.get(self._trainer)
        return part.told(_view(job.terms, self._trainer)) if isinstance(part, Trainer) else None

    def fits(self, net: nn.Module, smallest: int) -> None:
        """Raise FedclError where a mechanism cannot work with the net, or with so few clients at a task."""
        for name, part in self.parts.items():
            if why := part.mixes(net) or part.meets(smallest):
                raise FedclError(f"mechanism {name!r} {why}")

    def settled(self, cost: Callable[[Guard], float]) -> Guard:
        """With open options chosen; `cost` is the ε of a whole run under a guard."""
        parts = dict(self.parts)
        for name, part in self.parts.items():

            def alone(other: Mechanism, name: str = name) -> float:
                return cost(Guard(self.config, self.method, {name: other}))

            try:
                parts[name] = part.settled(alone)
            except ValueError as error:
                raise FedclError(f"mechanisms.{name}.{error}") from error
        return Guard(self.config, self.method, parts)

    def releases(self, asked: Asked) -> list[Release]:
        """What the answer to a Job lets out under the mechanisms."""
        return [each for part in self.parts.values() for each in part.releases(asked, self.config, self.method)]

    def covering(self, kind: str) -> list[str]:
        """The mechanisms that cover a kind of artefact, see `audit`."""
        return [name for name, part in self.parts.items() if kind in part.covers]

    @property
    def unit(self) -> str:
        """What an ε is about; "" where none is claimed."""
        return next((part.unit for part in self.parts.values() if part.unit), "")

    def shown(self, name: str) -> bool:
        """Whether a figure of an answer may be seen of each hospital: not one of which only the noised sum is."""
        mechanism, _, short = name.partition("/")
        return mechanism not in self.parts or short not in self.parts[mechanism].unshown

    @property
    def apart(self) -> bool:
        """Whether what each hospital sends may be shown by itself: noise on sums, or masks, protect sums alone."""
        return not any(part.linear for part in self.parts.values())

    def bounded(self, kind: str) -> bool:
        """Whether an ε speaks of a kind of artefact: to be summed, or to stay, is no bound."""
        return any(part.unit and kind in part.covers for part in self.parts.values())

    def seen(self, kind: str) -> str:
        """Who sees an artefact of a kind, in plain words."""
        if any(kind in part.hides for part in self.parts.values()):
            return "the server only the sum over hospitals"
        return "the server, of each hospital" + ("; the others their mean" if kind == "update" else "")

    # ── between server and hospital ───────────────────────────────────────────────────────────────────────────────

    def terms(self, state: Mapping[str, float]) -> dict[str, float]:
        """What clients are told with a Job of training."""
        return {f"{n}/{key}": v for n, part in self.parts.items() for key, v in part.terms(_view(state, n)).items()}

    def seal(self, update: Update, job: Job) -> Update:
        """At a hospital, before an answer leaves."""
        for name, part in self.parts.items():
            sealed = part.seal(update, job.phase, _view(job.terms, name), self.draw(name, update.client, job.round))
            update = replace(sealed, metrics=_marked(update.metrics, sealed.metrics, name))
        if self.unit:  # an answer with a figure that is not finite is rejected: no record may decide on that
            figures = {name: v if math.isfinite(v) else _NOT_FINITE for name, v in update.metrics.items()}
            update = replace(update, metrics=figures)
        return update

    def weighed(self, update: Update, memory: Memory) -> Update:
        """With the bytes that the hospital keeps, unless counts must not show: they tell how many samples it has."""
        if any(part.quiet for part in self.parts.values()):
            return update
        return replace(update, metrics={**update.metrics, "memory": float(sum(v.nbytes for v in memory.values()))})

    def blur(self, sums: Params, state: Mapping[str, float], group: int, number: int) -> Params:
        """At the server: the sum over a group's clients of one part's deltas."""
        terms = self.terms(state)
        for name, part in self.parts.items():
            sums = part.blur(sums, _view(terms, name), self.draw(f"{name} {min(sums)}", group, number))
        return sums

    def learn(
        self, state: Mapping[str, float], reports: Sequence[Mapping[str, float]], group: int, number: int
    ) -> dict[str, float]:
        """At the server, after a round: (state, the metrics of the answers) → state."""
        found = dict(state)
        for name, part in self.parts.items():
            own = [_view(report, name) for report in reports]
            learned = part.learn(_view(state, name), own, self.draw(f"{name} state", group, number))
            found |= {f"{name}/{key}": value for key, value in learned.items()}
        return found

    @property
    def secret(self) -> bool:
        """Whether all that a hospital draws in training has to be unknown to who knows the seed.

        Draws go by a record's place, so one record more shifts those of all that come after it: neighbouring runs are
        alike but for one record only where nobody knows the draws.
        """
        return bool(self._trainer) and self.config.privacy.secure_rng

    def generator(self, purpose: str, client: int, number: int, task: int = -1) -> torch.Generator:
        """What a hospital draws in training: records, dropout's masks, labels of a Fisher diagonal, augmentation."""
        return noise.unforeseen() if self.secret else rng.torch_stream(self.config.seed, purpose, client, task, number)

    def draw(self, purpose: str, client: int, number: int) -> Draw:
        """Noise that no other purpose, client and round has, and no other settings of the same seed."""
        if self.config.privacy.secure_rng:
            return noise.secure
        purpose = f"privacy {purpose} {self._salt}"
        return functools.partial(
            noise.seeded, generator=rng.torch_stream(self.config.seed, purpose, client, round=number)
        )

    @functools.cached_property
    def _salt(self) -> str:
        """All that decides what the noise is put on: with the same noise on two sums, their difference has none."""
        content = self.config.model_dump(exclude=WATCHING | {"run": True}) | {"precision": self.config.run.precision}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def build(config: Config, method: Combination | None = None) -> Guard:
    """The mechanisms of a config.

    Raises:
        FedclError: one cannot work, is named twice, or there are options of one that is not used.
        UnknownPlugin: there is none of a name.
    """
    names = [] if config.privacy.mechanism == "none" else plugins.split(config.privacy.mechanism)
    if unused := sorted(set(config.mechanisms) - set(names)):
        raise FedclError(
            f"mechanisms.{unused[0]}: options of a mechanism that privacy.mechanism = {config.privacy.mechanism!r} "
            "does not use"
        )
    if len(set(names)) < len(names):
        raise FedclError(f"privacy.mechanism = {config.privacy.mechanism!r} names one twice")
    parts = {name: plugins.make("privacy", name, config.mechanisms.get(name, {})) for name in names}
    return Guard(config, method or methods.build(config), parts)


def _view(values: Mapping[str, float], name: str) -> dict[str, float]:
    return {key.removeprefix(f"{name}/"): value for key, value in values.items() if key.startswith(f"{name}/")}


def _marked(before: Mapping[str, float], after: Mapping[str, float], name: str) -> dict[str, float]:
    """Metrics after a mechanism, those that it added under its name."""
    return {key if key in before else f"{name}/{key}": value for key, value in after.items()}
