"""The only round loop: plan, send, collect, merge, checkpoint; at the end of a stage consolidate, then evaluate.

It knows nothing of Flower: `ask` carries Jobs to clients and brings Answers back in the order of the clients.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from fedcl import infer, plugins, rng, scores
from fedcl.collect import Collection
from fedcl.config import Config
from fedcl.contracts import Ask, Event, Job, Params, Update
from fedcl.federation import Federation
from fedcl.merge import Merge
from fedcl.methods import Combination
from fedcl.models import dynamic_net
from fedcl.plan import Jobs, Plan
from fedcl.run_dir import RunDir
from fedcl.state import Group, State

_CHECKPOINT_SHARE = 0.05  # of the time, where the config does not say how often


class Interrupted(Exception):
    """The run was asked to stop, and has saved itself."""


class Server:
    """One run from its first round, or from where a checkpoint left it, to its last.

    Args:
        config: the experiment.
        federation: who has which task when; the server looks at the schedule, never at samples.
        method: for what its server half does.
        ask: the clients.
        run: where results and checkpoints go.
        notify: told of every round, stage and fault.
        flush: makes the clients of this process write their memories, before a checkpoint refers to them.
        stop: asked after every round; true ends the run there, saved.
    """

    def __init__(
        self,
        config: Config,
        federation: Federation,
        method: Combination,
        ask: Ask,
        run: RunDir,
        notify: Callable[[Event], None] = lambda event: None,
        flush: Callable[[], None] = lambda: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config, self.federation, self.method = config, federation, method
        self._ask, self._run = ask, run
        self._notify, self._flush, self._stop = notify, flush, stop
        self._aggregator = plugins.load("aggregators", config.federation.aggregator)()
        self._merger = plugins.load("mergers", config.federation.merger)()
        with rng.torch_global(config.seed, "init"):
            self._net = dynamic_net.build(config.model, federation.shape, len(federation.classes))
        self._plan = Plan(config, federation, method, self._net.owner)
        self.state = State([Group(clients) for clients in federation.groups])

    def run(self, state: State | None = None) -> None:
        """All stages that are left.

        Raises:
            FedclError: a round has too few valid answers, or the directory cannot be written.
            Interrupted: `stop` said so.
        """
        stages = len(self.federation.schedule)
        self.state = state or self._start()
        facts = {"stages": stages, "rounds": self.config.train.rounds}
        self._notify(Event("start", self.state.stage, self.state.round, facts))
        for stage in range(self.state.stage, stages):
            self._open(stage)
            for number in range(self.state.round, self.config.train.rounds):
                self._round(stage, number)
                self.state.round = number + 1
                self._save()
            self._close(stage)
            self.state.stage, self.state.round, self.state.begun, self.state.done = stage + 1, 0, [], []
            self._save(always=True)

    def _start(self) -> State:
        """The state before the first round: everybody's starting weights, scored where they can answer."""
        if self.config.model.weights:
            dynamic_net.load_weights(self._net, self.config.model.weights)
        for group in self.state.groups:
            group.params = {name: value.detach().clone() for name, value in self._net.state_dict().items()}
        if self._net.owner("") == dynamic_net.SHARED:
            self._evaluate(-1, range(len(self.federation.classes)))
        return self.state

    def _open(self, stage: int) -> None:
        """Add the modules of tasks that come for the first time, alike in all groups."""
        for past in range(stage + 1):  # the net of a resumed run needs the earlier ones too
            for task in self._plan.tasks(past, range(len(self.federation.members))):
                if self._net.owner(task.id) == task.id and task.id not in self._net.tasks:
                    with rng.torch_global(self.config.seed, "init", task=task.index):
                        self._net.add_task(task.id, len(task.classes), self.config.model.expansion_units)
        fresh = self._net.state_dict()
        met = set(self.state.seen)
        for group in self.state.groups:
            tasks = self._plan.tasks(stage, group.clients)
            met.update(c for task in tasks for c in task.classes)
            for name, value in self._plan.needed(fresh, [task.index for task in tasks]).items():
                if name not in group.params:
                    group.params[name] = value.detach().clone()
        self.state.seen = sorted(met)

    def _round(self, stage: int, number: int) -> None:
        """Train, collect, merge, once."""
        begin = time.perf_counter()
        records: list[dict[str, Any]] = []
        totals = {"bytes_down": 0, "bytes_up": 0, "clients": 0}
        for group in self.state.groups:
            self._catch_up(group, stage)
            merge, uploads = Merge(self._aggregator, self._merger), []
            collection = self._collection(self._plan.training(self.state, group, stage, number), stage, number)
            for update in collection.updates(self._ask, self.config.federation.timeout):
                self._accept(group, update)
                records += self._train_records(stage, update)
                if update.weight > 0:
                    merge.add(update)
                    uploads.append((update.weight, update.extras))
                    if self._plan.on_local(number):
                        self.state.done.append(update.client)
            collection.require(self.config.federation.quorum, f"stage {stage + 1}, round {number + 1}")
            group.params, group.rules = merge.apply(group.params, group.rules)
            if self._plan.on_local(number):
                self._absorb(group, stage, uploads)
            records += collection.records
            totals["bytes_down"] += collection.bytes_down
            totals["bytes_up"] += collection.bytes_up
            totals["clients"] += collection.answered
        facts = totals | {"seconds": time.perf_counter() - begin}
        self._log(stage, number, records + [{"phase": "train", "name": n, "value": v} for n, v in facts.items()])
        losses = [r["value"] for r in records if r["name"] == "loss"]
        accuracies = [r["value"] for r in records if (r["phase"], r["name"]) == ("validate", "accuracy")]
        self._notify(Event("round", stage, number, facts | {"loss": _mean(losses), "accuracy": _mean(accuracies)}))

    def _close(self, stage: int) -> None:
        """Consolidate on the merged model, then evaluate it at every hospital."""
        for group in self.state.groups:
            if self.config.model.gate_threshold > 0:
                self._close_gates(group)
            if self._plan.consolidates:
                current = [c for c in group.clients if self.federation.schedule[stage][c]]
                waiting = [c for c in current if c not in self.state.done]
                late = self._consolidate(group, stage, waiting)
                for client in late:
                    self.state.late.setdefault(client, []).append(stage)
                if late:
                    group.snapshots[stage] = dict(group.params)
        self._evaluate(stage, self.state.seen)

    def _consolidate(self, group: Group, stage: int, clients: Sequence[int]) -> list[int]:
        """Let clients keep what their method keeps of the stage's task; returns those that did not answer."""
        last = self.config.train.rounds - 1
        jobs = self._plan.consolidation(self.state, group, stage, clients)
        collection = self._collection(jobs, stage, last)
        uploads = []
        for update in collection.updates(self._ask, self.config.federation.timeout):
            self._accept(group, update)
            uploads.append((update.weight, update.extras))
            clients = [client for client in clients if client != update.client]
        self._absorb(group, stage, uploads)
        self._log(stage, last, collection.records + _traffic("consolidate", [collection]))
        return list(clients)

    def _catch_up(self, group: Group, stage: int) -> None:
        """Clients that missed a consolidation do it now, on the model of that stage, before they train again."""
        for past in sorted({s for c in group.clients for s in self.state.late.get(c, [])}):
            clients = [c for c in group.clients if past in self.state.late.get(c, [])]
            then = replace(group, params=group.snapshots[past])
            late = self._consolidate(then, past, clients)
            group.method, group.broadcast, group.statistics = then.method, then.broadcast, then.statistics
            group.broadcast_at = then.broadcast_at
            for client in set(clients) - set(late):
                self.state.late[client].remove(past)
            if not late:
                del group.snapshots[past]

    def _absorb(self, group: Group, stage: int, uploads: list[tuple[float, Params]]) -> None:
        """What consolidation sent: sums for inferring the task, and uploads of the method."""
        group.statistics = infer.merge(group.statistics, [extras for _, extras in uploads])
        if "server" in self.method.hooks():
            own = [(weight, infer.without(extras)) for weight, extras in uploads]
            group.method, group.broadcast = self.method.server(group.params, group.method, own)
            group.broadcast_at = max(stage, group.broadcast_at + 1)

    def _evaluate(self, stage: int, seen: Sequence[int]) -> None:
        """Score each group's model on the test data of its hospitals."""
        last = self.config.train.rounds - 1
        collections, replies = [], []
        for group in self.state.groups:
            collection = self._collection(self._plan.evaluation(group, stage, seen), stage, last)
            replies += [u.arrays for u in collection.updates(self._ask, self.config.federation.timeout)]
            collections.append(collection)
        table = scores.table(replies)
        sizes = self._net.sizes()
        records = [{"phase": "end" if stage >= 0 else "start", **row} for row in table]
        records += [record for collection in collections for record in collection.records]
        records += _traffic("evaluate", collections)
        records.append({"phase": "model", "name": "parameters", "value": sum(sizes.values())})
        records += [{"phase": "model", "task": t, "name": "parameters", "value": n} for t, n in sizes.items()]
        self._log(max(stage, -1), last if stage >= 0 else 0, records)
        pooled = {(row["task"], row["name"]): row["value"] for row in table if row["client"] is None}
        self._notify(Event("stage", stage, self.config.train.rounds, {"pooled": pooled}))

    def _close_gates(self, group: Group) -> None:
        """Switch off for good the units whose gate is nearly shut; the mask is the server's to decide."""
        for name in [n for n in group.params if n.startswith("gates.") and n.endswith(".mask")]:
            gate = torch.sigmoid(group.params[name.removesuffix("mask") + "logits"])
            group.params[name] = group.params[name] * (gate >= self.config.model.gate_threshold)

    def _collection(self, jobs: Jobs, stage: int, number: int) -> Collection:
        parameters = {name for name, _ in self._net.named_parameters()}

        def expected(job: Job) -> Params:
            if job.phase != "train":
                return {}
            moves = self.method.trainable
            return {n: v for n, v in job.arrays.items() if n in parameters and moves(n, stage)}

        def on_fault(client: int, what: str, why: str) -> None:
            self._notify(Event("fault", stage, number, {"client": client, "what": what, "why": why}))

        return Collection(jobs, expected, on_fault)

    def _accept(self, group: Group, update: Update) -> None:
        """Note what a valid answer means for the client's memory."""
        self.state.versions[update.client] = update.version
        self.state.told[update.client] = group.broadcast_at
        if update.client not in self.state.begun:
            self.state.begun.append(update.client)

    def _train_records(self, stage: int, update: Update) -> list[dict[str, Any]]:
        """An update's metrics: `validate/…` and `local/…` are about a hospital and its task."""
        tasks = self._plan.tasks(stage, [update.client])
        about = {"client": self.federation.members[update.client][0], "task": tasks[0].id}
        records = []
        for name, value in update.metrics.items():
            phase, _, short = name.rpartition("/")
            whose = about if phase else {"client": update.client}
            records.append({"phase": phase or "train", "name": short, "value": value, **whose})
        return records

    def _save(self, always: bool = False) -> None:
        """Checkpoint if it is time, and stop if asked to."""
        run, every = self._run, self.config.run.checkpoint_every
        overall = self._plan.overall(self.state.stage, self.state.round)
        elapsed = time.monotonic() - run.started
        due = overall % every == 0 if every else run.saving <= _CHECKPOINT_SHARE * elapsed
        stop = self._stop()
        if due or always or stop:
            self._flush()
            tensors, plain = self.state.pack()
            run.checkpoint(overall, tensors, plain | {"seconds": self.state.seconds + elapsed})
        if stop:
            raise Interrupted

    def _log(self, stage: int, number: int, records: list[dict[str, Any]]) -> None:
        blank = {
            "stage": stage,
            "round": max(self._plan.overall(stage, number), 0),
            "client": None,
            "task": None,
        }
        self._run.log(blank | record for record in records)


def _traffic(phase: str, collections: Sequence[Collection]) -> list[dict[str, Any]]:
    return [
        {"phase": phase, "name": name, "value": sum(getattr(c, name) for c in collections)}
        for name in ("bytes_down", "bytes_up")
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
