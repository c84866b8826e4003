"""Which models an attack trains, and what each of them is trained on: all of it follows from the run and few numbers.

Every model is the run again, each candidate record in it with probability ½ by itself; all other records are in all of
them. Each model draws its batches and its noise anew. They start from the same weights, as the server knows
those, unless asked otherwise.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedcl import federation as federations
from fedcl import methods, protect, rng
from fedcl.config import Config
from fedcl.contracts import FedclError
from fedcl.federation import Federation
from fedcl.leaks.records import held, total
from fedcl.mechanism import Mechanism
from fedcl.merge import rules
from fedcl.models import dynamic_net
from fedcl.plan import Plan
from fedcl.run_dir import read_config, read_status

FOLDER, SHADOWS = "attacks", "shadows"  # in a run directory
_PLAN = "plan.json"
_HOSPITALS = 20  # in larger federations what the server sees of each in a round is not kept


@dataclass(frozen=True)
class Asked:
    """What the user asks for."""

    models: int = 16  # N, at least 3
    candidates: int = 200  # records of each task, at most
    new_init: bool = False  # each model starts from weights of its own


@dataclass(frozen=True, eq=False)
class Target:
    """A finished run, and what attacks on it are made of."""

    path: Path
    config: Config  # with the noise that it settled
    federation: Federation

    @property
    def folder(self) -> Path:
        """Where all that attacks leave is."""
        return self.path / FOLDER


def target(run: Path) -> Target:
    """Read a run that is to be attacked.

    Raises:
        FedclError: it is none, is not finished, or cannot be repeated here.
    """
    config = read_config(run)
    state = read_status(run).get("state", "not begun")
    if state != "finished":
        raise FedclError(f"{run} is {state}: an attack needs a finished run; `fedcl simulate` with its config goes on")
    if config.data.own:
        raise FedclError(
            f"{run}: the hospitals hold the data, each its own (data.own), and an attack has to train on parts of "
            "them; attack a run of the same config on data that lie here"
        )
    if config.data.fingerprint:
        raise FedclError(f"{run}: its data were handed in from Python; take a run whose data are loaded by data.name")
    if config.federation.kind == "local" or rules(config)[1].stays:
        raise FedclError(f"{run}: there is no merged model; take federation.kind and merger that merge modules")
    federation = federations.build(config)
    return Target(run, settled(config, federation), federation)


def settled(config: Config, federation: Federation) -> Config:
    """The config with the noise multipliers that a run of it chose, and without a budget that would end a rerun."""
    found = protection(config, federation).guard.parts
    mechanisms = {name: _settled(config.mechanisms.get(name, {}), part) for name, part in found.items()}
    privacy = config.privacy.model_copy(update={"max_epsilon": 0.0})
    return config.model_copy(update={"mechanisms": mechanisms, "privacy": privacy})


def protection(config: Config, federation: Federation) -> protect.Protection:
    """The server's half of privacy, as a run of this config has it."""
    with rng.torch_global(config.start, "init"):
        net = dynamic_net.build(config.model, federation.shape, federation.outputs(config.model.heads))
    return protect.build(config, federation, Plan(config, federation, methods.build(config), net.owner), net)


def _settled(options: dict[str, Any], part: Mechanism) -> dict[str, Any]:
    noise = getattr(part, "noise", 0.0)
    return options | ({"noise": noise} if noise else {})


@dataclass(frozen=True, eq=False)
class Models:
    """The models of a target: N federations and configs, made as they are asked for.

    Args:
        target: the run.
        asked: how many, and of what kind.
    """

    target: Target
    asked: Asked

    def rows(self, task: int) -> np.ndarray:
        """The candidates of a task, rows of the federation, rising: [n]."""
        federation, config = self.target.federation, self.target.config
        found = np.concatenate([held(federation, h, task) for h in range(len(federation.names))])
        draw = rng.stream(config.seed, "attack candidates", task=task)
        chosen: np.ndarray = np.sort(draw.permutation(found)[: self.asked.candidates])
        return chosen

    def coins(self, model: int) -> np.ndarray:
        """What a model tosses for each row of the federation, bool [rows]; candidates that get False stay out."""
        rows = total(self.target.federation)
        tossed: np.ndarray = rng.stream(self.target.config.seed, "attack coins", client=model).random(rows) < 0.5
        return tossed

    def member(self, task: int) -> np.ndarray:
        """Which candidates of a task are in which model: bool [N, n]."""
        rows = self.rows(task)
        return np.stack([self.coins(model)[rows] for model in range(self.asked.models)])

    def out(self, model: int) -> np.ndarray:
        """The rows that a model does not have, rising."""
        tasks = range(len(self.target.federation.tasks))
        every = np.unique(np.concatenate([self.rows(task) for task in tasks]))
        left: np.ndarray = every[~self.coins(model)[every]]
        return left

    def config(self, model: int) -> Config:
        """A model's run."""
        path = self.target.folder / SHADOWS / str(model)
        return rerun(self.target.config, path, model, self.out(model), self.asked.new_init)


def rerun(config: Config, path: Path, number: int, rows: np.ndarray, new_init: bool = False) -> Config:
    """The config of another run of a pipeline, on other records.

    Args:
        config: the pipeline.
        path: the new run's directory.
        number: of the run: its batches and noise follow from it.
        rows: that it does not have, or has otherwise: a part of its identity.
        new_init: whether it starts from weights of its own.
    """
    seed = int(rng.stream(config.seed, "attack models", client=number).integers(2**31))
    digest = hashlib.blake2b(rows.astype(np.int64).tobytes(), digest_size=8).hexdigest()
    own = {"runtime": "inline", "devices": "", "output": str(path), "name": "", "track": [], "validate_every": 0}
    changes: dict[str, Any] = {
        "seed": seed,
        "model": config.model.model_copy(update={"seed": -1 if new_init else config.start}),
        "data": config.data.model_copy(update={"fingerprint": digest}),
        "alarms": config.alarms.model_copy(update={"on": False}),
        "run": config.run.model_copy(update=own | {"keep_stages": True, "keep_updates": _seen(config)}),
    }
    return config.model_copy(update=changes)


def _seen(config: Config) -> bool:
    """Whether models keep what the server sees of each client: where it sees all of them, and they are not too many."""
    terms = config.federation
    return terms.kind == "federated" and terms.fraction == 1 and terms.clients <= _HOSPITALS


def write(models: Models) -> None:
    """Say in the run's directory what was asked, for processes that train the models."""
    folder = models.target.folder
    try:
        folder.mkdir(exist_ok=True)
        (folder / _PLAN).write_text(json.dumps(asdict(models.asked)), encoding="utf-8")
    except OSError as error:
        raise FedclError(f"{folder}: {error.strerror}; attacks are written into the run's directory") from error


@functools.lru_cache(maxsize=1)
def read(run: Path) -> Models:
    """The same, read back: enough to tell which rows a model has."""
    asked = json.loads((run / FOLDER / _PLAN).read_text(encoding="utf-8"))
    config = read_config(run)
    return Models(Target(run, config, federations.build(config)), Asked(**asked))
