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
from fedcl.config import Config
from fedcl.contracts import Answer, Ask, Event, FedclError, Job, Params, Update, role
from fedcl.federation import Federation
from fedcl.merge import Merge, check
from fedcl.methods import Combination
from fedcl.models import dynamic_net
from fedcl.run_dir import RunDir
from fedcl.state import Group, State

_CHECKPOINT_SHARE = 0.05  # of the time, where the config does not say how often


class Interrupted(Exception):
    """The run was asked to stop, and has saved itself."""


class Server:
    """One run from its first round, or from where a checkpoint left it, to its last.

    Args:
        config: the experiment.
        federation: who has which task when; the server looks at counts and schedule, never at samples.
        method: for what its server half does.
        ask: the clients.
        run: where results and checkpoints go.
        notify: told of every round and stage.
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
        self.ask, self.directory = ask, run
        self._notify, self._flush, self._stop = notify, flush, stop
        self._aggregator = plugins.load("aggregators", config.federation.aggregator)()
        self._merger = plugins.load("mergers", config.federation.merger)()
        self._tasks = federation.tasks
        with rng.torch_global(config.seed, "init"):
            self._net = dynamic_net.build(config.model, federation.shape, len(federation.classes))
        self.state = State([Group(clients) for clients in federation.groups])

    def run(self, state: State | None = None) -> None:
        """All stages that are left.

        Raises:
            FedclError: a round has too few valid answers, or the directory cannot be written.
            Interrupted: `stop` said so.
        """
        config, stages = self.config, len(self.federation.schedule)
        self.state = state or self._start()
        self._notify(Event("start", self.state.stage, self.state.round, {"stages": stages}))
        for stage in range(self.state.stage, stages):
            self._open(stage)
            for number in range(self.state.round, config.train.rounds):
                self._round(stage, number)
                self.state.round = number + 1
                self._save(stage)
            self._close(stage)
            self.state.stage, self.state.round, self.state.begun, self.state.done = stage + 1, 0, [], []
            self._save(stage, always=True)

    # ── the parts of a stage ─────────────────────────────────────────────────────────────────────────────────────

    def _start(self) -> State:
        """The state before the first round, with the starting weights and, where a net is scored untrained, that."""
        if self.config.model.weights:
            dynamic_net.load_weights(self._net, self.config.model.weights)
        state = self.state
        for group in state.groups:
            group.params = {name: value.detach().clone() for name, value in self._net.state_dict().items()}
        if self._net.owner("") == dynamic_net.SHARED:
            self._evaluate(-1, self._all_classes())
        return state

    def _open(self, stage: int) -> None:
        """Add the modules of tasks that come for the first time, alike in all groups."""
        plan = self.federation.schedule[stage]
        current = sorted({task for tasks in plan for task in tasks})
        for index in current:
            task = self._tasks[index]
            if self._net.owner(task.id) == task.id and task.id not in self._net.tasks:
                with rng.torch_global(self.config.seed, "init", task=index):
                    self._net.add_task(task.id, len(task.classes), self.config.model.expansion_units)
        fresh = self._net.state_dict()
        for group in self.state.groups:
            here = {self._net.owner(self._tasks[t].id) for c in group.clients for t in plan[c]}
            for name, value in fresh.items():
                if name not in group.params and role(name) in here:
                    group.params[name] = value.detach().clone()
        met = {c for index in current for c in self._tasks[index].classes}
        self.state.seen = sorted(met.union(self.state.seen))

    def _round(self, stage: int, number: int) -> None:
        begin = time.perf_counter()
        overall = stage * self.config.train.rounds + number
        for group in self.state.groups:
            self._catch_up(group, stage, overall)
        records: list[dict[str, Any]] = []
        down = up = answered = 0
        for group in self.state.groups:
            merge, uploads = Merge(self._aggregator, self._merger), []
            jobs = self._plan(group, stage, number)
            errors: list[str] = []
            for answer in self._ask(jobs, stage, overall, errors, records):
                update = self._accept(answer)
                records += _train_records(update, self.federation, self._named(stage, answer.client))
                if update.weight > 0:
                    merge.add(update)
                    uploads.append((update.weight, update.extras))
                answered += 1
                down, up = down + answer.bytes_down, up + answer.bytes_up
            self._require(len(jobs) - len(errors), jobs, errors, stage, number)
            group.params, group.rules = merge.apply(group.params, group.rules)
            if any(extras for _, extras in uploads):  # consolidated on the local models
                self._absorb(group, stage, uploads)
                self.state.done += [client for client, _ in jobs if self._consolidates(stage, number)]
        seconds = time.perf_counter() - begin
        totals = {"seconds": seconds, "bytes_down": down, "bytes_up": up, "clients": answered}
        records += [{"phase": "train", "name": name, "value": value} for name, value in totals.items()]
        losses = [r["value"] for r in records if r["name"] == "loss"]
        accuracies = [r["value"] for r in records if r["phase"] == "validate" and r["name"] == "accuracy"]
        self._log(stage, overall, records)
        facts = totals | {"loss": _mean(losses), "accuracy": _mean(accuracies)}
        self._notify(Event("round", stage, number, facts))

    def _close(self, stage: int) -> None:
        """Consolidate on the merged model, then evaluate it at every hospital."""
        overall = (stage + 1) * self.config.train.rounds - 1
        for group in self.state.groups:
            if self.config.model.gate_threshold > 0:
                self._close_gates(group, stage)
            if self._has_consolidation():
                clients = [c for c in group.clients if self.federation.schedule[stage][c]]
                waiting = [c for c in clients if c not in self.state.done]
                late = self._consolidate(group, stage, overall, waiting)
                for client in late:
                    self.state.late.setdefault(client, []).append(stage)
                if late:
                    group.snapshots[stage] = dict(group.params)
        self._evaluate(stage, self.state.seen)

    # ── training ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _plan(self, group: Group, stage: int, number: int) -> list[tuple[int, Job]]:
        """The round's Jobs, by client; which clients is a function of the round alone."""
        config, schedule = self.config, self.federation.schedule[stage]
        overall = stage * config.train.rounds + number
        clients = [client for client in group.clients if schedule[client]]
        if config.federation.fraction < 1 and len(clients) > 1:
            size = max(1, round(config.federation.fraction * len(clients)))
            draw = rng.stream(config.seed, "cohort", round=overall).permutation(len(clients))[:size]
            clients = [clients[i] for i in sorted(draw)]
        last = number == config.train.rounds - 1
        flags = ["local"] if last else []
        if config.run.validate_every and (number + 1) % config.run.validate_every == 0:
            flags.append("validate")
        if self._consolidates(stage, number):
            flags.append("consolidate")
        shared: dict[tuple[int, ...], Params] = {}
        jobs = []
        for client in clients:
            tasks = schedule[client]
            arrays = shared.setdefault(tasks, self._needed(group, tasks))
            job = self._job(group, client, stage, overall, tasks, shared[tasks] if arrays is None else arrays)
            begin = [] if client in self.state.begun else ["begin"]
            jobs.append((client, replace(job, lr=self._lr(number), flags=(*flags, *begin))))
        return jobs

    def _job(
        self, group: Group, client: int, stage: int, overall: int, tasks: Sequence[int], arrays: Params
    ) -> Job:
        told = self.state.told.get(client, -1) >= group.broadcast_at
        return Job(
            phase="train",
            stage=stage,
            round=overall,
            tasks=tuple(self._tasks[index].id for index in tasks),
            arrays=arrays,
            version=self.state.versions.get(client, ""),
            broadcast={} if told else group.broadcast,
            seen=tuple(self.state.seen),
        )

    def _needed(self, group: Group, tasks: Sequence[int]) -> Params:
        """What these tasks need: the trunk, and their own modules and gates."""
        parts = {"", *(self._net.owner(self._tasks[index].id) for index in tasks)}
        return {name: value for name, value in group.params.items() if role(name) in parts}

    def _ask(
        self,
        jobs: list[tuple[int, Job]],
        stage: int,
        overall: int,
        errors: list[str],
        records: list[dict[str, Any]],
    ) -> Any:
        """Answers that can be used; of all others the reason goes into `errors` and the records."""
        parameters = {name for name, _ in self._net.named_parameters()}
        asked = dict(jobs)
        for answer in self.ask(jobs, self.config.federation.timeout):
            error, job = answer.error, asked[answer.client]
            if answer.update is not None:
                trained = job.phase == "train" and answer.update.weight > 0
                expected = {
                    name: value
                    for name, value in job.arrays.items()
                    if trained and name in parameters and self.method.trainable(name, stage)
                }
                error = check(answer.update.arrays, expected) if job.phase != "evaluate" else ""
                weight = answer.update.weight
                error = error or ("" if math.isfinite(weight) and weight >= 0 else f"its weight is {weight}")
            if error:
                errors.append(f"client {answer.client}: {error}")
                kind = "rejected" if answer.update is not None else "missing"
                records.append(
                    {"phase": "fault", "client": answer.client, "name": kind, "value": 1, "note": error}
                )
                facts = {"client": answer.client, "what": kind, "why": error}
                self._notify(Event("fault", stage, overall % self.config.train.rounds, facts))
                continue
            yield answer

    def _accept(self, answer: Answer) -> Update:
        """Note what a valid answer means for the client's memory."""
        update = answer.update
        assert update is not None
        self.state.versions[update.client] = update.version
        self.state.told[update.client] = self._group(update.client).broadcast_at
        if update.client not in self.state.begun:
            self.state.begun.append(update.client)
        return update

    def _require(
        self, valid: int, jobs: list[tuple[int, Job]], errors: list[str], stage: int, number: int
    ) -> None:
        needed = math.ceil(self.config.federation.quorum * len(jobs))
        if jobs and valid < max(needed, 1):
            raise FedclError(
                f"stage {stage}, round {number}: {valid} of {len(jobs)} clients answered, {needed} are needed "
                f"(federation.quorum); {'; '.join(errors[:5])}"
            )

    # ── consolidation and evaluation ─────────────────────────────────────────────────────────────────────────────

    def _has_consolidation(self) -> bool:
        return "end_task" in self.method.hooks() or infer.needs_statistics(self.config.model)

    def _consolidates(self, stage: int, number: int) -> bool:
        """Whether clients consolidate on their own models, in the stage's last round."""
        on_local = self.config.federation.consolidate_on == "local"
        return on_local and number == self.config.train.rounds - 1 and self._has_consolidation()

    def _consolidate(
        self, group: Group, stage: int, overall: int, clients: Sequence[int], params: Params | None = None
    ) -> list[int]:
        """Let clients keep what their method keeps; returns those that did not answer."""
        source = replace(group, params=params) if params is not None else group
        shared: dict[tuple[int, ...], Params] = {}
        jobs = []
        for client in clients:
            tasks = self.federation.schedule[stage][client]
            shared.setdefault(tasks, self._needed(source, tasks))
            job = self._job(group, client, stage, overall, tasks, shared[tasks])
            jobs.append((client, replace(job, phase="consolidate")))
        uploads, records, errors = [], [], []  # type: ignore[var-annotated]
        answered = set()
        for answer in self._ask(jobs, stage, overall, errors, records):
            update = self._accept(answer)
            uploads.append((update.weight, {k: v.clone() for k, v in update.extras.items()}))
            answered.add(update.client)
            for name, size in (("bytes_down", answer.bytes_down), ("bytes_up", answer.bytes_up)):
                records.append(
                    {"phase": "consolidate", "client": update.client, "name": name, "value": size}
                )
        self._absorb(source, stage, uploads)
        if source is not group:
            group.method, group.broadcast, group.broadcast_at = source.method, source.broadcast, source.broadcast_at
            group.statistics = source.statistics
        self._log(stage, overall, records)
        return [client for client in clients if client not in answered]

    def _absorb(self, group: Group, stage: int, uploads: list[tuple[float, Params]]) -> None:
        """What consolidation sent: sums for inferring the task, and uploads of the method."""
        group.statistics = infer.merge(group.statistics, [extras for _, extras in uploads])
        own = [
            (weight, {k: v for k, v in extras.items() if not k.startswith(infer.PREFIX)})
            for weight, extras in uploads
        ]
        if "server" in self.method.hooks():
            group.method, group.broadcast = self.method.server(group.params, group.method, own)
            group.broadcast_at = max(stage, group.broadcast_at + 1)

    def _catch_up(self, group: Group, stage: int, overall: int) -> None:
        """Clients that missed a consolidation do it now, on the model of that stage, before they train again."""
        for past in sorted({s for c in group.clients for s in self.state.late.get(c, [])}):
            clients = [c for c in group.clients if past in self.state.late.get(c, [])]
            late = self._consolidate(group, past, overall, clients, group.snapshots[past])
            for client in set(clients) - set(late):
                self.state.late[client].remove(past)
            if not late:
                del group.snapshots[past]

    def _close_gates(self, group: Group, stage: int) -> None:
        """Switch off for good the units whose gate is nearly shut; the mask is the server's to decide."""
        for name in [n for n in group.params if n.startswith("gates.") and n.endswith(".mask")]:
            gate = torch.sigmoid(group.params[name.removesuffix("mask") + "logits"])
            group.params[name] = group.params[name] * (gate >= self.config.model.gate_threshold)

    def _evaluate(self, stage: int, seen: Sequence[int]) -> None:
        overall = max((stage + 1) * self.config.train.rounds - 1, 0)
        errors: list[str] = []
        records: list[dict[str, Any]] = []
        answers: list[tuple[Update, int, int]] = []
        for group in self.state.groups:
            there = {role(name) for name in group.params}
            tasks = [task for task in self._tasks if self._net.owner(task.id) in there]
            if not tasks:
                continue
            job = Job(
                "evaluate", stage, overall, tuple(t.id for t in tasks), group.params,
                broadcast=group.statistics, seen=tuple(seen),
            )  # fmt: skip
            for answer in self._ask([(c, job) for c in group.clients], stage, overall, errors, records):
                answers.append((answer.update, answer.bytes_down, answer.bytes_up))
        table = scores.table([update.arrays for update, _, _ in answers])
        phase = "end" if stage >= 0 else "start"
        records += [{"phase": phase, **row} for row in table]
        for name, column in (("bytes_down", 1), ("bytes_up", 2)):
            records.append({"phase": "evaluate", "name": name, "value": sum(a[column] for a in answers)})  # type: ignore[misc]
        sizes = self._net.sizes()
        records.append({"phase": "model", "name": "parameters", "value": sum(sizes.values())})
        records += [{"phase": "model", "task": t, "name": "parameters", "value": n} for t, n in sizes.items()]
        self._log(stage, overall, records)
        pooled = {
            (row["task"], row["name"]): row["value"] for row in table if row["client"] is None
        }
        self._notify(Event("stage", stage, self.config.train.rounds, {"pooled": pooled}))

    # ── small things ─────────────────────────────────────────────────────────────────────────────────────────────

    def _save(self, stage: int, always: bool = False) -> None:
        """Checkpoint if it is time, and stop if asked to."""
        run, every = self.directory, self.config.run.checkpoint_every
        overall = self.state.stage * self.config.train.rounds + self.state.round
        elapsed = time.monotonic() - run.started
        due = overall % every == 0 if every else run.saving <= _CHECKPOINT_SHARE * elapsed
        stop = self._stop()
        if due or always or stop:
            self._flush()
            tensors, plain = self.state.pack()
            plain["seconds"] = self.state.seconds + elapsed
            run.checkpoint(overall, tensors, plain)
        if stop:
            raise Interrupted

    def _log(self, stage: int, overall: int, records: list[dict[str, Any]]) -> None:
        blank = {"stage": stage, "round": overall, "client": None, "task": None}
        self.directory.log(blank | record for record in records)

    def _lr(self, number: int) -> float:
        """The learning rate of a stage's round."""
        train = self.config.train
        progress = number / train.rounds
        if train.lr_schedule == "cosine":
            return train.lr * 0.5 * (1 + math.cos(math.pi * progress))
        if train.lr_schedule == "step":
            return train.lr * (0.1 if progress >= 0.6 else 1.0) * (0.1 if progress >= 0.85 else 1.0)
        return train.lr

    def _group(self, client: int) -> Group:
        return next(group for group in self.state.groups if client in group.clients)

    def _named(self, stage: int, client: int) -> str | None:
        tasks = self.federation.schedule[stage][client]
        return self._tasks[tasks[0]].id if len(tasks) == 1 else None

    def _all_classes(self) -> list[int]:
        return list(range(len(self.federation.classes)))


def _train_records(update: Update, federation: Federation, task: str | None) -> list[dict[str, Any]]:
    """An update's metrics as records: `validate/…` and `local/…` are about the hospital and its task."""
    records = []
    for name, value in update.metrics.items():
        phase, _, short = name.rpartition("/")
        about = {"client": federation.members[update.client][0], "task": task} if phase else {"client": update.client}
        records.append({"phase": phase or "train", "name": short, "value": value, **about})
    return records


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
