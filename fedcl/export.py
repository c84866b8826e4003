"""A finished run's merged model as one file that stands alone, and the net of such a file.

The file is safetensors: parameters and masks by name, and beside them, as text, all that rebuilds the net: the config,
the shape of a sample, each task's classes, and how inputs are normalised. With `int8` each weight is eight-bit numbers
with one scale for each output (`<name>#scale`); biases, gates, masks and what would not shrink stay as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import fedcl
from fedcl import features, finish, merge, quantize, rescore, run_dir
from fedcl.config import Config, Run
from fedcl.contracts import FedclError, Params, role
from fedcl.models.dynamic_net import SHARED

FORMAT = "fedcl-export-1"
_SCALE = "#scale"  # after a parameter's name


@dataclass(frozen=True)
class Written:
    """What an export came to."""

    bytes: int  # of the tensors
    bytes_float: int  # of the same as float32
    accuracies: tuple[tuple[str, float, float], ...]  # (task known or inferred, the run's model, the file's)
    unscored: str  # why there are none; "" if there are


class Exported(nn.Module):
    """The net of an exported file, in evaluation mode.

    It takes inputs as they are before normalisation, where all hospitals have the same (`info["normalize"]`).
    Of a simulated domain (`stream.kind = "domain"`) it takes them as in training: normalised, then permuted or rotated.

    Attributes:
        net: the DynamicNet.
        tasks: task id → the names of its classes, in the order of the outputs.
        info: all that the file says of itself.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, params: Params, info: dict[str, Any]) -> None:
        super().__init__()
        config, self.info = Config.model_validate(info["config"]), info
        self._places = {task["id"]: list(task["classes"]) for task in info["tasks"]}
        self.tasks = {task: tuple(info["classes"][c] for c in places) for task, places in self._places.items()}
        sizes = {task: len(places) for task, places in self._places.items()}
        self.net = finish.rebuild(config, tuple(info["shape"]), info["outputs"], sizes, params)
        # A simulated domain is made of samples that are normalised already: there is nothing to do before it.
        scaling, shape = ({} if config.stream.kind == "domain" else info["normalize"]), info["shape"]
        for name, neutral in (("mean", 0.0), ("std", 1.0)):
            given = scaling.get(name, [neutral])
            given = given * shape[0] if len(given) == 1 else given  # one number for all channels
            given = given + [neutral] * (shape[0] - len(given))  # flags of missing values are not scaled
            self.register_buffer(name, torch.tensor(given).reshape(-1, *[1] * (len(shape) - 1)))
        self.eval()

    def forward(self, x: Tensor, task: str = "") -> Tensor:
        """Samples x [B, *shape] → logits of the task's classes [B, classes].

        Args:
            x: float32, or uint8 (0…255), which is divided by 255. Missing values are to be imputed and flagged.
            task: its id; "" gives all outputs of a head that tasks share.

        Raises:
            FedclError: there is no such task.
        """
        shared = self.net.owner("") == SHARED
        if task not in self.tasks and not (shared and not task and self.net.masks == "none"):
            raise FedclError(f"task {task!r} is not in this file; there are: {', '.join(self.tasks)}")
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        logits: Tensor = self.net((x - self.mean) / self.std, task or SHARED)
        if not shared or not task:
            return logits
        places = self._places[task]
        return logits[:, : len(places)] if self.net.by_place() else logits[:, places]


def export(run: Path, output: Path, int8: bool = False) -> Written:
    """Write the final merged model of a run, and score what was written on the run's test data if they are at hand.

    Args:
        run: the run directory.
        output: the file; one that is there is replaced.
        int8: quantise weights.

    Raises:
        FedclError: it is no finished run, there is no one merged model, or the file cannot be written.
    """
    config = run_dir.read_config(run)
    _check(run, config)
    params, _ = finish.read(run / "model.safetensors")
    info = _info(config, _plan(run), params)
    tensors = params
    if int8:
        net = Exported(params, info).net
        tensors = _quantised(params, [name for name, _ in net.named_parameters()])
        info["int8"] = [name.removesuffix(_SCALE) for name in tensors if name.endswith(_SCALE)]
    scored, unscored = _scores(run, lambda model: _restored(tensors, info["int8"]))
    sizes = [sum(value.nbytes for value in each.values()) for each in (tensors, params)]
    done = Written(sizes[0], sizes[1], scored, unscored)
    info |= {"bytes": done.bytes, "bytes_float": done.bytes_float}
    info["accuracy"] = {name: {"before": before, "after": after} for name, before, after in scored}
    _write(output, tensors, info)
    return done


def load_export(path: str | Path) -> Exported:
    """The net of an exported file: `net(x, task)` → logits. Eight-bit weights are float32 again.

    Raises:
        FedclError: there is no such file, it is damaged, or it is no export.
    """
    try:
        with safe_open(path, framework="pt") as file:
            head = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FedclError(f"{path} cannot be read: {error}; `fedcl export RUN --output {path}` writes it") from error
    if head.get("format") != FORMAT:
        raise FedclError(f"{path} is not an exported model; `fedcl export RUN --output FILE` writes one")
    try:
        info = {name: json.loads(text) for name, text in head.items() if name != "format"}
        return Exported(_restored(tensors, info["int8"]), info)
    except (KeyError, ValueError, RuntimeError) as error:
        raise FedclError(f"{path} is damaged, or of another version of fedcl: {error}") from error


def _plan(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / "federation.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise FedclError(f"{run}/federation.json cannot be read: {error}; has the run begun?") from error


def _info(config: Config, plan: dict[str, Any], params: Params) -> dict[str, Any]:
    """What the file says beside its tensors, by name: JSON."""
    there = {role(name) for name in params}
    whole = config.model.heads != "task" and config.model.masks == "none"
    sizes = [len(task["classes"]) for task in plan["tasks"]]
    # The file stands alone: where the data lay and the run was is no part of the net.
    parts = {"data": config.data.model_copy(update={"root": ""}), "run": Run()}
    alone = config.model_copy(update=parts | {"model": config.model.model_copy(update={"weights": ""})})
    return {
        "fedcl": fedcl.__version__,
        "trunk": {"name": config.model.name, "options": config.model.options},
        "shape": plan["shape"],
        "classes": plan["classes"],
        "tasks": [task for task in plan["tasks"] if whole or task["id"] in there],
        "outputs": max(sizes) if config.model.heads == "domain" else len(plan["classes"]),
        "normalize": plan.get("normalize") or {"how": features.method(config.data, tabular=False)},
        "flagged": plan.get("flagged", []),
        "int8": [],
        "config": alone.model_dump(),
    }


def _check(run: Path, config: Config) -> None:
    """Raise FedclError where there is no one model to write."""
    state = run_dir.read_status(run).get("state", "not begun")
    if state != "finished":
        raise FedclError(
            f"{run} is {state}, not finished; go on with it: fedcl simulate -c {run}/config.toml --output {run}"
        )
    if merge.rules(config)[1].stays:
        raise FedclError(
            f"{run}: with federation.merger = {config.federation.merger!r} each hospital keeps modules of its own, "
            "so that there is no merged one to export; take another merger, for example weighted"
        )
    if not (run / "model.safetensors").exists():
        raise FedclError(
            f"{run}: with federation.kind = {config.federation.kind!r} each hospital has a model of its own"
        )


def _quantised(params: Params, names: list[str]) -> Params:
    """The tensors of a file: of these parameters, those that shrink as int8 and scales, and all others as they are."""
    tensors: Params = {}
    for name, value in params.items():
        if not bool(value.isfinite().all()):
            raise FedclError(f"{name} holds NaN or infinity: the run has diverged, and its model cannot be quantised")
        small = value.numel() + 4 * len(quantize.rows(value)) < value.nbytes
        if name in names and value.dim() >= 2 and small and not name.startswith("gates."):
            tensors[name], tensors[f"{name}{_SCALE}"] = quantize.nearest(value)
        else:
            tensors[name] = value
    return tensors


def _restored(tensors: Params, int8: list[str]) -> Params:
    """The reverse: parameters and masks by name."""
    params = {name: value for name, value in tensors.items() if not name.endswith(_SCALE)}
    return params | {name: quantize.restored(tensors[name], tensors[f"{name}{_SCALE}"]) for name in int8}


def _scores(run: Path, change: Callable[[Params], Params]) -> tuple[tuple[tuple[str, float, float], ...], str]:
    """Mean accuracy over tasks on all hospitals' test samples: (…, before, after); or why there is none."""
    try:
        pair = [rescore.rescore(run), rescore.rescore(run, change=change)]
    except FedclError as error:
        return (), str(error)
    found: list[tuple[str, float, float]] = []
    for title, name in (("task known", "accuracy"), ("task inferred", "accuracy_inferred")):
        values = [[r["value"] for r in s.rows if r["client"] is None and r["name"] == name] for s in pair]
        before, after = (sum(each) / len(each) for each in values)
        found.append((title, before, after))
    return tuple(found), ""


def _write(output: Path, tensors: Params, info: dict[str, Any]) -> None:
    """Replace the file in one step."""
    head = {"format": FORMAT} | {name: json.dumps(value) for name, value in info.items()}
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata=head)
        os.replace(temporary, output)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise FedclError(f"--output {output}: {error}; choose another place") from error
