"""What Dynamically Expandable Networks compute with: shrinkage, paths, drift and copies."""

from __future__ import annotations

import torch
from torch import Tensor

from fedcl.contracts import Memory, Params
from fedcl.structure import Axis, Layer, masks, reader

KEPT, NEW, FREE = 0.0, 2.0, 3.0  # what a unit's `trains` says, see `models._slices.Slice`
ZERO = 1e-6  # a mean of differences that all lead to zero is seldom zero itself


def soft(weight: Tensor, threshold: float) -> Tensor:
    """argmin_v ½‖v − w‖² + threshold ‖v‖₁: soft thresholding, with exact zeros."""
    shrunk: Tensor = torch.sign(weight) * (weight.abs() - threshold).clamp_min(0.0)
    return shrunk


def shrink(weight: Tensor, threshold: float) -> Tensor:
    """argmin_v ½‖v − w‖² + threshold Σ_j ‖v_j‖₂ over rows j: w_j max(0, 1 − threshold / ‖w_j‖)."""
    norm = weight.flatten(1).norm(dim=1)
    factor = (1 - threshold / norm.clamp_min(1e-30)).clamp_min(0.0)
    return weight * rows(factor, weight)


def rows(which: Tensor, weight: Tensor) -> Tensor:
    """A flag for each unit [units], to be broadcast over its weights."""
    return which.view(-1, *[1] * (weight.dim() - 1))


def ends(trains: Tensor, inputs: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(weights with a new end, weights with both ends trained), bools that broadcast to the weight.

    Args:
        trains: of the layer's units, see `models._slices.Slice`.
        inputs: of the units that it reads, one for each column; None where it reads the sample.
        weight: [units, columns, …] or a bias [units].
    """
    new, on = rows(trains > 1, weight), rows(trains > 0, weight)
    if inputs is None or weight.dim() == 1:
        return new, on
    columns = inputs.view(1, -1, *[1] * (weight.dim() - 2))
    return new | (columns > 1), on & (columns > 0)


def read(trains: Tensor, layer: Layer) -> Tensor:
    """What the next layer's columns say of this layer's units."""
    return trains.repeat_interleave(layer.columns[0].block) if layer.columns else trains


def train(params: Params, layers: list[Layer], tasks: list[str], value: float) -> Params:
    """All units of the trunk the same."""
    names = [masks(task, layer)[1] for task in tasks for layer in layers]
    return params | {name: torch.full_like(params[name], value) for name in names}


def used_by_module(params: Params, task: str, layer: Layer) -> Tensor:
    """Bool [units]: those of the last layer that a path of non-zero weights leads from to the task's output.

    Only what is open for the task is on it, of the module as of the layer.
    """
    (name,) = reader(task, params)
    leads = torch.gt(params[f"tasks.{task}.out.weight"].abs().amax(0), ZERO) & (params[f"gates.{task}.mask"] > 0)
    weights = params[name].abs() * rows(leads, params[name])
    open_ = params[masks(task, layer)[0]] > 0
    return torch.gt(weights.amax(0).view(-1, layer.features).amax(1), ZERO) & open_


def used_below(params: Params, layer: Layer, above: Tensor) -> Tensor:
    """Bool [units]: those of a layer with a weight that is not zero to a selected unit above."""
    (axis,) = layer.columns
    weight = params[axis.name][above]
    if not len(weight):
        return torch.zeros(layer.units(params), dtype=torch.bool)
    columns = weight.abs().transpose(0, 1).flatten(1).amax(1)
    return torch.gt(columns.view(-1, axis.block).amax(1), ZERO)


def drifted(params: Params, layer: Layer, state: Memory, threshold: float) -> Tensor:
    """Indices of old units whose incoming weights moved by more than the threshold since the stage began, in ℓ2."""
    name = layer.rows[0].name
    start = state[f"start/{name}"]
    now = params[name][tuple(slice(size) for size in start.shape)]
    moved = (now - start).flatten(1).norm(dim=1)
    return torch.gt(moved, threshold).nonzero()[:, 0]


def duplicate(params: Params, layer: Layer, which: Tensor, tasks: list[str], state: Memory) -> Params:
    """Copies of these units go on with what was learned; the old ones get back what they were, for the old tasks.

    For the current tasks the copy takes the place of the old unit, so their answers stay the same.
    """
    if not len(which):
        return params
    split = dict(params)
    for axis in layer.rows:
        value, start = params[axis.name], state[f"start/{axis.name}"]
        back = value.clone()
        fit = tuple(slice(size) for size in start.shape[1:])
        old = value.new_zeros(len(which), *value.shape[1:])
        old[(slice(None), *fit)] = start[which]
        back[which] = old
        split[axis.name] = torch.cat([back, value[which]])
    for axis in layer.columns:
        split[axis.name] = _copied(split[axis.name], axis, which)
    for task in tasks:
        name, trains = masks(task, layer)
        open_ = params[name].clone()
        split[name] = torch.cat([open_.index_fill(0, which, 0.0), open_[which]])
        split[trains] = torch.cat([params[trains], torch.full((len(which),), FREE)])
        for read_ in reader(task, params) if layer.features else ():
            split[read_] = _copied(split[read_], Axis(read_, 1, layer.features), which)
    return split


def _copied(value: Tensor, axis: Axis, which: Tensor) -> Tensor:
    """The columns of these units once more at the end."""
    entries = (which[:, None] * axis.block + torch.arange(axis.block)).flatten()
    return torch.cat([value, value.index_select(axis.dim, entries)], axis.dim)
