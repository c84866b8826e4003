"""What a run leaves behind when it ends: the model and the final metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedcl import infer, methods, plugins, rng, structure
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
    # Where each is alone: the largest net.
    group = max(state.groups, key=lambda group: sum(value.numel() for value in group.params.values()))
    last = {
        "stage": len(federation.schedule) - 1,
        "round": len(federation.schedule) * config.train.rounds - 1,
    }
    last |= {"phase": "final", "client": None, "task": None}  # type: ignore[dict-item]
    figures = net_costs(config, federation, group.params, infer.prepare(group.statistics))
    result = Result.load(run.path)
    if result.pooled_auroc.size and np.isfinite(result.pooled_auroc[-1]).any():
        figures["average_auroc"] = float(np.nanmean(result.pooled_auroc[-1]))
    sample = 4 * math.prod(federation.shape) + 8
    figures |= costs(result, methods.build(config).starts_over, sample)
    run.log({**last, "name": name, "value": value} for name, value in figures.items())
    metrics = result.metrics
    run.log({**last, "name": n, "value": v} for n, v in metrics.items() if n not in figures)


def net_costs(config: Config, federation: Federation, params: Params, prepared: Params) -> dict[str, float]:
    """`size` and `latency_ms`, with `latency_start_ms` where the net could grow.

    Modules that stay at their hospitals are as large as they were built; where they grow there, nobody knows how large
    they are, and the figures are NaN.
    """
    met = {task for stage in federation.schedule for client in stage for task in client}
    away = plugins.stays(config.federation.aggregator, config.federation.merger)
    held = [task for task in federation.tasks if task.index in met and (away or _has(params, task.id))]
    start = built(
        config, federation.shape, federation.outputs(config.model.heads), {t.id: len(t.classes) for t in held}
    )
    grows = config.model.growth != "none"
    if away and grows:
        unknown = ("latency_ms", "latency_start_ms", "parameters_start", "parameter_growth", "capacity")
        return dict.fromkeys(unknown, math.nan)
    net = start if away else restore(config, federation, params)
    figures = {"latency_ms": latency(net, federation, config, prepared)}
    if grows:
        figures["latency_start_ms"] = latency(start, federation, config, prepared)
    return figures | size(net.sizes(), start.sizes(), len(met))


def size(now: Mapping[str, int], start: Mapping[str, int], tasks: int) -> dict[str, float]:
    """How large the net has become.

    Args:
        now: parameters of the trunk and of each module, at the end.
        start: of the same net as it was built, before it grew.
        tasks: how many it was trained on, ≥ 1.

    Returns:
        parameters_start: of the first task's net as it was built; parameter_growth: all by those; capacity: all by
            those of separate nets of that size, one for each task (Yoon et al. 2018).
    """
    modules = [part for part in start if part != "trunk"]
    single = start["trunk"] + (start[modules[0]] if modules else 0)
    growth = sum(now.values()) / single
    return {"parameters_start": single, "parameter_growth": growth, "capacity": growth / tasks}


def costs(result: Result, starts_over: bool, sample: int) -> dict[str, float]:
    """What training took, and what hospitals keep.

    Args:
        result: the run.
        starts_over: whether each stage trains on all data so far, which are kept for that.
        sample: bytes of a sample and its label.

    Returns:
        training_examples: samples that went through a step, counted as often as they did, NaN where hospitals do not
        tell; cumulative_compute: how often that would be if each stage were trained from scratch on all tasks so far;
        memory_per_hospital: bytes that a method and an optimiser keep at the end, of the hospital that keeps most.
    """
    examples = [r.value for r in result.records if (r.phase, r.name) == ("train", "examples")]
    kept = {r.client: r.value for r in result.records if r.name == "memory"}
    own = whole = 0
    train = result.split[:, :, 0].sum(-1)  # [hospital, task]
    for stage, clients in enumerate(result.schedule):
        for client, now in enumerate(clients):
            due = {task for earlier in result.schedule[: stage + 1] for task in earlier[client]}
            samples = train[list(result.members[client])].sum(0)
            whole += int(sum(samples[task] for task in due)) if now or starts_over else 0
            own += int(sum(samples[task] for task in now))
    if starts_over:
        kept |= {client: float(samples * sample) for client, samples in enumerate(train.sum(1).tolist())}
    ratio = 1.0 if starts_over else whole / max(own, 1)
    return {
        "training_examples": sum(examples) if examples else math.nan,
        "cumulative_compute": ratio,
        "memory_per_hospital": max(kept.values(), default=math.nan),
    }


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
    """A net in evaluation mode with the task modules that these parameters name; it holds them."""
    sizes = {task.id: len(task.classes) for task in federation.tasks}
    return rebuild(config, federation.shape, federation.outputs(config.model.heads), sizes, params)


def rebuild(
    config: Config, shape: tuple[int, ...], outputs: int, sizes: Mapping[str, int], params: Params
) -> DynamicNet:
    """The same without the federation: the shape of a sample, outputs of a head that tasks share, classes by task."""
    net = built(config, shape, outputs, {task: size for task, size in sizes.items() if _has(params, task)})
    structure.resize(net, params)
    net.load_state_dict(params)
    return net


def built(config: Config, shape: tuple[int, ...], outputs: int, sizes: Mapping[str, int]) -> DynamicNet:
    """A net in evaluation mode as a run of this config starts it, with modules of these tasks: classes by task."""
    with rng.torch_global(config.start, "init"):
        net = dynamic_net.build(config.model, shape, outputs)
        for task, size in sizes.items():
            net.add_task(task, size, config.model.expansion_units)
    return net.eval()


def _has(params: Params, task: str) -> bool:
    return any(name.startswith((f"tasks.{task}.", f"gates.{task}.")) for name in params)


@torch.no_grad()
def latency(net: DynamicNet, federation: Federation, config: Config, prepared: Params) -> float:
    """Median time in ms to answer one sample with the task inferred from all modules."""
    x = torch.zeros(1, *federation.shape)
    tasks = [task for task in federation.tasks if net.has(task.id)]
    shared = net.owner("") == dynamic_net.SHARED
    names = [dynamic_net.SHARED] if shared and net.masks == "none" else [task.id for task in tasks]
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        answers = net(x, names)
        if tasks and not shared:
            infer.predict(config.model.infer, tasks, dict(zip(names, answers, strict=True)), x, prepared)
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2] * 1e3
