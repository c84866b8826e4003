"""What a run would send and cost, from its real net, data and schedule, without running it."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

import torch

from fedcl import augment, defaults, methods, optimizers, protect, rng
from fedcl.config import Config
from fedcl.contracts import Batch, Job, Params
from fedcl.federation import Federation
from fedcl.models import dynamic_net
from fedcl.models._layers import draw_from
from fedcl.models.dynamic_net import DynamicNet
from fedcl.plan import Plan
from fedcl.state import Group, State

_STEPS = 30  # measured, after a few that warm up
_SECONDS = 2.0  # at most, for measuring


@dataclass(frozen=True)
class Forecast:
    """A run's size before it runs."""

    parameters: dict[str, int]  # of the trunk and of each task's module, see `DynamicNet.sizes`
    down: list[float]  # [stage] bytes of a round from the server to all clients, as float32; mean over rounds
    up: list[float]
    steps: int  # of training, in the whole run
    seconds_per_step: float  # of the plain loss; measured here
    privacy: str = ""  # ε of the whole run with its terms, and the noise for it; "" where no mechanism claims one

    @property
    def seconds(self) -> float:
        """Training alone: without what the method adds, messages, and evaluation."""
        return self.steps * self.seconds_per_step


def forecast(config: Config, federation: Federation) -> Forecast:
    """Count what a run's Jobs would hold, and time a handful of training steps."""
    config = defaults.fill(config)
    with rng.torch_global(config.start, "init"):
        net = dynamic_net.build(config.model, federation.shape, federation.outputs(config.model.heads))
        for task in federation.tasks:
            net.add_task(task.id, len(task.classes), config.model.expansion_units)
    method = methods.build(config)
    plan = Plan(config, federation, method, net.owner)
    spent = protect.build(config, federation, plan, net).planned()
    params = dict(net.state_dict())
    state = State([Group(clients, params) for clients in federation.groups])
    trained = {name for name, _ in net.named_parameters()}
    down, up, steps = [], [], 0
    for stage in range(len(federation.schedule)):
        sizes = [0, 0]
        for number in range(config.train.rounds):
            for group in state.groups:
                for client, job in plan.training(state, group, stage, number):
                    moves = {n: v for n, v in job.arrays.items() if n in trained and method.trainable(n, stage)}
                    sizes[0] += sum(value.nbytes for value in job.arrays.values())
                    sizes[1] += _sent(plan, moves)
                    steps += _steps(config, federation, client, job)
        down.append(sizes[0] / config.train.rounds)
        up.append(sizes[1] / config.train.rounds)
    return Forecast(net.sizes(), down, up, steps, _measure(config, federation, net), str(spent or ""))


def _sent(plan: Plan, moves: Params) -> int:
    """Bytes of a client's deltas as they travel, where none of them is zero."""
    if plan.compression and moves:
        ones = {name: torch.ones_like(value) for name, value in moves.items()}
        moves = plan.compression.encode(ones, torch.Generator())
    return sum(value.nbytes for value in moves.values())


def _steps(config: Config, federation: Federation, client: int, job: Job) -> int:
    """Steps of a client's round."""
    index = {task.id: task.index for task in federation.tasks}
    samples = [
        sum(federation.count(hospital, index[task], "train") for hospital in federation.members[client])
        for task in job.tasks
    ]
    return config.train.epochs * sum(math.ceil(n / config.train.batch_size) for n in samples)


def _measure(config: Config, federation: Federation, net: DynamicNet) -> float:
    """Median seconds of a step on the real batches of the first client that has a task."""
    client, task = next((c, now[0]) for stage in federation.schedule for c, now in enumerate(stage) if now)
    device = torch.device(config.run.device)
    net.to(device).train()
    transform = augment.build(config.data.augment)
    data = federation.train_data(client, task)
    if config.data.own:  # nothing is here but counts: zeros take as long
        size = config.train.batch_size
        data = Batch(torch.zeros(size, *federation.shape), torch.zeros(size, dtype=torch.int64))
    optimizer = optimizers.build(config.train, list(net.parameters()), config.train.lr, several=True)
    name = federation.tasks[task].id
    draw_from(net, rng.torch_stream(config.seed, "forecast"))
    times: list[float] = []
    start = math.inf  # of the clock: after the first step, in which torch loads what it needs
    with rng.torch_global(config.seed, "forecast"):
        while len(times) < _STEPS and time.perf_counter() - start < _SECONDS:
            chunk = torch.randperm(len(data.y))[: config.train.batch_size]
            begin = time.perf_counter()
            x = data.x[chunk]
            x = (transform(x) if transform else x).to(device)
            optimizer.zero_grad()
            # Which class is right makes no difference to the time.
            target = torch.zeros(len(x), dtype=torch.int64, device=device)
            loss = torch.nn.functional.cross_entropy(net(x, name), target)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begin)
            start = min(start, time.perf_counter())
    return statistics.median(times[1:] or times)
