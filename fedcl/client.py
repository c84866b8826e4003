"""What a hospital does with a Job: train, consolidate, evaluate. The only local training loop.

It knows nothing of Flower. All that it remembers between jobs is in the client store, by version.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call

from fedcl import augment, batches, evaluate, infer, rng
from fedcl.batches import Part
from fedcl.config import Config
from fedcl.contracts import Batch, Context, Job, Memory, Params, Task, Update
from fedcl.device import Device
from fedcl.federation import Federation
from fedcl.methods import Combination
from fedcl.models import dynamic_net
from fedcl.models._layers import draw_from
from fedcl.optimizers import build as build_optimizer
from fedcl.optimizers import recall, remember, step
from fedcl.store import Store


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
        self.tasks = {task.id: task for task in federation.tasks}
        self.net = dynamic_net.build(config.model, federation.shape, len(federation.classes)).to(self.device)
        self._augment = augment.build(config.data.augment)
        self._slots = sum(max(map(len, stage)) for stage in federation.schedule)
        self._tensors: Params = {}
        self._hooks = method.hooks()

    def run(self, client: int, job: Job) -> Update:
        """Do one Job in the name of a client."""
        self._load(job.arrays)
        if job.phase == "evaluate":
            return self._evaluate(client, job)
        memory = start = self._here.memory(self.store.load(client, job.version))
        if job.broadcast:
            memory = self.method.receive(self._here.memory(job.broadcast), memory)
        act = self._train if job.phase == "train" else self._consolidate
        update, memory = act(client, job, memory)
        if memory is start:
            return replace(update, version=job.version)
        version = f"{job.stage}-{job.round}-{job.phase}"
        self.store.save(client, version, memory, start=job.version)
        if job.keep:
            self.store.clean(client, (*job.keep, job.version, version), before=job.round)
        return replace(update, version=version)

    # ── train ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _train(self, client: int, job: Job, memory: Memory) -> tuple[Update, Memory]:
        parts = self._parts(client, job)
        samples = sum(len(batch.y) for _, batch in parts)
        if samples == 0:
            return Update(client, {}, 0.0, {"loss": 0.0}), memory
        metrics = self._validate(client, job) if "validate" in job.flags else {}
        params = self._trained(job)
        context = self._context(client, job, parts[0][0], "train")
        if "begin" in job.flags:
            memory = self.method.begin_task(context, params, memory)
        loss, memory = self._fit(context, job, params, parts, memory)
        metrics |= {"loss": loss, "samples": float(samples)}
        with torch.no_grad():
            if "local" in job.flags:
                metrics |= self._local(client, job)
            extras: Memory = {}
            if "consolidate" in job.flags:
                memory, extras = self._end(client, job, memory)
            deltas = {name: p.detach().sub_(job.arrays[name].to(self.device)) for name, p in params.items()}
        return Update(client, deltas, float(samples), metrics, extras), memory

    def _fit(
        self, context: Context, job: Job, params: Params, parts: list[Part], memory: Memory
    ) -> tuple[float, Memory]:
        """All epochs of a round: (mean loss, memory)."""
        train, hooks, method = self.config.train, self._hooks, self.method
        optimizer = build_optimizer(train, list(params.values()), job.lr, several=len(parts) > 1)
        if train.reset == "never" or (train.reset == "task" and "begin" not in job.flags):
            recall(optimizer, params, memory)
        self.net.train()
        draw_from(self.net, context.generator)
        plain = not hooks & {"loss", "penalty"}
        per_step = hooks & {"loss", "penalty", "edit_grads", "edit_update", "observe"}
        total, steps = torch.zeros((), device=self.device), 0
        for task, batch, first in self._batches(context, job, parts):
            if per_step:
                context = replace(context, step=steps, task=task, forward=self._forward(task))
            if first and "observe" in hooks:
                memory = method.observe(context, batch, memory)
            if len(parts) > 1:
                self._allow(task, job)
            for parameter in params.values():
                parameter.grad = None
            with self._here.autocast():
                if plain:
                    loss = torch.nn.functional.cross_entropy(self.net(batch.x, task.id), batch.y)
                else:
                    loss = method.loss(context, params, batch, memory)
            if "penalty" in hooks:
                loss = loss + method.penalty(context, params, batch, memory)
            loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                if "edit_grads" in hooks:
                    self._edit_grads(context, params, memory)
                before = {n: p.detach().clone() for n, p in params.items()} if method.uses_before else {}
                step(optimizer)
                if "edit_update" in hooks:
                    memory = self._edit_update(context, before, params, memory)
            total += loss.detach()
            steps += 1
        if train.reset != "round":
            memory = remember(optimizer, params, memory)
        return float(total) / max(steps, 1), memory

    def _batches(self, context: Context, job: Job, parts: list[Part]) -> Iterator[tuple[Task, Batch, bool]]:
        """The round's batches; whatever augmentation draws comes from a stream of its own."""
        found = batches.draw(self.config.train, context.generator, parts, "begin" in job.flags)
        if self._augment is None:
            yield from found
            return
        noise = rng.torch_stream(self.config.seed, "augment", client=context.client, round=job.round)
        with rng.torch_global_from(noise):
            for task, batch, first in found:
                yield task, Batch(self._augment(batch.x), batch.y), first

    def _edit_grads(self, context: Context, params: Params, memory: Memory) -> None:
        grads = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in params.items()}
        for name, grad in self.method.edit_grads(context, params, grads, memory).items():
            params[name].grad = grad

    def _edit_update(self, context: Context, before: Params, params: Params, memory: Memory) -> Memory:
        after = {name: p.detach() for name, p in params.items()}
        edited, memory = self.method.edit_update(context, before, after, memory)
        for name, value in edited.items():
            if value is not after[name]:
                params[name].copy_(value)
        return memory

    # ── consolidate and evaluate ─────────────────────────────────────────────────────────────────────────────────

    def _consolidate(self, client: int, job: Job, memory: Memory) -> tuple[Update, Memory]:
        memory, extras = self._end(client, job, memory)
        samples = sum(len(batch.y) for _, batch in self._parts(client, job))
        return Update(client, {}, float(samples), {}, extras), memory

    def _end(self, client: int, job: Job, memory: Memory) -> tuple[Memory, Memory]:
        """What the method keeps of the task, at the parameters that the net has now: (memory, what it sends)."""
        extras: Memory = {}
        self.net.eval()
        for (task, batch), (_, held) in zip(self._parts(client, job), self._parts(client, job, "val"), strict=True):
            if len(batch.y):
                self._allow(task, job)
                context = self._context(client, job, task, "consolidate")
                # The net is shared by all clients of the process: only what this Job brought is this client's.
                params = {name: value for name, value in self._parameters() if name in job.arrays}
                memory = self.method.end_task(context, params, batch, memory)
                if infer.needs_statistics(self.config.model):
                    with torch.no_grad():
                        logits = self.net(held.x, task.id)
                    extras |= infer.measure(self.config.model.infer, task, batch, logits, held.y)
        if "upload" in self._hooks:
            extras |= self.method.upload(memory)
        return memory, extras

    def _evaluate(self, client: int, job: Job) -> Update:
        arrays: Params = {}
        tasks = [self.tasks[name] for name in job.tasks]
        for hospital in self.federation.members[client]:
            data = [(task, self._test(hospital, task)) for task in tasks]
            counted = evaluate.count(self.net, tasks, job.seen, data, self.config.model.infer, job.broadcast)
            for task, (answers, scores) in counted.items():
                arrays[f"{hospital}.{task}.answers"] = answers
                arrays[f"{hospital}.{task}.scores"] = scores
        return Update(client, arrays, 0.0, {}, version=job.version)

    def _validate(self, client: int, job: Job) -> dict[str, float]:
        """Accuracy of the incoming model on the validation samples of the client's tasks."""
        parts = self._parts(client, job, "val")
        total = sum(len(batch.y) for _, batch in parts)
        right = 0.0
        for task, batch in parts:
            self._allow(task, job)
            right += evaluate.accuracy(self.net, task, batch) * len(batch.y)
        return {"validate/accuracy": right / total, "validate/n": float(total)} if total else {}

    def _local(self, client: int, job: Job) -> dict[str, float]:
        """Accuracy of the client's own model, before the merge, on its test samples of the task."""
        if len(self.federation.members[client]) > 1:
            return {}
        (task, batch), *_ = self._parts(client, job, "test")
        if not len(batch.y):
            return {}
        return {"local/accuracy": evaluate.accuracy(self.net, task, batch), "local/n": float(len(batch.y))}

    # ── the net and the data ─────────────────────────────────────────────────────────────────────────────────────

    @torch.no_grad()
    def _load(self, arrays: Params) -> None:
        """Make the net hold what a Job brings, adding the modules that it does not have yet."""
        fresh = False
        for name in arrays:
            head, _, rest = name.partition(".")
            task = rest.partition(".")[0]
            if head == "tasks" and task in self.tasks and task not in self.net.tasks:
                self.net.add_task(task, len(self.tasks[task].classes), self.config.model.expansion_units)
                fresh = True
        if fresh or not self._tensors:
            self._tensors = dict(self.net.named_parameters()) | dict(self.net.named_buffers())
        for name, value in arrays.items():
            self._tensors[name].copy_(value)

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, value) for name, value in self._tensors.items() if isinstance(value, torch.nn.Parameter))

    def _trained(self, job: Job) -> Params:
        """The parameters of the Job that may move, by name; all others take no gradient."""
        trained: Params = {}
        for name, value in self._parameters():
            moves = name in job.arrays and self.method.trainable(name, job.stage)
            value.requires_grad_(moves)
            if moves:
                trained[name] = value
        return trained

    def _parts(self, client: int, job: Job, split: str = "train") -> list[Part]:
        """(task, the client's samples with labels as the module's outputs) of the tasks of a Job."""
        parts = []
        for name in job.tasks:
            task = self.tasks[name]
            key = (client, task.index, split)
            batch = self._here.batch(key, functools.partial(self.federation.train_data, *key))
            self._allow(task, job)
            if self.net.owner(name) != dynamic_net.SHARED:
                lookup = torch.zeros(len(self.federation.classes), dtype=torch.int64, device=self.device)
                lookup[list(task.classes)] = torch.arange(len(task.classes), device=self.device)
                batch = Batch(batch.x, lookup[batch.y])
            parts.append((task, batch))
        return parts

    def _allow(self, task: Task, job: Job) -> None:
        """Let a shared head's softmax see the classes that the config says."""
        if self.net.owner(task.id) == dynamic_net.SHARED:
            self.net.allow({"task": task.classes, "seen": job.seen, "all": None}[self.config.model.mask])

    def _test(self, hospital: int, task: Task) -> Batch:
        """A hospital's test samples of a task, with global class ids."""
        load = functools.partial(self.federation.batch, hospital, task.index, "test")
        return self._here.batch(("test of", hospital, task.index), load)

    def _forward(self, task: Task) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
        """The forward function of a task; the net's own parameters skip the functional call."""

        def forward(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
            own = all(self._tensors.get(name) is value for name, value in params.items())
            if own:
                return self.net(x, task.id)  # type: ignore[no-any-return]
            return functional_call(self.net, dict(params), (x, task.id))  # type: ignore[no-any-return]

        return forward

    def _context(self, client: int, job: Job, task: Task, purpose: str) -> Context:
        seed = self.config.seed
        return Context(
            forward=self._forward(task),
            net=self.net,
            task=task,
            stage=job.stage,
            client=client,
            lr=job.lr,
            generator=rng.torch_stream(seed, purpose, client, task.index, job.round),
            slots=self._slots,
        )
