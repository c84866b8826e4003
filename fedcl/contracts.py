"""The records that pass between stages, and the base classes that a plug-in fills.

Shapes: N samples, C classes, P parameters. A parameter's name carries its role: `trunk.*` is shared by all tasks,
`tasks.<task>.*` and `gates.<task>.*` belong to one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedcl.config import Config, Masks
from fedcl.errors import FedclError as FedclError
from fedcl.protocols import Compression as Compression
from fedcl.protocols import Each, Measure, Old
from fedcl.protocols import Event as Event
from fedcl.protocols import Tracked as Tracked
from fedcl.protocols import Tracker as Tracker
from fedcl.samples import SPLITS as SPLITS
from fedcl.samples import TEST as TEST
from fedcl.samples import TRAIN as TRAIN
from fedcl.samples import UNASSIGNED as UNASSIGNED
from fedcl.samples import VAL as VAL
from fedcl.samples import Samples as Samples
from fedcl.samples import Task as Task
from fedcl.structure import Layer, misshapen
from fedcl.structure import role as role

Params = dict[str, Tensor]
Memory = dict[str, Tensor]
Phase = Literal["train", "consolidate", "evaluate", "mask"]


@dataclass(frozen=True)
class Batch:
    """What one step sees."""

    x: Tensor  # [B, *shape] float32
    y: Tensor  # [B] int64, index into the outputs of the task's module or shared head


@dataclass(frozen=True)
class Job:
    """What the server asks of one client."""

    phase: Phase
    stage: int
    round: int  # counted over the whole run
    tasks: tuple[str, ...]  # to train, to consolidate, or to evaluate
    arrays: Params
    lr: float = 0.0  # this round's learning rate
    version: str = ""  # the client memory to start from; "" is an empty one
    broadcast: Memory = field(default_factory=dict)  # what the server half of the method says
    past: tuple[str, ...] = ()  # tasks of earlier stages, whose modules come along; only for methods that ask for them
    held: tuple[str, ...] = ()  # those of them whose modules only answer: they neither move nor are sent back
    seen: tuple[int, ...] = ()  # global ids of the classes met so far, for shared heads
    # "validate": score the incoming model; "local": score the trained one;
    # "consolidate": do so on the trained one; "begin": the first round of the stage
    flags: tuple[str, ...] = ()
    terms: Mapping[str, float] = field(default_factory=dict)  # what privacy mechanisms tell a client
    sealed: Memory = field(default_factory=dict)  # what secure aggregation says to one client
    keep: tuple[str, ...] = ()  # the client memories that checkpoints name; older others may go. () is: not known yet


@dataclass(frozen=True)
class Update:
    """What one client answers."""

    client: int
    arrays: Params  # train: new minus received parameters; evaluate: integer counts
    weight: float  # training samples behind it
    metrics: Mapping[str, float]
    extras: Memory = field(default_factory=dict)  # what the client half of the method sends
    version: str = ""  # the client memory that this answer left behind


@dataclass(frozen=True)
class Answer:
    """What came of one Job: an update, or the reason why there is none."""

    client: int
    update: Update | None
    error: str
    bytes_down: int  # bytes to the client
    bytes_up: int  # bytes from it


Ask = Callable[[Sequence[tuple[int, Job]], float], Iterator[Answer]]  # (jobs by client, seconds to wait) → answers


@dataclass(frozen=True)
class Context:
    """What a method may see besides parameters, batch and memory. Frozen; nothing in it remembers."""

    forward: Callable[[Mapping[str, Tensor], Tensor], Tensor]  # (params, x) → logits of the task [B, outputs]
    net: nn.Module  # for layers' inputs and outputs (closed-form Fisher); its parameters are not to be read
    task: Task
    stage: int
    client: int
    lr: float
    generator: torch.Generator  # the only source of randomness
    past: tuple[Task, ...] = ()  # tasks of earlier stages whose modules are at hand, for `needs_past`
    old: Old = lambda params, x, teacher=False, known=None: []
    each: Each = lambda params, x, index, teacher=False, whole=False: torch.empty(0)
    outputs: int = 0  # of the widest head
    buffers: Mapping[str, Tensor] = field(default_factory=dict)  # the masks that the server decided, by name
    slots: int = 1  # times that a client consolidates in the whole run, at most
    step: int = 0  # of the round
    round: int = 0  # of the stage, which has so many `rounds`
    rounds: int = 1
    start: Mapping[str, Tensor] = field(default_factory=dict)  # what the round began with, of what trains
    again: bool = False  # the client has consolidated this task in an earlier stage: its samples were offered
    progress: float = 0.0  # share of the epoch that is done with this step, in (0, 1]
    labels: Callable[[Task], tuple[int, ...]] = lambda task: tuple(range(len(task.classes)))  # a task's own outputs
    shape: tuple[int, ...] = ()  # of a sample; this and the next for `synthesize` only
    private: Measure | None = None  # with DP-SGD, what measures a Fisher diagonal with noise
    bounds: tuple[Tensor, Tensor] | None = None  # least and largest value of a sample, [C, 1, 1], where they are known


@dataclass(frozen=True)
class Step:
    """One step of the optimiser."""

    before: Params  # the parameters before it; empty unless a method asks for them (`needs_before`)
    grads: Params  # what the optimiser was given
    after: Params


@dataclass(frozen=True)
class Moment:
    """Where a run stands when the server half of a method is called between rounds."""

    stage: int
    round: int  # rounds of the stage that are done; 0 is before the first
    rounds: int  # of a stage
    current: tuple[str, ...]  # the stage's tasks
    past: tuple[str, ...]  # those of earlier stages, also where they are current again
    losses: Mapping[str, float] = field(default_factory=dict)  # by task, of the model before the round, for `watches`
    layers: tuple[Layer, ...] = ()  # what can grow: of the trunk, and of the current tasks' modules
    generator: torch.Generator = field(default_factory=torch.Generator)  # the only source of randomness


class Method:
    """A continual-learning method: pure functions that remember in one flat dict of tensors.

    Every hook is optional, and the loop skips those that a method leaves alone. None may branch on a tensor's
    value in a step, and memory shapes change at consolidation only. Options are the fields of the (frozen) subclass.
    """

    sends: ClassVar[Literal["task", "round", "both"]] = "task"  # when `upload` and `server` are called
    needs_before: ClassVar[bool] = False  # `edit_update` reads the parameters from before the step
    needs_past: ClassVar[bool] = False  # the modules of earlier tasks come along; a client's own may train along
    masks: ClassVar[Masks] = "none"  # through which kind of masks each task sees the trunk
    personal: ClassVar[bool] = False  # a task's module stays at its hospital: federation.merger = "personal"
    watches: ClassVar[bool] = False  # hospitals measure the incoming model's loss on validation samples in each round
    resizes: ClassVar[bool] = True  # works with a net that grows: what it remembers by parameter is fitted
    every_task: ClassVar[bool] = False  # each stage starts from fresh weights, on the data of all tasks so far
    edits_last: ClassVar[bool] = False  # what `edit_update` guarantees would be lost by an edit that follows
    exact: ClassVar[bool] = False  # what it promises would be lost if updates or uploads were clipped and noised
    alone: ClassVar[bool] = False  # cannot be combined
    # How training records show in what it does beside the default loss: "none" follows from weights and gradients
    # alone, "fisher" measures a diagonal by `ctx.private` where there is one, "kept" trains on what `kept` hands out.
    records: ClassVar[Literal["open", "none", "fisher", "kept"]] = "open"

    def conventions(self) -> Mapping[str, Any]:
        """What a number of this method cannot be compared without: kinds, reductions, factors. For the results."""
        return {}

    def unfit(self, config: Config) -> str:
        """Why the method cannot work with this net or this training; "" if it can."""
        return ""

    def hooks(self) -> frozenset[str]:
        """The names of the hooks that the loop has to call: those that the class overrides."""
        own = (name for name in vars(Method) if not name.startswith("_"))
        return frozenset(name for name in own if getattr(type(self), name) is not getattr(Method, name))

    def trainable(self, name: str, stage: int) -> bool:
        """Whether the parameter may move in this stage; what may not is neither optimised nor sent back."""
        return True

    def trainable_past(self, name: str) -> bool:
        """Whether a parameter of an earlier task's module may move, for `needs_past`; its masks may not."""
        return ".trunk." not in name

    def new_module(self, client: int, module: Params, shared: Params, memory: Memory) -> Params:
        """For `personal`: a client's own module of a new task, from everybody's and the trunk; by name, masks too."""
        return module

    def kept(self, memory: Memory) -> tuple[Batch, Tensor]:
        """For `records` = "kept": all samples that are kept, and the index of each one's task [M]."""
        raise NotImplementedError(f"{type(self).__name__} keeps none")

    def begin_task(self, ctx: Context, params: Params, memory: Memory) -> Memory:
        """Once, when a client starts a stage with a task."""
        return memory

    def observe(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Memory:
        """Each sample of a task is offered once in the run, after the step that saw it first, for buffers."""
        return memory

    def loss(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """The loss of a batch, a 0-d tensor; the default is cross-entropy."""
        return nn.functional.cross_entropy(ctx.forward(params, batch.x), batch.y)

    def penalty(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """Added to the loss, a 0-d tensor."""
        return torch.zeros(())

    def edit_grads(self, ctx: Context, params: Params, grads: Params, memory: Memory) -> tuple[Params, Memory]:
        """(gradients before the optimiser sees them, memory)."""
        return grads, memory

    def edit_update(self, ctx: Context, step: Step, memory: Memory) -> tuple[Params, Memory]:
        """(parameters after the step, memory): proximal steps, projections, masks, path integrals."""
        return step.after, memory

    def track(self, ctx: Context, step: Step, memory: Memory) -> Memory:
        """Each step, when all edits of all methods are made: path integrals."""
        return memory

    def end_round(self, ctx: Context, params: Params, memory: Memory) -> Memory:
        """After a client's steps of a round, `ctx.step` of them: control variates."""
        return memory

    def end_task(self, ctx: Context, params: Params, data: Batch, memory: Memory) -> Memory:
        """Consolidation on the merged model, with all of the client's training samples of the task."""
        return memory

    def upload(self, memory: Memory) -> Memory:
        """After `end_task` (or `end_round`, see `sends`): what the server half needs. Raw samples never."""
        return {}

    def misfit(self, client: int, net: nn.Module, params: Params, upload: Memory) -> str:
        """Why this cannot be a client's `upload`, so that `server` never sees it; "" if it can.

        `params` are the parameters of `net` (their shapes; its own values say nothing) that the client trained in the
        round, or was sent where `sends` is more than "round". By default a key that ends in "/" and one of their names
        has that one's shape, and anything may be there or missing.
        """
        return misshapen(upload, params)

    def server(self, params: Params, state: Memory, uploads: Sequence[tuple[float, Memory]]) -> tuple[Memory, Memory]:
        """Server half: (merged parameters, state, [(samples > 0, upload)]) → (state, broadcast)."""
        return state, {}

    def synthesize(self, ctx: Context, params: Params, state: Memory) -> tuple[Memory, Memory]:
        """Server half, at the end of each stage but the last: what can be asked of the merged net alone.

        `ctx` is no client's: `ctx.past` are all tasks so far, `ctx.task` is one of this stage. Called after `server`,
        also where nobody sent anything: (merged parameters, state) → (state, broadcast).
        """
        return state, {}

    def merged(self, moment: Moment, before: Params, params: Params, state: Memory) -> tuple[Params, Memory]:
        """Server half: before a stage and after each of its rounds, (the merged model's tensors, state) → the same.

        `before` are those that the round began with; `state` is what `server` keeps. Tensors may change their shape:
        the net, and what everybody keeps by parameter, follow. Who takes units away says so, see `structure.LOST`.
        """
        return params, state

    def receive(self, broadcast: Memory, memory: Memory) -> Memory:
        """Client half of the answer, before the client trains next."""
        return memory


class Aggregator:
    """A rule that merges clients' deltas: for the trunk (aggregators) or for a task's module (mergers).

    A linear rule needs only the weighted mean of the deltas, which secure aggregation can hand it; any other gets all
    deltas at once, by the same names. Options are the fields of the (frozen) subclass.
    """

    linear: ClassVar[bool] = True
    inertia: ClassVar[bool] = False  # by what its state remembers it moves what no delta moves
    stays: ClassVar[bool] = False  # a task's module stays at its hospital: it is neither sent nor merged
    least: ClassVar[int] = 0  # answers with which it holds as it says although some are faulty; 0: it does not say so

    def measure(self, ctx: Context, params: Params, data: Batch) -> Params:
        """Client half, after a round's training on a task: of each of these parameters what `reduce` needs, like it."""
        return {}

    def reduce(self, deltas: Sequence[Params], weights: Sequence[float], measured: Sequence[Params]) -> Params:
        """Many deltas → one, if not linear; nothing is `measured` of modules of earlier tasks that trained along."""
        raise TypeError(f"{type(self).__name__} is linear: the server computes its mean")

    def step(self, params: Params, delta: Params, state: Memory) -> tuple[Params, Memory]:
        """Apply the merged delta: (params, delta, state) → (params, state); what that leaves out stays in the state."""
        return {name: value + delta[name] for name, value in params.items()}, state

    def across(self, modules: Mapping[str, Params]) -> Mapping[str, Params]:
        """After a round: the modules of its current tasks, by task, and what they become beside each other."""
        return modules
