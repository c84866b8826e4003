"""What a run leaves behind when it ends: the model and the final metrics."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedcl import infer, rng
from fedcl.config import Config
from fedcl.contracts import FedclError, Params
from fedcl.federation import Federation
from fedcl.models import dynamic_net
from fedcl.models.dynamic_net import DynamicNet
from fedcl.results import Result
from fedcl.run_dir import RunDir
from fedcl.state import State

_INFER = "infer."  # what inferring the task needs, beside the parameters in model.safetensors


def write(config: Config, federation: Federation, state: State, run: RunDir) -> None:
    """Model file(s) and final metrics."""
    for index, group in enumerate(state.groups):
        name = "model.safetensors" if len(state.groups) == 1 else f"model-{index}.safetensors"
        prepared = infer.prepare(group.statistics)
        run.save_tensors(name, group.params | {f"{_INFER}{key}": value for key, value in prepared.items()})
    group = max(state.groups, key=lambda group: len(group.params))  # where each is alone: who knows most tasks
    net = restore(config, federation, group.params)
    last = {
        "stage": len(federation.schedule) - 1,
        "round": len(federation.schedule) * config.train.rounds - 1,
    }
    last |= {"phase": "final", "client": None, "task": None}  # type: ignore[dict-item]
    figures = {"latency_ms": latency(net, federation, config, infer.prepare(group.statistics))}
    sizes = net.sizes()
    first = sizes["trunk"] + next((n for part, n in sizes.items() if part != "trunk"), 0)
    figures["parameter_growth"] = sum(sizes.values()) / first
    run.log({**last, "name": name, "value": value} for name, value in figures.items())
    metrics = Result.load(run.path).metrics
    run.log({**last, "name": n, "value": v} for n, v in metrics.items() if n not in figures)


def read(path: Path) -> tuple[Params, Params]:
    """A model file: the parameters, and what inferring the task needs.

    Raises:
        FedclError: there is no such file, or it is damaged.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise FedclError(f"{path} cannot be read: {error}; run the same command with --fresh") from error
    marked = {name.removeprefix(_INFER): value for name, value in tensors.items() if name.startswith(_INFER)}
    return {name: value for name, value in tensors.items() if not name.startswith(_INFER)}, marked


def restore(config: Config, federation: Federation, params: Params) -> DynamicNet:
    """A net in evaluation mode that holds the given parameters, with the task modules that they name."""
    with rng.torch_global(config.seed, "init"):
        net = dynamic_net.build(config.model, federation.shape, len(federation.classes))
        for task in federation.tasks:
            if any(name.startswith(f"tasks.{task.id}.") for name in params):
                net.add_task(task.id, len(task.classes), config.model.expansion_units)
    net.load_state_dict(params)
    return net.eval()


@torch.no_grad()
def latency(net: DynamicNet, federation: Federation, config: Config, prepared: Params) -> float:
    """Median time in ms to answer one sample with the task inferred from all modules."""
    x = torch.zeros(1, *federation.shape)
    tasks = [task for task in federation.tasks if task.id in net.tasks]
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        features = net.features(x)
        if tasks:
            logits = {task.id: net.head(features, task.id) for task in tasks}
            infer.predict(config.model.infer, tasks, logits, x, prepared)
        else:
            net.head(features, "")
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2] * 1e3
