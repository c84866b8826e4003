"""Alarms: what a run's own records say that somebody should look at. None changes what is learned.

They see each record once, in the order of metrics.jsonl, and nothing else: a resumed run has them read what there is,
and they are where they were. Their own records (phase `alarm`) say who, which task, how much (`value`), why (`note`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fedcl.config import Config
from fedcl.federation import Federation

Record = dict[str, Any]
_IN_A_ROW = 3  # rounds: updates of honest hospitals stand out now and then
_STAYS = 2  # rounds: the merged model may be far from one small hospital's labels for one
_FEWEST = 10  # samples that a share is taken of
_SURE = 3.0  # standard errors by which a hospital's labels must stand out


class Alarms:
    """The rules of the config's section `alarms`, and what they remember.

    Args:
        config: the experiment.
        federation: for who trained what when; samples are not touched.
    """

    def __init__(self, config: Config, federation: Federation) -> None:
        self.rules = config.alarms
        self._rounds = config.train.rounds
        heads = config.model.heads
        outputs = max(len(t.classes) for t in federation.tasks) if heads == "task" else federation.outputs(heads)
        self._chance = math.log(max(outputs, 2))  # cross-entropy of guessing, in nats
        self._met: dict[str, int] = {}  # task → the stage in which anybody first trained it
        for stage, clients in enumerate(federation.schedule):
            for index in {index for now in clients for index in now}:
                self._met.setdefault(federation.tasks[index].id, stage)
        self._best: dict[tuple[str, str], float] = {}  # (task, figure) → accuracy
        self._lost: dict[tuple[str, str], int] = {}  # … → how many thresholds were told already
        self._lowest: dict[tuple[int, Any], float] = {}  # (stage, client) → loss
        self._high: dict[tuple[int, Any], int] = {}  # … → rounds in a row beyond the limit
        self._strange: dict[tuple[str, int, Any], int] = {}  # (figure, stage, client) → rounds in a row
        self._counts: dict[Any, dict[str, float]] = {}  # hospital → what it counted at the end of this stage …
        self._tasks: dict[Any, str | None] = {}  # … of which task
        self._told: set[tuple[Any, ...]] = set()

    def take(self, record: Mapping[str, Any]) -> list[Record]:
        """One record; the alarms that it raises, as records. Each is raised once a stage, hospital and task."""
        rule: Callable[[Mapping[str, Any]], Iterator[Record]] | None = {
            ("end", "accuracy"): self._forgetting,
            ("end", "accuracy_inferred"): self._forgetting,
            ("train", "loss"): self._divergence,
            ("drift", "cosine"): self._drift,
            ("drift", "norm"): self._drift,
            ("evaluate", "bytes_up"): self._labels,  # the last of an evaluation's records that is always there
        }.get((record["phase"], record["name"]))
        if not self.rules.on:
            return []
        if record["phase"] == "labels":
            self._counts.setdefault(record["client"], {})[record["name"]] = record["value"]
            self._tasks[record["client"]] = record["task"]
        found = []
        about = {name: record[name] for name in ("stage", "round", "client", "task")} | {"phase": "alarm"}
        for alarm in rule(record) if rule else ():
            full = about | alarm
            key = (full["stage"], full["client"], full["task"], full["name"])
            if key not in self._told:
                self._told.add(key)
                found.append(full)
        return found

    def _forgetting(self, record: Mapping[str, Any]) -> Iterator[Record]:
        """A task's pooled accuracy against its best; told again where it sinks by as much once more."""
        task, figure, now = record["task"], record["name"], record["value"]
        limit = self.rules.forgetting
        if record["client"] is not None or not limit or not 0 <= self._met.get(task, math.inf) <= record["stage"]:
            return
        best = self._best.setdefault((task, figure), now)
        self._best[task, figure] = max(best, now)
        steps = int((best - now) / limit + 1e-9)
        if steps > self._lost.get((task, figure), 0):
            self._lost[task, figure] = steps
            how = "inferred" if figure.endswith("inferred") else "known"
            yield {
                "name": "forgetting" if how == "known" else "forgetting_inferred",
                "value": best - now,
                "note": f"accuracy fell from {100 * best:.1f} to {100 * now:.1f} %, the task {how}",
            }

    def _divergence(self, record: Mapping[str, Any]) -> Iterator[Record]:
        """A hospital's loss against guessing, where it stays high and does not sink."""
        loss, key = record["value"], (record["stage"], record["client"])
        limit = self.rules.divergence
        lowest = self._lowest.get(key, math.inf)
        self._lowest[key] = min(lowest, loss)
        first = record["round"] % self._rounds == 0 and self._rounds > 1  # a new task may begin high
        high = limit > 0 and not first and loss > limit * self._chance
        self._high[key] = self._high.get(key, 0) + 1 if high else 0
        stays = self._high[key] >= min(_STAYS, max(self._rounds - 1, 1))
        if stays and (loss > lowest or math.isinf(lowest)):
            note = f"training loss {loss:.3g}; its lowest in this stage {min(lowest, loss):.3g}, guessing "
            yield {"name": "divergence", "value": loss, "note": f"{note}{self._chance:.3g}"}

    def _drift(self, record: Mapping[str, Any]) -> Iterator[Record]:
        """A hospital's updates against the others', several rounds in a row."""
        figure, value = record["name"], record["value"]
        if figure == "norm":
            strange = 0 < self.rules.drift < value
            note = f"its updates are {value:.3g} × as long as the median hospital's"
        else:
            strange = 0 < self.rules.opposed < -value
            note = f"its updates point against the others': mean cosine {value:.2f}"
        key = figure, record["stage"], record["client"]
        self._strange[key] = self._strange.get(key, 0) + 1 if strange else 0
        if self._strange[key] >= min(_IN_A_ROW, self._rounds):
            name = "drift" if figure == "norm" else "opposed"
            yield {"name": name, "value": value, "note": f"{note}, {self._strange[key]} rounds in a row"}

    def _labels(self, record: Mapping[str, Any]) -> Iterator[Record]:
        """What hospitals counted of their own labels, each against the others."""
        counts, self._counts = self._counts, {}
        for hospital, told in counts.items():
            found = [*self._disagreement(hospital, counts), *self._copies(told), *self._gaps(told)]
            for name, value, note in found:
                yield {"client": hospital, "task": self._tasks[hospital], "name": name, "value": value, "note": note}

    def _disagreement(
        self, hospital: int, counts: Mapping[int, Mapping[str, float]]
    ) -> Iterator[tuple[str, float, str]]:
        """Against what the others' labels of the same classes lead to expect: the model may be poor at some."""
        own, others = counts[hospital], [told for other, told in counts.items() if other != hospital]
        samples = wrong = usual = variance = 0.0
        for name, count in own.items():
            label = name.partition("samples.")[2]
            elsewhere = sum(told.get(name, 0.0) for told in others)
            if label and elsewhere:
                rate = sum(told.get(f"wrong.{label}", 0.0) for told in others) / elsewhere
                samples, wrong = samples + count, wrong + own[f"wrong.{label}"]
                usual, variance = usual + rate * count, variance + max(rate * (1 - rate), 0.05) * count
        limit = max(self.rules.labels * samples, _SURE * math.sqrt(variance))
        if self.rules.labels and samples >= _FEWEST and wrong - usual > limit:
            note = f"the merged model disagrees with {wrong:.0f} of {samples:.0f} training labels; after the other "
            yield "labels", wrong / samples, f"{note}hospitals', {usual:.0f} would be usual for these classes"

    def _copies(self, told: Mapping[str, float]) -> Iterator[tuple[str, float, str]]:
        limit = self.rules.duplicates
        for name, of, what in (
            ("conflicts", "samples", "training samples have an exact copy with another label"),
            ("leaks", "tested", "test samples are also training samples"),
        ):
            share = told.get(name, 0.0) / max(told.get(of, 0.0), 1.0)
            if 0 < limit < share:
                yield "duplicates" if name == "conflicts" else "leakage", share, f"{told[name]:.0f} of its {what}"

    def _gaps(self, told: Mapping[str, float]) -> Iterator[tuple[str, float, str]]:
        share = told.get("gaps", 0.0) / max(told.get("tested", 0.0), 1.0)
        if 0 < self.rules.gaps < share:
            yield (
                "gaps",
                share,
                f"{told['gaps']:.0f} of its test samples are of classes that it has no training sample of",
            )
