"""What a hospital does with a Job: train, consolidate, evaluate. The only local training loop.

It knows nothing of Flower. All that it remembers between jobs is in the client store, by version.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from fedcl import batches, compression, infer, masked, own, privacy, private, rng, structure
from fedcl.batches import Part
from fedcl.config import Config
from fedcl.contracts import Aggregator, Batch, Context, Job, Memory, Moment, Params, Step, Task, Update, role
from fedcl.device import Device
from fedcl.exam import Exam
from fedcl.federation import Federation
from fedcl.merge import MEASURED, moving, rules
from fedcl.methods import Combination
from fedcl.models._layers import draw_from
from fedcl.net import Net
from fedcl.optimizers import build as build_optimizer
from fedcl.optimizers import recall, remember, step
from fedcl.shelf import Shelf
from fedcl.steps import Steps
from fedcl.store import Store

_MET = "met/"  # before a task, in the client's memory: its samples were offered in an earlier stage


class Client:
    """A worker that acts for any client of a process: it keeps one net and loads what a Job brings.

    Args:
        config: the experiment.
        federation: who holds what; only the named client's samples are touched.
        method: the continual-learning method.
        store: the clients' memories.
    """

    def __init__(self, config: Config, federation: Federation, method: Combination, store: Store) -> None:
        self.config = config
        self.federation = federation
        self.method = method
        self.store = store
        self._here = Device(config.run)
        self.device = self._here.torch
        self._net = Net(config, federation, self.device)
        self.net, self.tasks = self._net.net, self._net.tasks
        self._shelf = Shelf(config, federation, self._here, self._net)
        self._exam = Exam(config, federation, self._net, self._shelf)
        _, self._merger = rules(config)
        self._compression = compression.build(config)
        self._guard = privacy.build(config, method)
        self._usual = Steps(config.train, method, self.net, self._here.autocast)
        pieces = -(-config.train.rounds // config.train.consolidate_every) if config.train.stream == "hybrid" else 1
        self._slots = pieces * sum(max(map(len, stage)) for stage in federation.schedule)
        self._hooks = method.hooks()
        self._grows = config.model.growth != "none"

    def run(self, client: int, job: Job) -> Update:
        """Do one Job in the name of a client; what it returns may lie in the net's memory, until the next Job."""
        evaluates = job.phase == "evaluate"
        asked, blank = job.tasks, evaluates and not self._merger.stays and not job.sealed
        memory = start = {} if blank else self._here.memory(self.store.load(client, job.version))
        if job.broadcast and not evaluates:
            memory = self.method.receive(self._here.memory(job.broadcast), memory)
        if job.phase == "mask":
            return self._said(job, *masked.answer(client, job, memory, self._guard.sums))
        if self._merger.stays:
            self._net.load(job.arrays)
            fresh = functools.partial(self._fresh, client, job.arrays, memory)
            job = own.bring(job, memory, fresh, self.net.growable(()))
        self._net.load(job.arrays)
        if self._grows:
            memory = structure.fit(memory, job.arrays)
        if evaluates:
            update = self._guard.seal(self._exam.test(client, job, asked), job)
            update, memory = masked.hide(update, job, memory, self._guard.sums)
            return self._said(job, update, memory) if job.sealed else update
        act = self._train if job.phase == "train" else self._consolidate
        update, memory = act(client, job, memory)
        if self._merger.stays and job.phase == "train":
            update, memory = own.keep(update, job, memory)
            memory = self._grown(client, job, update, memory) if self._grows else memory
        update = self._guard.seal(update, job)
        if self._compression and job.phase == "train":
            update, memory = self._shrunk(update, job, memory)
        update, memory = masked.hide(update, job, memory, self._guard.sums)
        update = self._guard.weighed(update, memory)
        return replace(update, version=job.version) if memory is start else self._said(job, update, memory)

    def _said(self, job: Job, update: Update, memory: Memory) -> Update:
        version = "-".join((f"{job.stage}-{job.round}-{job.phase}", *(job.flags if job.phase == "mask" else ())))
        amid = masked.goes_on(job)
        self.store.save(update.client, version, memory, start=job.version, amid=amid)
        if job.keep and not amid:
            self.store.clean(update.client, (*job.keep, job.version, version), before=job.round)
        return replace(update, version=version)

    def _shrunk(self, update: Update, job: Job, memory: Memory) -> tuple[Update, Memory]:
        """The last step before an update leaves: its deltas as they travel."""
        assert self._compression
        if self.method.starts_over and "begin" in job.flags:
            memory = compression.forget(memory)
        draws = rng.torch_stream(self.config.seed, "compress", update.client, round=job.round)
        sent, memory = compression.shrink(self._compression, update.arrays, memory, draws)
        return replace(update, arrays=sent), memory

    # ── train ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _train(self, client: int, job: Job, memory: Memory) -> tuple[Update, Memory]:
        if "begin" in job.flags:
            memory = batches.forget(memory) if any(key.startswith("stream/") for key in memory) else memory
        parts = self._shelf.arrived(client, job, memory)
        samples = sum(len(batch.y) for _, batch in parts)
        context, params = self._context(client, job, parts[0][0], "train"), self._trained(job)
        if "begin" in job.flags:
            memory = self.method.begin_task(context, params, memory)
        if samples == 0:  # of a stream, none came since
            return Update(client, masked.nothing(params, self._guard.sums), 0.0, {"loss": 0.0}), memory
        metrics = self._exam.validate(client, job, self.method.watches) if "validate" in job.flags else {}
        loss, steps, examples, memory = self._fit(context, job, params, parts, memory)
        metrics |= {"loss": loss, "samples": float(samples), "examples": examples}
        with torch.no_grad():
            if "local" in job.flags:
                metrics |= self._exam.local(client, job)
            memory = self.method.end_round(replace(context, step=steps), params, memory)
            extras = self.method.sent("round", memory)
            if "consolidate" in job.flags:
                memory, kept = self._end(client, job, memory)
                extras |= kept
            extras |= self._measured(client, job, params, parts)
            deltas = {name: p.detach().sub_(job.arrays[name].to(self.device)) for name, p in params.items()}
        return Update(client, deltas, float(samples), metrics, extras), memory

    def _grown(self, client: int, job: Job, update: Update, memory: Memory) -> Memory:
        """Modules that stay here grow by what is seen here."""
        done, loss = job.round % self.config.train.rounds + 1, update.metrics.get("validate/loss")
        source = rng.torch_stream(self.config.seed, "growth", client, round=job.round)
        losses = {} if loss is None else dict.fromkeys(job.tasks, loss)
        moment = Moment(job.stage, done, self.config.train.rounds, job.tasks, job.past, losses, generator=source)
        if "begin" in job.flags:
            memory = own.grow(self.method, replace(moment, round=0), memory)
        return own.grow(self.method, moment, memory)

    def _measured(self, client: int, job: Job, params: Params, parts: list[Part]) -> Memory:
        """What the rule that merges modules needs to know of each that was trained."""
        if type(self._merger).measure is Aggregator.measure:
            return {}
        self.net.eval()
        found: Memory = {}
        for task, batch in parts:
            module = {name: p.detach() for name, p in params.items() if role(name) == task.id}
            self._net.allow(task, job.seen)
            with torch.enable_grad():
                measured = self._merger.measure(self._context(client, job, task, "measure"), module, batch)
            found |= {MEASURED + name: value for name, value in measured.items()}
        return found

    def _fit(
        self, context: Context, job: Job, params: Params, parts: list[Part], memory: Memory
    ) -> tuple[float, int, float, Memory]:
        """All batches of a round: (mean loss, steps, samples seen, memory)."""
        train, hooks, method = self.config.train, self._hooks, self.method
        number, begin = job.round % train.rounds, "begin" in job.flags
        several = len(parts) > 1 or not {role(name) for name in params}.isdisjoint(job.past)
        optimizer = build_optimizer(train, list(params.values()), job.lr, several)
        if train.reset == "never" or (train.reset == "task" and not begin):
            recall(optimizer, params, memory)
        difficulty, offered = self._shelf.curriculum(job, parts, memory)
        self.net.train()
        draw_from(self.net, context.generator)
        per_step = hooks & {"loss", "penalty", "edit_grads", "edit_update", "track", "observe"} or self._guard
        total, steps, examples = torch.zeros((), device=self.device), 0, 0.0
        way = self._steps(context, job, len(parts[0][1].y), memory)
        drawn_ones = way.draws(context, parts, begin, difficulty, offered)
        noise = self._guard.generator("augment", context.client, job.round)
        for drawn in self._shelf.augmented(noise, drawn_ones):
            task, batch, first, progress = drawn
            if per_step:
                asks = self._net.answers(task, job) if steps == 0 or len(parts) > 1 else {}
                context = replace(context, step=steps, task=task, progress=progress, **asks)
            if len(parts) > 1:
                self._net.allow(task, job.seen)
            for parameter in params.values():
                parameter.grad = None
            loss = way.backward(context, params, drawn, memory)
            with torch.no_grad():
                if "edit_grads" in hooks:
                    memory = self._edit_grads(context, params, memory)
                before = {n: p.detach().clone() for n, p in params.items()} if method.uses_before else {}
                step(optimizer)
                if hooks & {"edit_update", "track"}:
                    memory = self._edit_update(context, before, params, memory)
                if first is not None and "observe" in hooks and f"{_MET}{task.id}" not in memory:
                    memory = method.observe(context, params, Batch(batch.x[first], batch.y[first]), memory)
            total += loss.detach()
            steps += 1
            examples += way.size(drawn)
        memory = way.remember(memory)
        if train.reset != "round":
            memory = remember(optimizer, params, memory)
        memory = batches.remember(train, parts, number, offered if "observe" in hooks else {}, memory)
        return float(total) / max(steps, 1), steps, examples, memory

    def _steps(self, context: Context, job: Job, samples: int, memory: Memory) -> Steps:
        """How this round draws its batches and makes its gradients."""
        part = self._guard.trainer(job)
        if part is None:
            return self._usual
        source = self._guard.generator("records", context.client, job.round)
        draw = self._guard.draw("gradients", context.client, job.round)
        how = part, context.task.index, samples, draw, source, memory, "begin" in job.flags
        return private.PrivateSteps(self.config.train, self.method, self.net, *how)

    def _edit_grads(self, context: Context, params: Params, memory: Memory) -> Memory:
        edited, memory = self.method.edit_grads(context, params, _grads(params), memory)
        for name, grad in edited.items():
            if params[name].grad is not None or bool(grad.any()):  # momentum would move what the step does not use
                params[name].grad = grad
        return memory

    def _edit_update(self, context: Context, before: Params, params: Params, memory: Memory) -> Memory:
        after = {name: p.detach() for name, p in params.items()}
        step = Step(before, _grads(params), after)
        edited, memory = self.method.edit_update(context, step, memory)
        for name, value in edited.items():
            if value is not after[name]:
                params[name].copy_(value)
        return self.method.track(context, step, memory) if "track" in self._hooks else memory

    # ── consolidate ─────────────────────────────────────────────────────────────────────────────────────────────

    def _consolidate(self, client: int, job: Job, memory: Memory) -> tuple[Update, Memory]:
        memory, extras = self._end(client, job, memory)
        if (job.round + 1) % self.config.train.rounds:  # the stage goes on: paths and projections start here
            context = self._context(client, job, self.tasks[job.tasks[0]], "begin")
            memory = self.method.begin_task(context, self._trained(job), memory)
        samples = sum(len(batch.y) for _, batch in self._shelf.consolidated(client, job))
        return Update(client, {}, float(samples), {}, extras), memory

    def _end(self, client: int, job: Job, memory: Memory) -> tuple[Memory, Memory]:
        """What the method keeps of the task, at the parameters that the net has now: (memory, what it sends)."""
        extras: Memory = {}
        self.net.eval()
        parts = self._shelf.consolidated(client, job)
        last = (job.round + 1) % self.config.train.rounds == 0
        for (task, batch), (_, held) in zip(parts, self._shelf.parts(client, job, "val"), strict=True):
            if len(batch.y):
                self._net.allow(task, job.seen)
                met = f"{_MET}{task.id}"
                context = replace(self._context(client, job, task, "consolidate"), again=met in memory)
                params = dict(self._net.parameters(job.arrays))
                if part := self._guard.trainer(job):
                    draw = self._guard.draw(f"Fisher of {task.id}", client, job.round)
                    measure = private.measure(self.net, task.id, part, draw, context.generator)
                    context = replace(context, private=measure)
                memory = self.method.end_task(context, params, batch, memory)
                if last and self._hooks & {"observe", "end_task"}:
                    memory = memory | {met: torch.ones((), dtype=torch.bool)}
                if infer.needs_statistics(self.config.model):
                    with torch.no_grad():
                        logits = self.net(held.x, task.id)
                    extras |= infer.measure(self.config.model.infer, task, batch, logits, held.y)
        if "upload" in self._hooks and any(len(batch.y) for _, batch in parts):
            extras |= self.method.sent("task", memory)
        return memory, extras

    def _fresh(self, client: int, shared: Params, memory: Memory, task: str) -> Params:
        """The module that a client starts a task with, where modules stay."""
        return self.method.new_module(client, self._net.fresh(task), shared, memory)

    def _trained(self, job: Job) -> Params:
        """The parameters of the Job that may move, by name; all others take no gradient."""
        return self._net.train_only(moving(self.method, job))

    def _context(self, client: int, job: Job, task: Task, purpose: str) -> Context:
        return Context(
            **self._net.answers(task, job),
            net=self.net,
            task=task,
            stage=job.stage,
            client=client,
            lr=job.lr,
            generator=self._guard.generator(purpose, client, job.round, task.index),
            outputs=self._net.outputs,
            buffers=self._net.buffers(job.arrays),
            slots=self._slots,
            round=job.round % self.config.train.rounds,
            rounds=self.config.train.rounds,
            start=self._here.memory({name: job.arrays[name] for name in job.arrays}) if job.phase == "train" else {},
        )


def _grads(params: Params) -> Params:
    return {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in params.items()}
