"""One task's net alone: what to carry to where only that task is answered."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from fedcl import structure
from fedcl.contracts import FedclError
from fedcl.models import _masks, _slices
from fedcl.models.dynamic_net import DynamicNet


@torch.no_grad()
def extract(net: DynamicNet, task: str) -> DynamicNet:
    """A net of its own for one task, without units that the task has not met or that are closed for it.

    Answers are those of `net`, up to the order of sums. Closed heads, channels and units cost nothing any more; masks
    of other kinds than slices are multiplied in.

    Raises:
        FedclError: the net has no module of the task.
    """
    if task not in net.tasks:
        raise FedclError(f"task {task!r} has no module; there are: {', '.join(net.tasks) or 'none yet'}")
    small = DynamicNet(copy.deepcopy(net.trunk)).train(net.training)
    small.tasks[task], small.gates[task] = copy.deepcopy(net.tasks[task]), copy.deepcopy(net.gates[task])
    for name in ("hidden", "out"):  # a shorter direction would have another length: keep the weight itself
        linear = cast(nn.Module, getattr(small.tasks[task], name))
        if parametrize.is_parametrized(linear):
            parametrize.remove_parametrizations(linear, "weight")
    gate = small.gates[task]
    params = {name: value for name, value in small.state_dict().items() if not name.startswith("trunk.")}
    if net.masks == "slices":
        masks = cast(nn.ModuleDict, gate.trunk)
        view = _slices.seen(net.trunk, masks, used=True)
        for layer in _slices.layers(net.trunk):
            closed = cast(_slices.Slice, masks[layer.mask]).open > 0
            for name in structure.reader(task, params) if layer.features else ():
                params[name] = structure.select(params[name], 1, closed.nonzero()[:, 0], layer.features)
        params |= {f"trunk.{name}": value for name, value in view.items()}
    elif net.masks != "none":  # what the masks make of the trunk, as weights
        params |= {
            f"trunk.{name}": value for name, value in _masks.seen(net.trunk, cast(nn.ModuleDict, gate.trunk)).items()
        }
    if net.masks != "none":
        del gate.trunk
        params = {name: value for name, value in params.items() if f"gates.{task}.trunk." not in name}
    params = structure.drop(params, structure.module(task, params), params[f"gates.{task}.mask"] > 0, ())
    structure.resize(small, params)
    small.load_state_dict(params, strict=False)
    return small
