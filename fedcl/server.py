"""The only round loop: plan, send, collect, merge, checkpoint; at the end of a stage consolidate, then evaluate.

It knows nothing of Flower: `ask` carries Jobs to clients and brings Answers back in the order of the clients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fedcl import anatomy, growing, infer, protect, rng, scores
from fedcl.collect import Collection, require
from fedcl.config import Config
from fedcl.contracts import Ask, Event, Job, Params, Update
from fedcl.federation import Federation
from fedcl.journal import Journal, mean, named, totals
from fedcl.merge import Merge, rules
from fedcl.methods import Combination
from fedcl.models import dynamic_net
from fedcl.plan import Jobs, Plan
from fedcl.run_dir import RunDir
from fedcl.state import Group, State
from fedcl.store import Store
from fedcl.synthesis import Synthesis

Uploads = dict[int, tuple[float, Params]]  # client → samples, what it sent
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
        store: clients' memories in this process, written before a checkpoint names them; None where they keep theirs.
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
        store: Store | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config, self.federation, self.method = config, federation, method
        self._run, self._notify, self._store, self._stop = run, notify, store, stop
        self._saved: list[dict[int, str]] = []  # the clients' memories that the last two checkpoints name
        self._aggregator, self._merger = rules(config)
        with rng.torch_global(config.start, "init"):
            self._net = dynamic_net.build(config.model, federation.shape, federation.outputs(config.model.heads))
        self._plan = Plan(config, federation, method, self._net.owner)
        self._synthesis = Synthesis(config, federation, method, self._plan)
        self._anatomy = anatomy.Anatomy(run, self._plan, self._net, store)
        self._protection = protect.build(config, federation, self._plan, self._net, run)
        self._journal = Journal(config, run, federation, self._plan, notify, self._protection.guard)
        self._ask = self._protection.way(ask, self._expected)
        self.state = State([Group(clients) for clients in federation.groups])

    def run(self, state: State | None = None) -> None:
        """All stages that are left.

        Raises:
            FedclError: a round has too few valid answers, or the directory cannot be written.
            Interrupted: `stop` said so.
        """
        stages = len(self.federation.schedule)
        if self.config.model.weights and (state is None or self.method.starts_over):
            dynamic_net.load_weights(self._net, self.config.model.weights)
        self.state = state or self._start()
        self._protection.load(self.state.protection)
        facts = {"stages": stages, "rounds": self.config.train.rounds}
        self._notify(Event("start", self.state.stage, self.state.round, facts))
        for stage in range(self.state.stage, stages):
            self._open(stage)
            uploads: Uploads = {}
            for number in range(self.state.round, self.config.train.rounds):
                uploads = self._round(stage, number)
                if self._plan.between(number):
                    self._between(stage, number)
                self.state.round = number + 1
                if not self._plan.on_local(number):  # what was consolidated there is absorbed below, at once
                    self._save()
            self._close(stage, uploads)
            self.state.stage, self.state.round, self.state.begun = stage + 1, 0, []
            self._protection.write(self._run)
            self._save(always=True)

    def _start(self) -> State:
        """The state before the first round: everybody's starting weights, scored where they can answer."""
        for group in self.state.groups:
            group.params = {name: value.detach().clone() for name, value in self._net.state_dict().items()}
        if self._net.owner("") == dynamic_net.SHARED and self._net.masks == "none":
            self._evaluate(-1)
        return self.state

    def _open(self, stage: int) -> None:
        """Add the modules of tasks that come for the first time, alike in all groups."""
        for past in range(stage + 1):  # the net of a resumed run needs the earlier ones too
            for task in self._plan.tasks(past, range(len(self.federation.members))):
                if not self._net.has(task.id):
                    with rng.torch_global(self.config.start, "init", task=task.index):
                        self._net.add_task(task.id, len(task.classes), self.config.model.expansion_units)
        fresh, resumed = self._net.state_dict(), self.state.round > 0
        for group in self.state.groups:
            if self.method.starts_over and not resumed:  # from the weights that everybody started with
                group.params = {name: value.detach().clone() for name, value in fresh.items() if name in group.params}
            group.rules = group.rules if resumed or self._plan.carries else {}
            tasks = self._plan.tasks(stage, group.clients)
            group.seen = self._plan.seen(stage, group.clients)
            new = fresh | growing.modules(self.config, self._net, group.params, tasks)
            for name, value in self._plan.needed(new, [task.index for task in tasks]).items():
                if name not in group.params:
                    group.params[name] = value.detach().clone()
            if not resumed:
                self._edit(group, stage, 0, group.params)
        self._anatomy.begin(stage, self.state)

    def _edit(self, group: Group, stage: int, rounds: int, before: Params, told: Sequence[growing.Told] = ()) -> None:
        """What the method's server half makes of the merged model."""
        if "merged" in self.method.hooks():
            moment = self._plan.moment(group, stage, rounds, growing.losses(told, (self._aggregator, self._merger)))
            if changed := growing.merged(self.method, moment, self._net, group, before):
                self._notify(Event("growth", stage, max(rounds - 1, 0), {"parameters": changed}))
                self._journal.log(stage, max(rounds - 1, 0), anatomy.grown(changed))

    def _round(self, stage: int, number: int) -> Uploads:
        """Train, collect, merge, once; returns what clients sent that consolidated on their own models."""
        begin = time.perf_counter()
        records, collections, uploads = list[dict[str, Any]](), list[Collection](), Uploads()
        for group in self.state.groups:
            self._catch_up(group)
            merge = Merge(self._aggregator, self._merger, self._plan.current(stage, group.clients))
            collection = self._collection(self._plan.training(self.state, group, stage, number), stage, number)
            collections.append(collection)
            sent, metrics = Uploads(), list[growing.Told]()
            for update in collection.updates(self._ask, self.config.federation.timeout):
                self._accept(group, update)
                if update.client not in self.state.begun:
                    self.state.begun.append(update.client)
                records += self._journal.training(stage, update)
                sent[update.client] = (update.weight, update.extras)
                metrics.append((self._plan.tasks(stage, [update.client]), update.metrics))
                if update.weight > 0:
                    merge.add(update)
                    self._anatomy.saw(stage, number, group.params, update)
                    if self._plan.on_local(number):
                        uploads[update.client] = (update.weight, update.extras)
            before = group.params
            blur = self._protection.blur(group, self._plan.overall(stage, number))
            group.params, group.rules = merge.apply(before, group.rules, blur)
            self._protection.learn(group, [told for _, told in metrics], self._plan.overall(stage, number))
            self._absorb("round", group, sent)
            self._edit(group, stage, number + 1, before, metrics)
        require(collections, self.config.federation.quorum, f"stage {stage + 1}, round {number + 1}")
        records += [record for collection in collections for record in collection.records]
        answered = sum(c.answered for c in collections)
        facts = totals(collections) | {"clients": answered, "seconds": time.perf_counter() - begin}
        self._journal.log(stage, number, records + named("train", facts))
        told = {"loss": mean(records, "train", "loss"), "accuracy": mean(records, "validate", "accuracy")}
        self._notify(Event("round", stage, number, facts | told))
        return uploads

    def _close(self, stage: int, local: Uploads) -> None:
        """Consolidate on the merged model, then evaluate it at every hospital."""
        last = self.config.train.rounds - 1
        for group in self.state.groups:
            group.params = dynamic_net.close_gates(group.params, self.config.model.gate_threshold)
            if self._plan.consolidates:
                current = [c for c in group.clients if self.federation.schedule[stage][c]]
                behind = [c for c in current if self.state.late.get(c)]  # first things first
                waiting = [c for c in current if c not in local and c not in behind]
                uploads = {client: self._sums(group, *local[client]) for client in group.clients if client in local}
                uploads |= self._consolidate(group, stage, last, waiting)
                late = [c for c in current if c not in uploads]
                for client in late:
                    self.state.late.setdefault(client, []).append(stage)
                if late:
                    group.snapshots[stage] = dict(group.params)
                self._absorb("task", group, uploads)
            self._synthesis.close(group, stage)
        self._evaluate(stage)

    def _between(self, stage: int, number: int) -> None:
        """Consolidate what a stream brought so far. Who does not answer does without: its task goes on."""
        for group in self.state.groups:
            present = [c for c in group.clients if self.federation.schedule[stage][c] and not self.state.late.get(c)]
            self._absorb("task", group, self._consolidate(group, stage, number, present))

    def _consolidate(
        self, group: Group, stage: int, number: int, clients: Sequence[int], params: Params | None = None
    ) -> Uploads:
        """Let clients keep what their method keeps of the stage's task; returns what those that answered sent.

        They do so on the group's parameters, or on those of a stage that is past.
        """
        on = group if params is None else replace(group, params=params, seen=self._plan.seen(stage, group.clients))
        jobs = self._plan.consolidation(self.state, on, stage, number, clients)
        collection = self._collection(jobs, stage, number)
        uploads: Uploads = {}
        for update in collection.updates(self._ask, self.config.federation.timeout):
            self._accept(group, update)
            uploads[update.client] = self._sums(group, update.weight, update.extras)
            kept = {"phase": "consolidate", "client": update.client, "name": "memory"}
            collection.records += [kept | {"value": v} for name, v in update.metrics.items() if name == "memory"]
        self._journal.log(stage, number, collection.records + named("consolidate", totals([collection])))
        return uploads

    def _catch_up(self, group: Group) -> None:
        """Clients that missed consolidations do them now, in order, each on the model of its stage.

        Their sums for inferring the task are added; what a method folds once a stage went on without them.
        """
        for past in sorted(group.snapshots):
            clients = [c for c in group.clients if self.state.late.get(c, [])[:1] == [past]]
            for client in self._consolidate(group, past, self.config.train.rounds - 1, clients, group.snapshots[past]):
                self.state.late[client].remove(past)
            if not any(past in stages for stages in self.state.late.values()):
                del group.snapshots[past]

    def _sums(self, group: Group, weight: float, extras: Params) -> tuple[float, Params]:
        """Add a client's sums for inferring the task, at once: a thousand of them need not be kept."""
        group.statistics = infer.merge(group.statistics, [extras])
        return weight, infer.without(extras)

    def _absorb(self, when: str, group: Group, uploads: Uploads) -> None:
        """What the method's client halves sent goes to its server half."""
        if "server" in self.method.hooks() and uploads:
            sent = [uploads[client] for client in sorted(uploads)]
            group.method, news = self.method.absorb(when, group.params, group.method, sent)
            group.announce(news)

    def _evaluate(self, stage: int) -> None:
        """Score each group's model on the test data of its hospitals."""
        last, collections, updates = self.config.train.rounds - 1, [], list[Update]()
        for group in self.state.groups:
            collection = self._collection(self._plan.evaluation(self.state, group, stage), stage, last)
            updates += collection.updates(self._ask, self.config.federation.timeout)
            collections.append(collection)
        table = scores.table([update.arrays for update in updates])
        records = [{"phase": "end" if stage >= 0 else "start", **row} for row in table]
        records += [record for update in updates for record in self._journal.training(stage, update)]
        records += [record for collection in collections for record in collection.records]
        records += named("evaluate", totals(collections)) + self._anatomy.end(stage, self.state.groups)
        self._journal.log(stage, last, records)
        pooled = {(row["task"], row["name"]): row["value"] for row in table if row["client"] is None}
        self._notify(Event("stage", stage, self.config.train.rounds, {"pooled": pooled}))

    def _collection(self, jobs: Jobs, stage: int, number: int) -> Collection:
        def on_fault(client: int, what: str, why: str) -> None:
            self._notify(Event("fault", stage, number, {"client": client, "what": what, "why": why}))

        if not self._store and len(self._saved) == 2:  # clients keep their own memories, and need not keep all
            kept = {client: tuple(saved.get(client, "") for saved in self._saved) for client, _ in jobs}
            jobs = [(client, replace(job, keep=kept[client])) for client, job in jobs]
        jobs, note = self._protection.send(jobs), self._protection.note
        return Collection(jobs, self._expected, on_fault, self._plan.unfit(self._net), self._plan.compression, note)

    def _expected(self, job: Job) -> Params:
        return self._plan.expected({name for name, _ in self._net.named_parameters()}, job)

    def _accept(self, group: Group, update: Update) -> None:
        """Note what a valid answer means for the client's memory."""
        self.state.versions[update.client] = update.version
        self.state.told[update.client] = group.announced

    def _save(self, always: bool = False) -> None:
        """Checkpoint if it is time, and stop if asked to."""
        run, every, begin = self._run, self.config.run.checkpoint_every, time.monotonic()
        overall = self._plan.overall(self.state.stage, self.state.round)
        due = overall % every == 0 if every else run.saving <= _CHECKPOINT_SHARE * (begin - run.started)
        stop = self._stop()
        if due or always or stop:
            if self._store:
                self._store.write(self.state.versions)
            self.state.protection = self._protection.pack()
            tensors, plain = self.state.pack()
            run.checkpoint(tensors, plain | {"seconds": self.state.seconds + begin - run.started})
            self._saved = [*self._saved[-1:], dict(self.state.versions)]
            if self._store and len(self._saved) == 2:  # with one, an earlier checkpoint may still name others
                self._store.prune(self._saved)
            run.saving += time.monotonic() - begin
        if stop:
            raise Interrupted
