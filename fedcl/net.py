"""The net that a client works with: what a Job brings is loaded into it, and a method may ask it more than the task.

It is one net for all clients of a process, so that only what the Job at hand brought is the client's own.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import functional_call

from fedcl import rng, structure
from fedcl.config import Config
from fedcl.contracts import Job, Params, Task, role
from fedcl.federation import Federation
from fedcl.models import dynamic_net
from fedcl.models.dynamic_net import SHARED, DynamicNet, SharedHead

Answers = dict[str, Any]


def fresh(config: Config, net: DynamicNet, task: Task) -> Params:
    """The module of a task as everybody starts it behind this trunk: its parameters and masks, by name."""
    twin = DynamicNet(net.trunk, net.weight_norm, masks=net.masks, adapters=net.adapters)
    with rng.torch_global(config.start, "init", task=task.index):
        twin.add_task(task.id, len(task.classes), config.model.expansion_units)
    return {name: value.detach() for name, value in twin.state_dict().items() if not name.startswith("trunk.")}


class Net:
    """A DynamicNet that follows Jobs.

    Args:
        config: the experiment.
        federation: its tasks; samples are not touched.
        device: where it computes.
    """

    def __init__(self, config: Config, federation: Federation, device: torch.device) -> None:
        self._config, self._device = config, device
        self._classes = len(federation.classes)
        self.tasks = {task.id: task for task in federation.tasks}
        self.net = dynamic_net.build(config.model, federation.shape, federation.outputs(config.model.heads)).to(device)
        shared = self.net.owner("") == SHARED
        widest = max(len(task.classes) for task in federation.tasks)
        self.outputs = federation.outputs(config.model.heads) if shared else widest
        self._tensors: Params = {}

    @torch.no_grad()
    def load(self, arrays: Params) -> None:
        """Make the net hold what a Job brings, in its shapes, adding the modules that it does not have yet."""
        fresh = False
        for task in sorted({role(name) for name in arrays} & self.tasks.keys()):
            if not self.net.has(task):
                self.net.add_task(task, len(self.tasks[task].classes), self._config.model.expansion_units)
                fresh = True
        if structure.resize(self.net, arrays) or fresh or not self._tensors:
            # By name: in which order modules were added differs after a resume, and in another worker; sums follow it.
            self._tensors = dict(sorted([*self.net.named_parameters(), *self.net.named_buffers()]))
        for name, value in arrays.items():
            self._tensors[name].copy_(value)

    def fresh(self, task: str) -> Params:
        """The module of a task as everybody starts it: its parameters and masks, by name."""
        return fresh(self._config, self.net, self.tasks[task])

    def parameters(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Those of the names that are parameters, in the order of names."""
        wanted = set(names)
        return ((n, v) for n, v in self._tensors.items() if isinstance(v, torch.nn.Parameter) and n in wanted)

    def buffers(self, names: Iterable[str]) -> Params:
        """Those of the names that are buffers."""
        return {name: self._tensors[name] for name in names if not isinstance(self._tensors[name], torch.nn.Parameter)}

    def train_only(self, names: Iterable[str]) -> Params:
        """The parameters of these names, which take a gradient; all others take none."""
        wanted = set(names)
        for name, value in self._tensors.items():
            if isinstance(value, torch.nn.Parameter):
                value.requires_grad_(name in wanted)
        return dict(self.parameters(wanted))

    def allow(self, task: Task, seen: Sequence[int]) -> None:
        """Let a shared head's softmax see the classes that the config says."""
        if self.net.owner(task.id) == SHARED:
            self.net.allow(self._open(task, seen))

    def labels(self, task: Task, y: Tensor) -> Tensor:
        """Global class ids [B] as outputs of the head that answers for the task."""
        if self.net.owner(task.id) == SHARED and not self.net.by_place():
            return y
        lookup = torch.zeros(self._classes, dtype=torch.int64, device=y.device)
        lookup[list(task.classes)] = torch.arange(len(task.classes), device=y.device)
        return lookup[y]

    def answers(self, task: Task, job: Job) -> Answers:
        """The fields of a method's Context that ask the net."""
        past = tuple(self.tasks[name] for name in job.past)
        known = [*past, *(self.tasks[name] for name in job.tasks)]
        return {
            "forward": functools.partial(self._call, task.id),
            "past": past,
            "old": functools.partial(self._old, past),
            "each": functools.partial(self._each, known, job.seen),
            "labels": self._labels,
        }

    def _labels(self, task: Task) -> tuple[int, ...]:
        return tuple(self.labels(task, torch.tensor(task.classes, device=self._device)).tolist())

    def _call(self, task: str | Sequence[str], params: Mapping[str, Tensor], x: Tensor) -> Any:
        """The net at these parameters, its own for all others; where all are its own, without a functional call."""
        if all(self._tensors.get(name) is value for name, value in params.items()):
            return self.net(x, task)
        return functional_call(self.net, dict(params), (x, task))

    def _old(
        self,
        past: Sequence[Task],
        params: Mapping[str, Tensor],
        x: Tensor,
        teacher: bool = False,
        known: Collection[str] | None = None,
    ) -> list[Tensor]:
        past = [task for task in past if known is None or task.id in known]
        if not past:
            return []
        with self._as(teacher), self._opened():
            if not self._one_for_all:
                found: list[Tensor] = self._call([task.id for task in past], params, x)
                return self._of_own_classes(past, found)
            logits: Tensor = self._call(SHARED, params, x)
        if self.net.by_place():
            return [logits]
        if self._config.model.mask == "task":
            return [logits[:, list(task.classes)] for task in past]
        return [logits[:, sorted({c for task in past for c in task.classes})]]

    def _each(
        self,
        tasks: Sequence[Task],
        seen: Sequence[int],
        params: Mapping[str, Tensor],
        x: Tensor,
        index: Tensor,
        teacher: bool = False,
        whole: bool = False,
    ) -> Tensor:
        with self._as(teacher), self._opened():
            if self._one_for_all:
                logits: Tensor = self._call(SHARED, params, x)
                if whole or self.net.by_place():
                    return logits
                return logits + torch.stack([self._closed(task, seen) for task in self.tasks.values()])[index]
            found = self._call([task.id for task in tasks], params, x)
        if self.net.owner("") == SHARED and not whole:
            found = [logits + self._closed(task, seen) for task, logits in zip(tasks, found, strict=True)]
        padded = x.new_full((len(self.tasks), len(x), self.outputs), -torch.inf)
        for task, answer in zip(tasks, found, strict=True):
            padded[task.index, :, : answer.shape[1]] = answer
        return padded[index, torch.arange(len(x), device=x.device)]

    @property
    def _one_for_all(self) -> bool:
        """Whether one answer holds what the net says of every task."""
        return self.net.owner("") == SHARED and self.net.masks == "none"

    @contextmanager
    def _as(self, teacher: bool) -> Iterator[None]:
        """Evaluation mode and no gradient, for a teacher."""
        if not teacher:
            yield
            return
        training = self.net.training
        self.net.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.net.train(training)

    def _of_own_classes(self, tasks: Sequence[Task], logits: list[Tensor]) -> list[Tensor]:
        """Each task's softmax: of a shared head, its own classes."""
        if self.net.owner("") != SHARED:
            return logits
        return [found[:, list(task.classes)] for task, found in zip(tasks, logits, strict=True)]

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """All classes of a shared head open, for a block."""
        if self.net.owner("") != SHARED:
            yield
            return
        head = cast(SharedHead, self.net.tasks[SHARED])
        closed, head.closed = head.closed, None
        try:
            yield
        finally:
            head.closed = closed

    def _open(self, task: Task, seen: Sequence[int], replayed: bool = False) -> Sequence[int] | None:
        open_ = {"task": task.classes, "seen": seen, "all": None, "asymmetric": seen if replayed else task.classes}
        return open_[self._config.model.mask]

    def _closed(self, task: Task, seen: Sequence[int]) -> Tensor:
        """0 for an open class, -inf for a closed one: [classes]."""
        open_ = self._open(task, seen, replayed=True)
        closed = torch.full((self._classes,), 0.0 if open_ is None else -torch.inf, device=self._device)
        if open_ is not None:
            closed[list(open_)] = 0.0
        return closed
