"""Dynamically Expandable Networks: retrain what a task needs, add what is missing, split what drifts.

Yoon et al. 2018, with a stage's rounds shared out between its four steps, and the server in charge of each:
1. Selective retraining. Only the task's module trains, with ℓ1; units of the trunk from which a path of non-zero
   weights leads to it (breadth-first, from above) are selected, and weights between selected units train, held by
   (drift / 2) ‖W − W^{t−1}‖².
2. Expansion, if the hospitals' mean validation loss is still more than `above`: `units` new units a layer; old weights
   stay, new ones train with ℓ1 and a group lasso over a new unit's incoming weights; a unit whose group is zero loses
   its bias too, answers 0, and goes. The loss is that of the model which the step's last round began with, so take at
   least two rounds of retraining; a task that nobody answered for in that round is judged by its last loss.
3. Split. An old unit whose incoming weights moved by more than `split` (ℓ2) gets a copy that goes on with what was
   learned; the old one gets back W^{t−1}. Then selected and new weights train on.
4. Timestamps. A task is computed from the units that it met, see `models/_slices.py`; a unit that it has split is
   closed for it, its copy open.
The first task trains all with ℓ1. Shrinkage is proximal after each optimiser's step, hence exact zeros at a hospital;
a mean of differences seldom is one, so the server takes |w| < 1e-6 for zero: a path exists where any hospital kept it.
Rules with inertia and lossy compression would move what all hospitals left alone, and are refused.
The official code differs from the paper in nine points; this follows the paper, with these deviations: the drift term
is a proximal step too (stable at any strength), a module with a hidden layer stands for the paper's single top layer
and keeps its ℓ1 in all steps, copies train on without drift (what they hold is no old task's), the loss is the
softmax's, and selection is followed by federated rounds instead of training to convergence. Drift holds a hospital to
the model that it got when it first trained in the stage: W^{t−1}, or for one that is first drawn later the model
merged so far. Layers: mlp and cnn.

References:
    Yoon, Yang, Lee, Hwang. Lifelong Learning with Dynamically Expandable Networks. ICLR 2018. arXiv 1708.01547.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from fedcl import plugins
from fedcl.config import Config, Masks
from fedcl.contracts import Context, Memory, Method, Moment, Params, Step, role
from fedcl.growth import _den
from fedcl.models.dynamic_net import DynamicNet
from fedcl.structure import LOST, Layer, drop, first, follow, masks, widen


@dataclass(frozen=True)
class DEN(Method):
    """Dynamically Expandable Networks. The defaults are those of experiments/den.toml, chosen on held-out images.

    Attributes:
        l1: μ, ≥ 0, of the sparse steps, which shrink by η μ; the authors' 1e-5, applied without η.
        group: γ, ≥ 0, of the group lasso over new units, by η γ; the authors' 1e-3, without η.
        drift: λ, ≥ 0, with the ½, that holds retrained weights to those of the last stage; the authors' 0.5.
        above: τ, ≥ 0: expand where the validation loss is more; the authors' 0.01.
        split: σ, ≥ 0: split units that moved by more; the authors' 0.05.
        units: k, that an expansion adds to each layer, ≥ 1; the authors' 10.
        select: share of a stage's rounds in which only the module trains, in (0, 1).
        retrain: share of the rounds in which the selected weights train before an expansion, in (0, 1).
        expand: share of the rounds for new units, in (0, 1); the three sum to less than 1, the rest follows the split.
    """

    l1: float = 0.003
    group: float = 0.05
    drift: float = 10.0
    above: float = 0.1
    split: float = 0.1
    units: int = 10
    select: float = 0.2
    retrain: float = 0.3
    expand: float = 0.3
    masks: ClassVar[Masks] = "slices"
    watches: ClassVar[bool] = True
    needs_before: ClassVar[bool] = True
    edits_last: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.l1, self.group, self.drift, self.above, self.split) < 0 or self.units < 1:
            raise ValueError("l1, group, drift, above and split must be ≥ 0, units ≥ 1")
        if min(self.select, self.retrain, self.expand) <= 0 or self.select + self.retrain + self.expand >= 1:
            raise ValueError("select, retrain and expand are shares of a stage: each above 0, in all below 1")

    def unfit(self, config: Config) -> str:
        """What the paper's steps need."""
        if config.model.heads != "task":
            return "has a top layer for each task; take model.heads = 'task'"
        if config.model.name not in ("mlp", "cnn"):
            return "follows paths from layer to layer; take model.name = 'mlp' or 'cnn'"
        if config.model.weight_norm:
            return "shrinks weights to zero, which model.weight_norm holds as lengths and directions; take false"
        merger = config.federation.merger
        if plugins.stays(config.federation.aggregator, merger):
            return f"selects at the server, but federation.merger = {merger!r} leaves modules at their hospitals"
        if config.federation.consolidate_on == "local":
            return "takes units away after a stage's last round; take federation.consolidate_on = 'merged'"
        if config.train.stream == "hybrid":
            return "is held to what a stage began with, which a hybrid stream measures anew; take 'offline' or 'online'"
        if [] in (config.model.options.get("hidden"), config.model.options.get("channels")):
            return "needs hidden layers to select in; model.options has none"
        compress = config.federation.compress
        if compress != "none" and not getattr(plugins.load("compression", compress), "exact", False):
            return f"finds zeros in the hospitals' mean, which {compress!r} blurs; take federation.compress = 'sparse'"
        trunk = config.federation.aggregator
        for kind, rule in (("aggregators", trunk), plugins.merger(trunk, config.federation.merger)):
            if getattr(plugins.load(kind, rule), "inertia", False):
                return f"fixes weights and finds zeros, and the momentum of {rule!r} moves them; take 'fedavg'"
        if config.train.rounds < 4:
            return "has four steps in a stage; take train.rounds of at least 4"
        starts = (0, *self._starts(config.train.rounds), config.train.rounds)
        if any(later <= earlier for earlier, later in itertools.pairwise(starts)):
            return f"has steps without a round: they end after rounds {starts[1:]}; change select, retrain or expand"
        return ""

    # ── at a hospital ──

    def begin_task(self, ctx: Context, params: Params, memory: Memory) -> Memory:
        """W^{t−1}, but where nothing was learned before."""
        layers = (x for x in cast(DynamicNet, ctx.net).growable(()) if x.name.startswith("trunk."))
        if all(bool((ctx.buffers[masks(ctx.task.id, layer)[1]] == _den.FREE).all()) for layer in layers):
            return {}
        return {f"anchor/{name}": value.detach().clone() for name, value in params.items() if role(name) == ""}

    def edit_update(self, ctx: Context, step: Step, memory: Memory) -> tuple[Params, Memory]:
        """Fixed weights go back, the drift is pulled in, and the sparse ones shrink."""
        after, eta = dict(step.after), ctx.lr
        inputs: Tensor | None = None  # which units of the layer below train
        for layer in (x for x in cast(DynamicNet, ctx.net).growable(()) if x.name.startswith("trunk.")):
            trains = ctx.buffers[masks(ctx.task.id, layer)[1]]
            for axis in layer.rows:
                if axis.name not in after:
                    continue
                weight = after[axis.name]
                free, both = _den.ends(trains, inputs, weight)
                anchor = memory.get(f"anchor/{axis.name}")
                if anchor is not None:
                    pulled = (weight + eta * self.drift * anchor) / (1 + eta * self.drift)
                    weight = torch.where(both & ~free, pulled, weight)
                weight = torch.where(free, _den.soft(weight, eta * self.l1), weight)
                if axis is layer.rows[0]:
                    fresh = trains == _den.NEW
                    weight = torch.where(_den.rows(fresh, weight), _den.shrink(weight, eta * self.group), weight)
                    empty = fresh & (weight.flatten(1).abs().amax(1) == 0)
                else:
                    weight = weight.masked_fill(empty, 0.0)
                after[axis.name] = torch.where(free | both, weight, step.before[axis.name])
            inputs = _den.read(trains, layer)
        for name in (n for n in after if n.startswith("tasks.") and n.endswith("weight")):
            after[name] = _den.soft(after[name], eta * self.l1)
        return after, memory

    # ── at the server ──

    def merged(self, moment: Moment, before: Params, params: Params, state: Memory) -> tuple[Params, Memory]:
        """The next of a stage's steps, where it is time for one."""
        layers = [layer for layer in moment.layers if layer.name.startswith("trunk.")]
        starts = self._starts(moment.rounds)
        tasks = [task for task in moment.current if masks(task, layers[0])[0] in params]
        if moment.round == 0:
            start = {f"start/{name}": value.clone() for name, value in params.items() if role(name) == ""}
            for task in tasks:  # of one that is back, masks are as long as the layers are now
                params = params | follow(params, layers, task, 0)
            return _den.train(params, layers, tasks, _den.KEPT if moment.past else _den.FREE), start
        if not moment.past:
            return params, state
        state = state | {f"loss/{task}": torch.tensor(loss) for task, loss in moment.losses.items()}
        if moment.round == starts[0]:
            params = self._select(params, layers, tasks)
        elif moment.round == starts[1]:
            short = [task for task in tasks if float(state.get(f"loss/{task}", 0.0)) > self.above]
            params = self._expand(params, layers, tasks, short, moment.generator)
        elif moment.round == starts[2]:
            params, state = self._tidy(params, layers, tasks, state)
            params = self._split(params, layers, tasks, state)
        elif moment.round == moment.rounds:
            params, state = self._tidy(params, layers, tasks, state)
        return params, state

    def _starts(self, rounds: int) -> tuple[int, int, int]:
        """The rounds after which retraining, expansion and the rest begin."""
        first = max(1, round(self.select * rounds))
        second = max(first + 1, round((self.select + self.retrain) * rounds))
        return (
            first,
            second,
            min(max(second + 1, round((self.select + self.retrain + self.expand) * rounds)), rounds - 1),
        )

    def _select(self, params: Params, layers: list[Layer], tasks: list[str]) -> Params:
        """Breadth-first from each task's module: the units that it can be reached from."""
        selected = dict(params)
        for task in tasks:
            above = _den.used_by_module(params, task, layers[-1])
            for place in range(len(layers) - 1, -1, -1):
                selected[masks(task, layers[place])[1]] = above.float()
                if place:
                    below = layers[place - 1]
                    above = _den.used_below(params, below, above) & (params[masks(task, below)[0]] > 0)
        return selected

    def _expand(
        self, params: Params, layers: list[Layer], tasks: list[str], short: list[str], source: torch.Generator
    ) -> Params:
        """New units in every layer for the tasks that fall short: old weights stay, theirs train."""
        if not short:
            return params
        for layer in layers:
            old = layer.units(params)
            params = widen(params, layer, self.units, tasks, source)
            for task in tasks:
                name = masks(task, layer)[1]
                fresh = params[name].clone()
                if task in short:
                    fresh[:old] = 0.0
                fresh[old:] = _den.NEW  # also of a task that needs none: they are open for it, and all press them to go
                params[name] = fresh
        return params

    def _tidy(self, params: Params, layers: list[Layer], tasks: list[str], state: Memory) -> tuple[Params, Memory]:
        """Take away new units that the group lasso has emptied, and say which."""
        for layer in layers:
            weight = layer.rows[0].name
            old, now = len(state[f"start/{weight}"]), len(params[weight])
            kept = params[weight].flatten(1).abs().amax(1) > _den.ZERO
            for task in tasks:
                kept |= params[masks(task, layer)[1]] != _den.NEW  # old ones, and copies
            kept[:old] = True
            if now > old and not bool(kept.all()):
                params, state = drop(params, layer, kept, tasks), state | {LOST + layer.name: first(kept)}
        return params, state

    def _split(self, params: Params, layers: list[Layer], tasks: list[str], state: Memory) -> Params:
        """Copies of units that drifted; then all that is selected, and all that is new, trains."""
        params = self._select(params, layers, tasks)
        moved = {layer.name: _den.drifted(params, layer, state, self.split) for layer in layers}
        for layer in layers:
            params = _den.duplicate(params, layer, moved[layer.name], tasks, state)
        for layer in layers:
            old = len(state[f"start/{layer.rows[0].name}"])
            for task in tasks:
                open_, trains = (params[name] for name in masks(task, layer))
                fresh = torch.where(trains[old:] == _den.FREE, trains[old:], _den.NEW)
                params[masks(task, layer)[1]] = torch.cat([trains[:old], fresh]) * open_
        return params
