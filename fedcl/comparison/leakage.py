"""What a run's final model tells about who was trained on: one number for each run of a comparison.

Where `fedcl attack` was run on it, that is LiRA's AUC at the final model, of `attacks/results.json`. Otherwise it is
the AUC of the loss threshold (Yeom et al. 2018) over the training and the test samples of all tasks and hospitals, the
task known, with one threshold for all. It needs no other models, and is a lower bound of what shows: an attack with
shadow models (LiRA) finds more, most of all at few false positives. ½ is chance.

References:
    Yeom, Giacomelli, Fredrikson, Jha. Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting. CSF
        2018. arXiv 1709.01604.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedcl import evaluate, federation, finish, rescore, run_dir
from fedcl.attacks import roc
from fedcl.attacks.confidence import confidence
from fedcl.contracts import Samples
from fedcl.federation import Federation
from fedcl.results import small

FIGURE = "membership_auc"
_ATTACKS, _THRESHOLD = "attacks/results.json", "attacks/threshold.json"


def read(run: Path) -> dict[str, float]:
    """The figure by its name; empty where nothing was measured."""
    value = small(run, _ATTACKS).get("membership", {}).get("auc") or small(run, _THRESHOLD).get("auc", math.nan)
    return {FIGURE: float(value)} if math.isfinite(value) else {}


def measure(run: Path, samples: Samples | None = None) -> None:
    """Score a finished run by the loss threshold, and note it there; nothing is done where a figure is already.

    Args:
        run: the run directory.
        samples: the data, where they are not to be loaded as its config says.

    Raises:
        FedclError: model or data cannot be read.
    """
    config = run_dir.read_config(run)
    if read(run) or config.data.own:  # what hospitals hold is not here
        return
    hospitals = federation.build(config, samples)
    scores, member = _scores(run, hospitals)
    found = roc.area(scores, member)
    told: dict[str, Any] = {"attack": "loss threshold, the task known", "auc": found.value}
    told |= {"low95": found.low, "high95": found.high}
    told |= {"members": int(member.sum()), "others": int((~member).sum())}
    (run / _THRESHOLD).parent.mkdir(exist_ok=True)
    draft = run / f"{_THRESHOLD}.part"
    draft.write_text(json.dumps(told), encoding="utf-8")
    draft.replace(run / _THRESHOLD)


def _scores(run: Path, hospitals: Federation) -> tuple[Tensor, Tensor]:
    """φ of every training and test sample under the model of its hospital [n], and which ones were trained on."""
    found = list(_parts(run, hospitals))
    members = [torch.full((len(phi),), trained) for phi, trained in found]
    return torch.cat([phi for phi, _ in found]), torch.cat(members)


@torch.no_grad()
def _parts(run: Path, hospitals: Federation) -> Iterator[tuple[Tensor, bool]]:
    config = run_dir.read_config(run)
    saved, _, _ = rescore.models(run, hospitals)
    for clients, model in zip(hospitals.groups, saved, strict=True):
        net = finish.restore(config, hospitals, model.params)
        for hospital in (hospital for client in clients for hospital in hospitals.members[client]):
            for task in (hospitals.tasks[index] for index in rescore.known_tasks(model, config, hospitals)):
                classes = torch.tensor(task.classes)
                for split in ("train", "test"):
                    batch = hospitals.batch(hospital, task.index, split)
                    if len(batch.y):
                        truth = (batch.y[:, None] == classes).int().argmax(1)
                        yield confidence(evaluate.known(net, task, batch.x).double(), truth), split == "train"
