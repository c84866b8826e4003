"""What the server does about a net that grows: each group's shapes, sizes, and what to tell."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fedcl import structure
from fedcl.config import Config
from fedcl.contracts import Aggregator, Moment, Params, Task, role
from fedcl.methods import Combination
from fedcl.models.dynamic_net import DynamicNet
from fedcl.net import fresh
from fedcl.state import Group
from fedcl.structure import Layer

LOSS, COUNT = "validate/loss", "validate/n"
Told = tuple[Sequence[Task], Mapping[str, float]]  # current tasks of a client that answered, and its metrics


def losses(told: Iterable[Told], rules: Sequence[Aggregator] = ()) -> dict[str, float]:
    """Each task's loss on all hospitals' validation samples.

    Where one of the rules that merge is to hold against faulty answers, no hospital is taken at its word: the median.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for tasks, metrics in told:
        for task in tasks if LOSS in metrics else ():
            found.setdefault(task.id, []).append((metrics[LOSS], metrics[COUNT]))
    if any(rule.least for rule in rules):
        return {task: statistics.median(loss for loss, _ in each) for task, each in found.items()}
    return {task: sum(loss * n for loss, n in each) / sum(n for _, n in each) for task, each in found.items()}


def misfit(metrics: Mapping[str, float]) -> str:
    """Why a hospital's loss on its validation samples cannot be used; "" if it can, or is not there."""
    if LOSS not in metrics or (metrics[LOSS] >= 0 and metrics.get(COUNT, 0) > 0):
        return ""
    return f"its {LOSS} is {metrics[LOSS]} on {metrics.get(COUNT, 'an unknown number of')} samples"


def merged(
    method: Combination, moment: Moment, net: DynamicNet, group: Group, before: Params
) -> dict[str, tuple[int, int]]:
    """Let the method's server half have the merged model; (old, new) parameters of each part that changed its size."""
    layers = [layer for layer in net.growable(moment.current) if layer.rows[0].name in group.params]
    old = sizes(net, [group.params])
    moment = replace(moment, layers=tuple(layers))
    group.params, state = method.merged(moment, before, group.params, group.method)
    lost = {key: int(value) for key, value in state.items() if key.partition("/")[2].startswith(structure.LOST)}
    group.method = {key: value for key, value in state.items() if key not in lost}
    if lost:
        _forget(group, lost, {layer.name: layer for layer in layers}, method, moment)
    others = {key: value for key, value in group.method.items() if key.partition("/")[0] not in method.growth}
    group.method |= structure.fit(others, group.params)  # what a rule of growth keeps has the shapes it was kept in
    return {part: (old[part], size) for part, size in sizes(net, [group.params]).items() if size != old[part]}


def _forget(
    group: Group, lost: Mapping[str, int], layers: Mapping[str, Layer], method: Combination, moment: Moment
) -> None:
    """Cut what the group keeps of units that went and of those behind; each hospital is told to when it is asked next.

    `lost` are the first of each layer, by "<rule>/lost/<layer>".
    """
    ends: Params = {}
    for key, units in sorted(lost.items(), key=lambda each: -each[1]):  # where two rules took some, the first counts
        ends |= structure.ends(group.params, layers[key.split("/", 2)[2]], units, moment.current)
    others = {key: value for key, value in group.method.items() if key.partition("/")[0] not in method.growth}
    group.method |= structure.cut(others, ends)
    group.rules = {part: structure.cut(memory, ends) for part, memory in group.rules.items()}
    group.broadcast = structure.cut(group.broadcast, ends)
    group.announce({f"{structure.SAID}{group.announced}/{place}": end for place, end in ends.items()})


def modules(config: Config, net: DynamicNet, params: Params, tasks: Iterable[Task]) -> Params:
    """New tasks' modules as everybody starts them, behind a group's trunk as it is now.

    Nothing where the net keeps its size, or where tasks share a head and so have nothing of their own.
    """
    new = [task for task in tasks if not any(role(name) == task.id for name in params)]
    if config.model.growth == "none" or config.model.heads != "task" or not new:
        return {}
    shaped = copy.deepcopy(net)
    structure.resize(shaped, params)
    return {name: value for task in new for name, value in fresh(config, shaped, task).items()}


def sizes(net: DynamicNet, groups: Iterable[Params]) -> dict[str, int]:
    """Parameters of the trunk and of each task's module; of the largest, where groups have nets of their own."""
    names = {name for name, _ in net.named_parameters()}
    largest: dict[str, int] = {}
    for params in groups:
        own: dict[str, int] = {}
        for name in names & params.keys():
            part = role(name) or "trunk"
            own[part] = own.get(part, 0) + params[name].numel()
        largest |= {part: max(count, largest.get(part, 0)) for part, count in own.items()}
    return net.sizes() | largest
