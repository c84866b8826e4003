"""Was a record trained on? Each model is attacked with the others as shadows, after each stage, for each past task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedcl import evaluate, finish
from fedcl.anatomy import seen_file, stage_file
from fedcl.attacks import membership
from fedcl.attacks.confidence import confidence
from fedcl.attacks.roc import area, rate_at, roc
from fedcl.config import Config
from fedcl.contracts import Batch, Task
from fedcl.federation import Federation
from fedcl.leaks import buffers
from fedcl.leaks.plan import SHADOWS, Models
from fedcl.leaks.records import holders, shown
from fedcl.models.dynamic_net import DynamicNet

SCORES = ("threshold", "LiRA", "RMIA", "calibrated")
RATES = (0.01, 0.001)  # false-positive rates
_FEW = 64  # models below which LiRA has one variance for all candidates
_POPULATION = 500  # test samples of a task, at most, that RMIA compares with
_POINTS = 200  # of a curve that is kept
MODEL, SERVER = "the model", "the server in a round"  # who looks, and at what

Row = dict[str, Any]


@dataclass(frozen=True)
class Said:
    """What all models say, after one stage, of candidates of one task."""

    stage: int
    task: int
    phi: Tensor  # φ [N, n] of the candidates
    population: Tensor  # φ [N, Z] of test samples
    member: Tensor  # bool [N, n]


def measure(models: Models) -> tuple[dict[str, Any], list[Row]]:
    """Attack all models: (results as JSON has them, points of the ROC curves)."""
    federation, schedule = models.target.federation, models.target.federation.schedule
    said: list[Said] = []
    rows: list[Row] = []
    points: list[Row] = []
    sums: dict[int, Tensor] = {}  # of LiRA's scores over the stages, by task
    for observer, parts in _views(models):
        each = parts[0]
        about = {"stage": each.stage, "task": federation.tasks[each.task].id}
        scored, member = scores(parts), torch.cat([part.member for part in parts], 1)
        for name, values in scored.items():
            rows.append(about | {"observer": observer, "score": name} | verdict(values, member))
        if observer != MODEL:
            continue
        said.append(each)
        points += [about | {"score": name} | point for name in scored for point in _curve(scored[name], member)]
        sums[each.task] = sums.get(each.task, torch.zeros_like(scored["LiRA"])) + scored["LiRA"]
        if each.stage == len(schedule) - 1:
            every = {"observer": "all stage models", "score": "LiRA, summed"}
            rows.append(about | every | verdict(sums[each.task], member))
    told = {
        "models": models.asked.models,
        "init": "of its own" if models.asked.new_init else "the run's",
        "candidates": {task.id: len(models.rows(task.index)) for task in federation.tasks},
        "auc": _headline(rows, len(schedule) - 1),
        "rows": rows,
        "buffers": _buffers(models, said),
    }
    return told, points


def _headline(rows: list[Row], stage: int) -> float:
    """LiRA's AUC at the final model, the mean over tasks: what comparisons show of a run."""
    final = (stage, MODEL, "LiRA")
    return float(np.mean([row["auc"][0] for row in rows if (row["stage"], row["observer"], row["score"]) == final]))


def scores(parts: Sequence[Said]) -> dict[str, Tensor]:
    """Every attack's scores [N, n], higher for members; of several sets of candidates, one after another."""
    found = [_scores(part) for part in parts]
    return {name: torch.cat([each[name] for each in found], 1) for name in SCORES}


def _scores(said: Said) -> dict[str, Tensor]:
    pooled = len(said.phi) < _FEW
    return {
        "threshold": said.phi,
        "LiRA": membership.lira(said.phi, said.member, pooled=pooled),
        "RMIA": membership.rmia(said.phi, said.member, said.population, online=True),
        "calibrated": membership.calibrated(said.phi, said.member),
    }


def verdict(values: Tensor, member: Tensor, kept: Tensor | None = None) -> Row:
    """AUC and true-positive rates with their intervals.

    Args:
        values: scores [N, n].
        member: bool [N, n].
        kept: bool [N, n], the scores that count; None is all.
    """
    model, candidate = (
        torch.arange(length).view(shape).expand(member.shape)
        for length, shape in zip(member.shape, ((-1, 1), (1, -1)), strict=True)
    )
    chosen = torch.ones_like(member) if kept is None else kept
    values, member = values[chosen], member[chosen]
    found = area(values, member, (model[chosen], candidate[chosen]))
    curve = roc(values, member)
    rates = {rate: rate_at(curve, rate) for rate in RATES}
    told: Row = {"auc": [found.value, found.low, found.high], "members": curve.members, "others": curve.others}
    for rate, at in rates.items():
        told[f"tpr@{rate}"] = [at.tpr, at.low, at.high, at.false_positives]
    return told


def phi(net: DynamicNet, task: Task, x: Tensor, y: Tensor) -> Tensor:
    """φ [n] of samples with global class ids, the task known."""
    place = (y[:, None] == torch.tensor(task.classes)).int().argmax(1)
    return confidence(evaluate.known(net, task, x).double(), place)


def kept_net(config: Config, federation: Federation, file: str) -> DynamicNet:
    """A model that a run has kept."""
    params, _ = finish.read(config.directory() / file)
    return finish.restore(config, federation, params)


def _views(models: Models) -> Iterator[tuple[str, list[Said]]]:
    """After each stage, for each task that was trained until then: what who looks sees of all candidates.

    Whoever has the model sees one net. The server has seen one of each client in the stage's last round: what a
    candidate's own client made of it, where that client trained in that round in all models.
    """
    federation = models.target.federation
    configs = [models.config(number) for number in range(models.asked.models)]
    met: set[int] = set()
    for stage, now in enumerate(federation.schedule):
        met |= {task for client in now for task in client}
        nets = [kept_net(config, federation, stage_file(stage)) for config in configs]
        for index in sorted(met):
            yield MODEL, [_said(models, stage, index, nets, np.ones(len(models.rows(index)), bool))]
        parts: dict[int, list[Said]] = {}
        for client in range(len(now)):
            file = seen_file(stage, client)
            if not all((config.directory() / file).exists() for config in configs):
                continue
            nets = [kept_net(config, federation, file) for config in configs]
            for index in sorted(met):
                mine = holders(federation, models.rows(index)) == client
                if mine.any():
                    parts.setdefault(index, []).append(_said(models, stage, index, nets, mine))
        yield from ((SERVER, parts[index]) for index in sorted(parts))


def _said(models: Models, stage: int, index: int, nets: Sequence[DynamicNet], which: np.ndarray) -> Said:
    """What these nets say of some of a task's candidates, which: bool [n]."""
    federation, task = models.target.federation, models.target.federation.tasks[index]
    known, public = shown(federation, models.rows(index)[which], index), _tests(federation, index)
    return Said(
        stage,
        index,
        torch.stack([phi(net, task, known.x, known.y) for net in nets]),
        torch.stack([phi(net, task, public.x, public.y) for net in nets]),
        torch.from_numpy(models.member(index)[:, which]),
    )


def _tests(federation: Federation, task: int) -> Batch:
    """Test samples of all hospitals, evenly picked: no model was trained on them."""
    parts = [federation.batch(hospital, task, "test") for hospital in range(len(federation.names))]
    x, y = torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])
    step = max(1, -(-len(y) // _POPULATION))
    return Batch(x[::step], y[::step])


def _buffers(models: Models, said: list[Said]) -> list[Row]:
    """At the end, members that a hospital keeps for replay, and the other members, each against all non-members."""
    federation, last = models.target.federation, len(models.target.federation.schedule) - 1
    paths = [models.target.folder / SHADOWS / str(number) for number in range(models.asked.models)]
    memories = [buffers.read(path) for path in paths]
    if not any(memories):
        return []
    rows: list[Row] = []
    for each in (one for one in said if one.stage == last):
        task = federation.tasks[each.task]
        x = shown(federation, models.rows(each.task), each.task).x
        kept = torch.stack([buffers.has(memory, each.task, x) for memory in memories]) & each.member
        scored = scores([each])
        for name, those in (("buffered", kept), ("not buffered", each.member & ~kept)):
            if bool(those.any()):
                about = {"stage": last, "task": task.id, "members_are": name}
                for score in ("LiRA", "calibrated"):
                    told = verdict(scored[score], each.member, those | ~each.member)
                    rows.append(about | {"score": score} | told)
    return rows


def _curve(values: Tensor, member: Tensor) -> Iterator[Row]:
    """Points of a ROC curve, even in the logarithm of the false positives."""
    curve = roc(values, member)
    alarms = curve.false_positives
    last = torch.cat([alarms[1:] != alarms[:-1], torch.ones(1, dtype=torch.bool)]).nonzero()[:, 0]  # best at its FPR
    wanted = np.unique(np.geomspace(1, len(last), _POINTS).round().astype(int)) - 1
    for place in last[torch.from_numpy(wanted)].tolist():
        yield {"fpr": float(curve.fpr[place]), "tpr": float(curve.tpr[place])}
