"""Which Job goes to which client: a pure function of the config, the schedule and the server's state."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from torch import nn

from fedcl import compression, evaluate, infer, privacy, rng, scores
from fedcl.config import Config
from fedcl.contracts import Aggregator, Job, Memory, Moment, Params, Phase, Task, Update, role
from fedcl.federation import Federation
from fedcl.merge import MEASURED, misfit, moving, rules, unmeasured
from fedcl.methods import Combination
from fedcl.state import Group, State

Jobs = list[tuple[int, Job]]  # by client


class Plan:
    """The Jobs of every phase.

    Args:
        config: the experiment.
        federation: for the schedule.
        method: for what it needs.
        owner: task id → the part of the net that answers for it: itself, or "shared".
    """

    def __init__(
        self, config: Config, federation: Federation, method: Combination, owner: Callable[[str], str]
    ) -> None:
        self.config, self.federation, self.method, self._owner = config, federation, method, owner
        merger = rules(config)[1]
        self._stays, self._measures = merger.stays, type(merger).measure is not Aggregator.measure
        masked = config.model.masks not in ("auto", "none")
        self._parted = not self._stays and (config.model.heads == "task" or masked)  # whether modules are sent
        self.compression, mechanism = compression.build(config), privacy.build(config, method).sums
        self._summed = mechanism is not None and mechanism.sums("evaluate")  # right answers on test samples
        self.consolidates = "end_task" in method.hooks() or infer.needs_statistics(config.model)
        # Whether what the server's rules remember goes on from stage to stage.
        self.carries = config.train.reset == "never" and not method.starts_over

    def overall(self, stage: int, number: int) -> int:
        """A stage's round, counted over the whole run."""
        return stage * self.config.train.rounds + number

    def tasks(self, stage: int, clients: Sequence[int]) -> list[Task]:
        """The current tasks of some clients, by index."""
        plan = self.federation.schedule[stage]
        return [self.federation.tasks[index] for index in sorted({task for c in clients for task in plan[c]})]

    def past(self, stage: int, clients: Sequence[int], now: Sequence[int]) -> list[Task]:
        """Tasks of some clients in earlier stages that are not among those of now, by index."""
        met = {task.index for s in range(stage) for task in self.tasks(s, clients)}
        return [self.federation.tasks[index] for index in sorted(met - set(now))]

    def current(self, stage: int, clients: Sequence[int]) -> frozenset[str]:
        """The tasks that some of these clients train in a stage, on samples of the task."""
        return frozenset(self.federation.tasks[index].id for client in clients for index in self._due(client, stage))

    def senders(self, stage: int, clients: Sequence[int]) -> dict[str, list[int]]:
        """Who of these clients sends what in a stage, when asked: of the trunk, "", and of each task's module."""
        found: dict[str, list[int]] = {"": []}
        along, now = self._along(stage, clients), self.current(stage, clients)
        for client in (client for client in clients if self._due(client, stage)):
            own = [self.federation.tasks[index].id for index in self._due(client, stage)]
            held = self._held(client, stage, along, now)
            more = [task.id for task in along if task.id not in (*own, *held)]
            for part in ("", *own, *more) if self._parted else ("",):
                found.setdefault(part, []).append(client)
        return found

    def fewest(self) -> dict[str, int]:
        """By part, the fewest clients that send it in a round: those of a cohort that cannot all do without it."""
        found: dict[str, int] = {}
        for stage in range(len(self.federation.schedule)):
            for clients in self.federation.groups:
                senders = self.senders(stage, clients)
                who = {part: len(own) for part, own in senders.items() if own}
                away = who[""] - self._size(who[""]) if who else 0
                found |= {part: min(max(n - away, 0), found.get(part, n)) for part, n in who.items()}
        return found

    def cohorts(self, stage: int, clients: Sequence[int]) -> set[tuple[int, ...]]:
        """Those of these clients that are asked to train in some round of a stage, where nobody is late."""
        rounds = range(self.config.train.rounds if self.config.federation.fraction < 1 else 1)
        return {tuple(self._cohort(Group(tuple(clients)), stage, number)) for number in rounds}

    def seen(self, stage: int, clients: Sequence[int]) -> list[int]:
        """Global ids of the classes that some clients have met up to a stage, sorted."""
        return sorted({c for past in range(stage + 1) for task in self.tasks(past, clients) for c in task.classes})

    def moment(self, group: Group, stage: int, rounds: int, losses: Mapping[str, float]) -> Moment:
        """Where the server half of a method stands, after so many rounds of a stage."""
        current = self.tasks(stage, group.clients)
        past = self.past(stage, group.clients, ())
        ids = tuple(task.id for task in current), tuple(task.id for task in past)
        source = rng.torch_stream(self.config.seed, "merged", group.clients[0], round=self.overall(stage, rounds))
        return Moment(stage, rounds, self.config.train.rounds, *ids, losses=losses, generator=source)

    def between(self, number: int) -> bool:
        """Whether clients consolidate after this round although the stage goes on (`train.stream = "hybrid"`)."""
        train = self.config.train
        ends = (number + 1) % train.consolidate_every == 0 and number + 1 < train.rounds
        return self.consolidates and train.stream == "hybrid" and ends

    def training(self, state: State, group: Group, stage: int, number: int) -> Jobs:
        """A round's training: a share of the clients that have a task now."""
        train, run = self.config.train, self.config.run
        flags = ["local"] if number == train.rounds - 1 else []
        if self.method.watches or (run.validate_every and (number + 1) % run.validate_every == 0):
            flags.append("validate")
        if self.on_local(number):
            flags.append("consolidate")
        jobs = []
        # Who still has to consolidate an earlier task must not move on without what it would keep.
        cohort = [client for client in self._cohort(group, stage, number) if not state.late.get(client)]
        for client, job in self._jobs("train", state, group, stage, self.overall(stage, number), cohort):
            begin = [] if client in state.begun else ["begin"]
            jobs.append((client, replace(job, lr=self._lr(number), flags=(*flags, *begin))))
        return jobs

    def consolidation(self, state: State, group: Group, stage: int, number: int, clients: Sequence[int]) -> Jobs:
        """The end of a task, or of a part of its stream, also for clients that sat out the last round."""
        return self._jobs("consolidate", state, group, stage, self.overall(stage, number), clients)

    def evaluation(self, state: State, group: Group, stage: int) -> Jobs:
        """All modules that exist, to all clients; those that stay at their hospital are there already."""
        there = {role(name) for name in group.params}
        if self._stays:
            there |= {task.id for past in range(stage + 1) for task in self.tasks(past, group.clients)}
        masked = self.config.model.masks not in ("auto", "none")
        named = [task.id for task in self.federation.tasks if not masked or task.id in there]
        tasks = tuple(task for task in named if self._owner(task) in there)
        overall = max(self.overall(stage + 1, -1), 0)
        ready = infer.prepare(group.statistics)
        seen = tuple(group.seen) if stage >= 0 else tuple(range(len(self.federation.classes)))
        job = Job("evaluate", stage, overall, tasks, group.params, broadcast=ready, seen=seen)
        own = state.versions if self._stays or self._summed else {}
        return [(client, replace(job, version=own.get(client, ""))) for client in group.clients] if tasks else []

    def unfit(self, net: nn.Module) -> Callable[[int, Job, Update], str]:
        """What says why that cannot be used which came beside deltas of this net; "" if it can."""

        def of(client: int, job: Job, update: Update) -> str:
            why = self._unfit(client, job, update) or self._unlike(net, client, job, update)
            return why or unmeasured(update, self._measured(job, update))

        return of

    def _unfit(self, client: int, job: Job, update: Update) -> str:
        asked = [task for task in self.federation.tasks if task.id in job.tasks]
        if job.phase == "evaluate":
            whose = (evaluate.SUM,) if self._summed else self.federation.members[client]
            return scores.misfit(update.arrays, whose, asked)
        for name, value in update.extras.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                return f"{name} holds NaN or infinity"
        return infer.misfit(update.extras, asked) or misfit(update)

    def _measured(self, job: Job, update: Update) -> set[str]:
        """The parameters that the rule which merges modules measures: those of each task that is trained."""
        measures = self._measures and job.phase == "train"
        return {name for name in update.arrays if role(name) in job.tasks} if measures else set()

    def _unlike(self, net: nn.Module, client: int, job: Job, update: Update) -> str:
        """Why this is not what the client half of the method sends; "" if it is."""
        sent = {n: v for n, v in update.extras.items() if not n.startswith((infer.PREFIX, MEASURED))}
        if job.phase == "evaluate" or not (sent or update.weight > 0):
            return ""
        names = {name for name, _ in net.named_parameters()}
        params = {name: value for name, value in job.arrays.items() if name in names}
        when = {"task"} if job.phase != "train" else {"round", "task"} if "consolidate" in job.flags else {"round"}
        return self.method.unlike(when, client, net, params, self.expected(names, job), sent)

    def expected(self, parameters: Collection[str], job: Job) -> Params:
        """Of the net's parameters, by name, those whose deltas must come back; of an evaluation, counts by task."""
        if job.phase == "evaluate":
            return evaluate.blank([task for task in self.federation.tasks if task.id in job.tasks])
        if job.phase != "train":
            return {}
        return {name: job.arrays[name] for name in moving(self.method, job) if name in parameters}

    def on_local(self, number: int) -> bool:
        """Whether clients consolidate in this round, on their own models."""
        last = number == self.config.train.rounds - 1
        return self.consolidates and last and self.config.federation.consolidate_on == "local"

    def needed(self, params: Params, tasks: Sequence[int]) -> Params:
        """What these tasks need of all parameters: the trunk, and their own modules and gates unless those stay."""
        names = [self.federation.tasks[index].id for index in tasks]
        parts = {""} if self._stays else {"", *names, *map(self._owner, names)}
        return {name: value for name, value in params.items() if role(name) in parts}

    def _jobs(self, phase: Phase, state: State, group: Group, stage: int, overall: int, clients: Sequence[int]) -> Jobs:
        shared: dict[tuple[int, ...], Params] = {}  # one dict for equal needs: it is encoded once
        news: dict[int, Memory] = {}
        jobs = []
        along, now = self._along(stage, group.clients), self.current(stage, group.clients)
        for client in clients:
            tasks = self._due(client, stage) if phase == "train" else self.federation.schedule[stage][client]
            past = [task for task in along if task.index not in tasks]
            if tasks not in shared:
                shared[tasks] = self.needed(group.params, [*tasks, *(task.index for task in past)])
            told = state.told.get(client, 0)
            if told not in news:
                news[told] = group.news(told)
            job = Job(
                phase=phase,
                stage=stage,
                round=overall,
                tasks=tuple(self.federation.tasks[index].id for index in tasks),
                arrays=shared[tasks],
                version=state.versions.get(client, ""),
                broadcast=news[told],
                past=tuple(task.id for task in past),
                held=self._held(client, stage, past, now),
                seen=tuple(group.seen),
            )
            jobs.append((client, job))
        return jobs

    def _along(self, stage: int, clients: Sequence[int]) -> list[Task]:
        """The tasks of some clients in earlier stages, where the method asks for their modules, by index."""
        return self.past(stage, clients, ()) if self.method.uses_past else []

    def _held(self, client: int, stage: int, past: Sequence[Task], now: Collection[str]) -> tuple[str, ...]:
        """Of earlier tasks those whose modules a client only asks: it never had them, or some train them `now`."""
        own = {index for tasks in self.federation.schedule[:stage] for index in tasks[client]}
        held = (task.id for task in past if task.index not in own or task.id in now)
        return () if self._stays else tuple(held)

    def _due(self, client: int, stage: int) -> tuple[int, ...]:
        """What a client trains: its current tasks, or all so far, where the method starts over in each stage."""
        plan = self.federation.schedule
        if not self.method.starts_over:
            return plan[stage][client]
        return tuple(sorted({task for now in plan[: stage + 1] for task in now[client]}))

    def _cohort(self, group: Group, stage: int, number: int) -> list[int]:
        clients = [client for client in group.clients if self._due(client, stage)]
        size = self._size(len(clients))
        if size == len(clients):
            return clients
        draw = rng.stream(self.config.seed, "cohort", round=self.overall(stage, number))
        return sorted(clients[index] for index in draw.permutation(len(clients))[:size])

    def _size(self, present: int) -> int:
        """How many of the clients that have a task are asked in a round."""
        return min(max(1, round(self.config.federation.fraction * present)), present)

    def _lr(self, number: int) -> float:
        train = self.config.train
        progress = number / train.rounds
        if train.lr_schedule == "cosine":
            return train.lr * 0.5 * (1 + math.cos(math.pi * progress))
        if train.lr_schedule == "step":
            return train.lr * (0.1 if progress >= 0.6 else 1.0) * (0.1 if progress >= 0.85 else 1.0)
        return train.lr
