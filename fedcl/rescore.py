"""A run's model, scored again: on its own test data, or on another data set of the same shape and classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from fedcl import evaluate, federation, finish, infer, run_dir, scores
from fedcl.config import Config
from fedcl.contracts import FedclError, Params, role
from fedcl.federation import Federation
from fedcl.state import State


@dataclass(frozen=True)
class Model:
    """What one group of clients has learned."""

    params: Params
    prepared: Params  # for inferring the task


@dataclass(frozen=True)
class Scored:
    """Rows as in the accuracy matrix, and the names to show them with."""

    rows: list[dict[str, Any]]  # client (a hospital; None is all), task, name, value; see `scores.table`
    hospitals: tuple[str, ...]
    tasks: tuple[str, ...]  # ids, of those that the model knows
    titles: tuple[str, ...]
    what: str  # model and data, in words


def rescore(
    run: Path, dataset: str = "", rule: str = "", change: Callable[[Params], Params] = lambda params: params
) -> Scored:
    """Score the model of a finished run, or the newest checkpoint of another, hospital by hospital.

    Args:
        run: the run directory.
        dataset: another data set, split between the hospitals in the run's way; "" is the run's own.
        rule: how the task is inferred; "" is as in the run.
        change: what is done to the parameters before.

    Raises:
        FedclError: it is no run directory, nothing is saved yet, or data or rule do not suit the model.
    """
    config = run_dir.read_config(run)
    if rule and config.model.heads != "task":
        raise FedclError(f"--infer {rule}: a head that tasks share answers by its own softmax; leave --infer out")
    rule = infer.resolve(rule or config.model.infer)
    if config.data.own and not dataset:
        raise FedclError(f"{run}: the hospitals hold the data, each its own; score it on another with --dataset")
    if config.data.fingerprint and not dataset:
        raise FedclError(f"{run}: its data were handed in from Python; score it on another with --dataset")
    data = {"name": dataset, "options": {}, "own": False} if dataset else {}
    config = config.model_copy(update={"data": config.data.model_copy(update=data)})
    hospitals = federation.build(config)
    _same(run, hospitals, config.data.name)
    found, seen, what = models(run, hospitals)
    replies: list[Params] = []
    known: set[str] = set()
    for clients, saved in zip(hospitals.groups, found, strict=True):
        model = replace(saved, params=change(saved.params))
        indices = known_tasks(model, config, hospitals)
        known |= {hospitals.tasks[index].id for index in indices}
        replies += _replies(config, hospitals, clients, model, indices, seen, rule)
    tasks = [task for task in hospitals.tasks if task.id in known]
    return Scored(
        scores.table(replies),
        hospitals.names,
        tuple(task.id for task in tasks),
        tuple(task.title for task in tasks),
        f"{what}, test data of {config.data.name}",
    )


def _replies(
    config: Config,
    hospitals: Federation,
    clients: tuple[int, ...],
    model: Model,
    indices: list[int],
    seen: list[int],
    rule: str,
) -> Iterator[Params]:
    """Counts of each hospital of a group, by `<hospital>.<task>.…`."""
    tasks = [hospitals.tasks[index] for index in indices]
    net = finish.restore(config, hospitals, model.params)
    if rule == "prototypes" and config.model.heads == "task" and not model.prepared and len(tasks) > 1:
        raise FedclError("--infer prototypes: the run kept no statistics for it; take entropy, confidence or energy")
    for hospital in (hospital for client in clients for hospital in hospitals.members[client]):
        data = [(task, hospitals.batch(hospital, task.index, "test")) for task in tasks]
        counted = evaluate.count(net, tasks, seen, data, rule, model.prepared)
        yield {
            f"{hospital}.{task}.{kind}": value
            for task, counts in counted.items()
            for kind, value in zip(("answers", "scores"), counts, strict=True)
        }


def known_tasks(model: Model, config: Config, hospitals: Federation) -> list[int]:
    """The tasks that a model can answer for."""
    there = {role(name) for name in model.params}
    whole = config.model.heads != "task" and config.model.masks == "none"
    return [task.index for task in hospitals.tasks if whole or task.id in there]


def models(run: Path, hospitals: Federation) -> tuple[list[Model], list[int], str]:
    """Of each group of clients the model, the classes met, and which model it is."""
    groups = len(hospitals.groups)
    names = ["model.safetensors"] if groups == 1 else [f"model-{group}.safetensors" for group in range(groups)]
    if run_dir.read_status(run).get("state") == "finished":
        seen = sorted(
            {c for stage in hospitals.schedule for now in stage for t in now for c in hospitals.tasks[t].classes}
        )
        return [Model(*finish.read(run / name)) for name in names], seen, "final model"
    state = _checkpoint(run)
    where = f"checkpoint at stage {state.stage + 1}, round {state.round}"
    saved = [Model(group.params, infer.prepare(group.statistics)) for group in state.groups]
    seen = sorted({c for group in state.groups for c in group.seen})
    return saved, seen, where


def _checkpoint(run: Path) -> State:
    """The newest whole checkpoint; the run that may still be going on there is not disturbed."""
    for path in sorted((run / "checkpoint").glob("*.json"), reverse=True):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            file = run / manifest["file"]
            if hashlib.sha256(file.read_bytes()).hexdigest() == manifest["sha256"]:
                return State.unpack(load_file(file), manifest["state"])
        except (OSError, ValueError, KeyError, SafetensorError):
            continue  # cut short, or just replaced by a newer one
    raise FedclError(f"{run} has neither a final model nor a checkpoint yet; let it run for a round")


def _same(run: Path, hospitals: Federation, name: str) -> None:
    """Refuse data that the model was not made for."""
    try:
        plan = json.loads((run / "federation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FedclError(f"{run}/federation.json cannot be read: {error}") from error
    now = json.loads(json.dumps(hospitals.describe()))
    for key, words in (
        ("shape", "samples of the shape"),
        ("classes", "the classes"),
        ("hospitals", "the hospitals"),
    ):
        if now[key] != plan[key]:
            raise FedclError(f"--dataset {name} has {words} {now[key]}, the model was made for {plan[key]}")
    if [task["classes"] for task in now["tasks"]] != [task["classes"] for task in plan["tasks"]]:
        raise FedclError(f"--dataset {name} gives other tasks than the model was made for")
