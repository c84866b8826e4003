"""Of the Config: what a section is, and the three that say who has what, when."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Value = bool | int | float | str | list[Any] | dict[str, Any]


class Section(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Data(Section):
    """What the hospitals hold."""

    name: str = "digits"
    """A data set of `fedcl list datasets`; several joined by `+` are a sequence, with classes of their own."""
    root: str = ""
    """Where the files lie; empty is $FEDCL_DATA, or else ~/.cache/fedcl."""
    options: dict[str, Value] = {}
    """The data set's own options, for example samples of `synthetic`."""
    own: bool = False
    """Each hospital loads its own samples, from the folder that its hospital.toml names (`superlink`); the server
    learns names and counts only."""
    fingerprint: str = ""
    """Set by `simulate(config, samples)`: data handed in from Python are a part of the run's identity."""
    val: Share = 0.1
    """Share of a hospital's training samples kept for validation."""
    test: Share = 0.30
    """Share kept for testing where the data set has no test split of its own."""
    blind: bool = False
    """Drop the test samples once they are split off, and test on the validation samples: to choose settings by."""
    normalize: Literal["auto", "none", "train", "client"] | dict[Literal["mean", "std"], float | list[float]] = "auto"
    """`train`: by mean and deviation of all training samples; `client`: of each hospital's own; or {mean, std}.
    `auto` is `train` for tabular data and `none` for images."""
    augment: list[str] = []
    """torchvision v2 transforms by name with arguments, for example "RandomCrop(28, padding=2)"; training only."""


class Partition(Section):
    """Who holds which samples."""

    name: Literal["iid", "dirichlet", "shards", "quantity", "site"] = "dirichlet"
    alpha: Annotated[float, Field(gt=0)] = 0.5
    """Dirichlet concentration (`dirichlet`: over a class's owners, `quantity`: over sizes); small is skewed."""
    shards: Positive = 2
    """Shards of label-sorted samples that each hospital gets (`shards`)."""
    min_samples: Positive = 10
    """A hospital with fewer training samples than this is an error."""
    noisy: Annotated[int, Field(ge=0)] = 0
    """Hospitals, drawn at random, some of whose training labels are wrong."""
    noise: Share = 0.4
    """Share of a noisy hospital's training and validation labels that are another class's, any with the same chance."""


class Stream(Section):
    """Which task comes when."""

    kind: Literal["class", "domain", "sequence", "site"] = "class"
    """`class` splits the classes into tasks; `domain` has the same labels and a new domain in each task;
    `sequence` is one data set after another; `site` is one hospital's population after another."""
    tasks: Positive = 5
    domain: Literal["permuted", "rotated"] = "permuted"
    """What a new domain does to the features (`domain`)."""
    classes: list[list[int]] = []
    """The classes of each task (`class`), for other groups than consecutive ones; they may overlap."""
    order: Literal["index", "random"] = "index"
    """Order in which classes are dealt into tasks (`class`)."""
    max_angle: Annotated[float, Field(gt=0, le=360)] = 180.0
    """Tasks are rotated by up to this angle (`domain` rotated)."""
    angles: Literal["even", "random"] = "even"
    """By equal steps from 0, or each by an angle of its own (`domain` rotated)."""
    permute_first: bool = False
    """Whether the first task is permuted too (`domain` permuted)."""
    schedule: Literal["same", "shuffled", "staggered", "table"] = "same"
    disorder: Annotated[float, Field(ge=0, le=1)] = 1.0
    """`shuffled`: share of tasks whose places are permuted; 0 is `same`."""
    delay: Positive = 1
    """`staggered`: hospital k joins k × delay stages late."""
    table: list[list[int]] = []
    """`table`: `table[stage][hospital]` is a task's index, -1 is none."""


class Privacy(Section):
    """What protects the hospitals' records, and how much of them may show."""

    mechanism: str = "none"
    """Mechanisms of `fedcl list privacy`, joined with `+`; without one, nothing but isolation protects the records."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """δ of every ε that is told; must be below one over the number of records (or hospitals) that it speaks of."""
    max_epsilon: Annotated[float, Field(ge=0)] = 0.0
    """No round is sent that would bring a hospital's ε above this; 0 is no limit."""
    secure_rng: bool = False
    """Noise comes from the system's cryptographic source, and the draw of records from a secret: no run can then be
    repeated to the bit."""
