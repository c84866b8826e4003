"""One frozen, validated Config: defaults, then a TOML file, then flags.

The defaults are the main job: five hospitals, scikit-learn's handwritten digits, five tasks of two classes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fedcl.sections import Data, Partition, Positive, Privacy, Section, Share, Stream, Value

Masks = Literal["none", "units", "weights", "slices", "adaptive"]


class Model(Section):
    """DynamicNet: one shared trunk, per task a module and a gate."""

    name: str = "mlp"
    """The trunk, of `fedcl list models`."""
    options: dict[str, Value] = {}
    """The trunk's own options, for example hidden = [400, 400] of `mlp`."""
    heads: Literal["task", "shared", "domain"] = "task"
    """`task`: a module per task; `shared`: one linear head over all classes, the unseen ones masked; `domain`: one
    linear head over a class's place in its task, so that all tasks have the same labels."""
    expansion_units: Positive = 32
    """Hidden units of a task's module."""
    weight_norm: bool = False
    """Weight normalisation of new modules."""
    gate_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """At a stage's end the units whose gate is below this are switched off for good; 0 keeps all."""
    head_bias: bool = True
    mask: Literal["task", "seen", "all", "asymmetric"] = "seen"
    """Shared head: the classes that training sees in the softmax: the task's, all met so far, or all; `asymmetric` is
    the task's for new samples and all met so far for replayed ones (Caccia et al. 2022)."""
    infer: str = "auto"
    """How the task is inferred where it is not known, of `fedcl.infer.RULES`; `auto` is the best for the heads."""
    masks: Literal["auto", "none", "units", "weights", "slices", "adaptive"] = "auto"
    """Each task sees the trunk through a mask over its units or its weights, as the slice of it that there was, or
    through a mask and weights that it adds (`adaptive`); `auto` is what the method or the growth rule needs."""
    adapters: Positive = 4
    """Of how many other hospitals a task may use the added weights (masks = "adaptive")."""
    growth: str = "none"
    """When and by how much the net grows, of `fedcl list growth`, joined with `+`; `none` keeps its size."""
    weights: str = ""
    """A trunk's starting weights: safetensors, or a torchvision state dict (.pt, .pth)."""
    seed: Annotated[int, Field(ge=-1)] = -1
    """Of the starting weights, so that runs of several seeds can start alike; -1 is the experiment's seed."""


class Curriculum(Section):
    """From the samples of the smallest loss to all of them, over the rounds of a stage."""

    pacing: Literal["linear", "root", "quadratic", "step"] = "linear"
    """How the share of samples grows from `start` to 1."""
    start: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of samples, the easiest, that a stage begins with."""
    full: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the stage after which all are trained on."""


class Train(Section):
    """What a client does in a round."""

    rounds: Positive = 20
    """Rounds of a stage."""
    epochs: Positive = 5
    """Passes over the client's samples of the task in a round."""
    batch_size: Positive = 32
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    lr_schedule: Literal["constant", "cosine", "step"] = "cosine"
    """Over the rounds of a stage: `cosine` to 0, `step` × 0.1 at 60 % and 85 %."""
    reset: Literal["round", "task", "never"] = "round"
    """When the optimiser's state is forgotten; what the server's rules remember is with each stage, or never."""
    stream: Literal["offline", "online", "hybrid"] = "offline"
    """`offline`: epochs over the task's samples in each round; `online`: they arrive over the rounds of the stage, and
    each is trained on once; `hybrid`: online, and what a method keeps is taken every `consolidate_every` rounds."""
    consolidate_every: Positive = 5
    """Rounds (`hybrid`)."""
    order: Literal["random", "arrival", "curriculum"] = "random"
    """`random`: shuffled in each epoch; `arrival`: as the data set has them; `curriculum`: easy ones first."""
    curriculum: Curriculum = Curriculum()

    @model_validator(mode="after")
    def _one_pass(self) -> Self:
        if self.order == "curriculum" and self.stream != "offline":
            raise ValueError('a curriculum chooses among all samples: it needs train.stream = "offline"')
        if self.stream == "hybrid" and self.consolidate_every >= self.rounds:
            raise ValueError(
                f"train.consolidate_every = {self.consolidate_every}: a stage has {self.rounds} rounds, so a hybrid "
                "stream would not consolidate on the way; take fewer, or train.stream = 'online'"
            )
        return self


class Federation(Section):
    """Who averages with whom, and what the server does with the answers."""

    kind: Literal["federated", "local", "central", "joint"] = "federated"
    """`local`: each hospital alone; `central`: pooled data, task after task; `joint`: pooled, all tasks at once."""
    clients: Positive = 5
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the clients with a current task that train in a round."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the asked clients whose valid answers a round needs."""
    timeout: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds to wait for a round's answers."""
    client_timeout: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that one client may take for what it is asked (not `inline`); 0 is no limit but `timeout`."""
    join_timeout: Annotated[float, Field(gt=0)] = 300.0
    """`superlink`: seconds to wait at the start for all hospitals; the run then begins with a quorum of them."""
    aggregator: str = "fedavg"
    """Rule for the trunk, and for a head that all tasks share."""
    merger: str = "auto"
    """Rule for task modules, of `fedcl list mergers` or an aggregator; `auto` is `weighted`, or the aggregator where
    that is not linear, or `personal` where the method says so."""
    consolidate_on: Literal["merged", "local"] = "merged"
    """The parameters that a method's Fisher, anchor or teacher is taken at."""
    compress: str = "none"
    """How the deltas of training travel to the server: "none" is as they are, or one of `fedcl list compression`."""


class Alarms(Section):
    """What is told as soon as it shows. None changes what is learned; 0 switches a rule off."""

    on: bool = True
    """False: nothing is measured for them."""
    forgetting: Share = 0.2
    """A task's accuracy sank by so much since its best."""
    drift: Annotated[float, Field(ge=0)] = 6.0
    """A hospital's updates are so many times as long as the median hospital's, three rounds in a row."""
    opposed: Share = 0.6
    """Its updates point against the others', three rounds in a row: their mean cosine is below minus this."""
    divergence: Annotated[float, Field(ge=0)] = 5.0
    """A hospital's training loss is so many times that of guessing, and has risen in the stage."""
    labels: Share = 0.15
    """The merged model disagrees with a share of a hospital's training labels that is so far above what the other
    hospitals' labels of the same classes lead to expect."""
    duplicates: Share = 0.02
    """Share of a hospital's samples with an exact copy of another label, or on the other side of the test split."""
    gaps: Share = 0.05
    """Share of a hospital's test samples whose class it has no training sample of."""


class Run(Section):
    """Where and how it runs."""

    name: str = ""
    """First part of the run directory's name; empty is <data set>-<method>."""
    output: str = ""
    """Run directory; empty is runs/<name>-<hash of this config>."""
    runtime: Literal["inline", "processes", "ray", "superlink"] = "inline"
    """`inline`: one after another in this process; `processes`: workers on this machine's devices; `ray`: Flower's
    simulation on Ray; `superlink`: a Flower deployment, see `fedcl deploy`."""
    device: str = "cpu"
    """torch device of the clients."""
    devices: str = ""
    """`processes`, `ray`: "cuda:0,cuda:1", or `auto` for every GPU, else the CPU; empty is `device`."""
    workers: Annotated[int, Field(ge=0)] = 0
    """`processes`, `ray`: clients at a time on the CPU; 0 is as many as cores (over `threads`) and clients."""
    clients_per_device: Positive = 1
    """`processes`, `ray`: clients at a time on each GPU."""
    address: str = ""
    """`ray`: a cluster that runs already ("auto", or host:port); empty starts one here."""
    connection: str = "hospitals"
    """`superlink`: the Flower connection, as `fedcl deploy init` writes it."""
    threads: Annotated[int, Field(ge=0)] = 1
    """torch threads; 0 leaves torch's own choice."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of the clients' forward and backward passes; weights and what is sent stay float32."""
    validate_every: Annotated[int, Field(ge=0)] = 5
    """Every so many rounds the incoming model is scored on validation data; 0 is never."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 0
    """Rounds between checkpoints; 0 writes one whenever checkpoints so far cost less than 5 % of the time."""
    track: list[str] = []
    """Where figures go besides the run directory, of `fedcl list trackers`."""
    keep_stages: bool = False
    """The merged model after each stage is kept as stages/<stage>.safetensors, for `fedcl attack`."""
    keep_updates: bool = False
    """So is what the server sees of each client in a stage's last round, as stages/<stage>-of-<client>.safetensors."""


# What may differ when a run goes on: none of these changes a number.
_FREE = ("output", "name", "checkpoint_every", "keep_stages", "keep_updates", "workers", "clients_per_device")
_WAYS = ("address", "connection", "track")  # likewise: where a run reaches others
# Nor do these, of other sections.
WATCHING: Any = {"alarms": True, "trackers": True, "federation": {"client_timeout", "join_timeout"}}


class Config(Section):
    """A whole experiment. `Config()` is the main job at its defaults."""

    seed: Annotated[int, Field(ge=0)] = 0
    method: str = "ewc"
    """Methods of `fedcl list methods`, combined with `+`."""
    methods: dict[str, dict[str, Value]] = {}
    """Each method's own options: methods.ewc.strength = 3000."""
    aggregators: dict[str, dict[str, Value]] = {}
    """The aggregator's own options: aggregators.krum.malicious = 2."""
    mergers: dict[str, dict[str, Value]] = {}
    """The merger's own options: mergers.ties.keep = 0.3."""
    growth: dict[str, dict[str, Value]] = {}
    """The growth rules' own options: growth.threshold.units = 16."""
    compression: dict[str, dict[str, Value]] = {}
    """The compression's own options: compression.topk.keep = 0.05."""
    mechanisms: dict[str, dict[str, Value]] = {}
    """The privacy mechanisms' own options: mechanisms.dp-sgd.epsilon = 3."""
    trackers: dict[str, dict[str, Value]] = {}
    """The trackers' own options: trackers.mlflow.experiment = "heart"."""
    data: Data = Data()
    partition: Partition = Partition()
    stream: Stream = Stream()
    model: Model = Model()
    train: Train = Train()
    federation: Federation = Federation()
    privacy: Privacy = Privacy()
    alarms: Alarms = Alarms()
    run: Run = Run()

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        return with_plus(given) if isinstance(given, dict) else given

    @property
    def start(self) -> int:
        """The seed of the starting weights."""
        return self.seed if self.model.seed < 0 else self.model.seed

    def digest(self) -> str:
        """Eight hex digits over all that decides the numbers (not where the run lies or how often it saves)."""
        content = self.model_dump(exclude=WATCHING | {"run": {*_FREE, *_WAYS}})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    def directory(self) -> Path:
        """Where the run lives."""
        if self.run.output:
            return Path(self.run.output)
        name = self.run.name or f"{self.data.name}-{self.method}".replace(":", "-").replace("+", "-")
        return Path("runs") / f"{name}-{self.digest()}"


def with_plus(tree: dict[str, Any]) -> dict[str, Any]:
    """A config's tree, in which options of `der++` may stand as those of `derpp`: a plain key of TOML has no plus."""
    given, method = tree.get("methods"), str(tree.get("method", ""))
    if not isinstance(given, dict):
        return tree
    names = {key: f"{key[:-2]}++" if key.endswith("pp") and f"{key[:-2]}++" in method else key for key in given}
    return tree | {"methods": {names[key]: options for key, options in given.items()}}
