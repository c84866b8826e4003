"""A finished run's merged model as one file that stands alone, and the net of such a file.

The file is safetensors: parameters and masks by name, and beside them, as text, all that rebuilds the net: the config,
the shape of a sample, each task's classes, and how inputs are normalised. With `int8` each weight is eight-bit numbers
with one scale for each output (`<name>#scale`); biases, gates, masks and what would not shrink stay as they are.
Or it is a program that needs no fedcl, see `program`. Beside it lies a model card, see `card`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import fedcl
from fedcl import features, finish, merge, quantize, rescore, run_dir, units
from fedcl.config import Config, Run
from fedcl.contracts import FedclError, Params, role
from fedcl.export import card, program
from fedcl.export.net import Exported as Exported
from fedcl.extract import extract
from fedcl.results import Result

FORMAT = "fedcl-export-1"
FORMATS = ("safetensors", *program.FORMATS.values())
_SCALE = "#scale"  # after a parameter's name


@dataclass(frozen=True)
class Written:
    """What an export came to."""

    bytes: int  # of the tensors
    bytes_float: int  # of the whole net as float32
    accuracies: tuple[tuple[str, float, float], ...]  # (task known or inferred, the run's model, the file's)
    unscored: str  # why there are none; "" if there are
    card: Path  # the model card
    distance: float | None  # of a program, the largest difference of its logits from the net's


def form_of(output: Path, form: str = "") -> str:
    """The format of a file: `form`, or else what its suffix says.

    Raises:
        FedclError: there is no such format.
    """
    if form not in ("", *FORMATS):
        raise FedclError(f"--format {form}: there are {', '.join(FORMATS)}")
    known = {f".{FORMATS[0]}": FORMATS[0]} | program.FORMATS
    if not form and output.suffix not in known:
        raise FedclError(f"--output {output}: no format is known by that suffix; take {', '.join(known)}, or --format")
    return form or known[output.suffix]


def export(run: Path, output: Path, int8: bool = False, form: str = "", licence: str = "", task: str = "") -> Written:
    """Write the final merged model of a run and its model card; score it on the run's test data if they are at hand.

    Args:
        run: the run directory.
        output: the file; one that is there is replaced, and so is the card, `<output>.card.md`.
        int8: quantise weights; safetensors only.
        form: one of FORMATS; "" goes by the file's suffix.
        licence: of the model, for the card; "" is unknown.
        task: the id of the only one to answer, by a net without what it does not use (`fedcl.extract`); "" is all.

    Raises:
        FedclError: it is no finished run, there is no one merged model or no such task, the extra `onnx` is missing,
            the file cannot be written, or a program answers otherwise than the net.
    """
    form = form_of(output, form)
    if int8 and form != FORMATS[0]:
        raise FedclError(f"--int8 is for {FORMATS[0]}: a program of format {form} computes in float32")
    if int8 and task:
        raise FedclError("--int8 rounds the whole net, whose accuracy is measured; leave out --int8 or --task")
    program.check(form)  # before what takes time
    config = run_dir.read_config(run)
    _check(run, config)
    whole, _ = finish.read(run / "model.safetensors")
    info = _info(config, _plan(run), whole)
    params = _alone(whole, info, task) if task else whole
    tensors = params
    if int8:
        net = Exported(params, info).net
        tensors = _quantised(params, [name for name, _ in net.named_parameters()])
        info["int8"] = [name.removesuffix(_SCALE) for name in tensors if name.endswith(_SCALE)]
    scored, unscored = _scores(run, (lambda _: _restored(tensors, info["int8"])) if int8 else None, task)
    sizes = [sum(value.nbytes for value in each.values()) for each in (tensors, whole)]
    info |= {"bytes": sizes[0], "bytes_float": sizes[1]}
    info["accuracy"] = {name: {"before": before, "after": after} for name, before, after in scored}
    distance = None
    if form == FORMATS[0]:
        _write(output, tensors, info)
    else:
        distance = program.write(Exported(params, info), output, form)
    path = output.with_name(f"{output.name}.card.md")
    notes = [f"Weights are int8: {_told(scored)}."] if int8 and scored else []
    alone = sum(value.numel() for value in Exported(params, info).net.parameters()) if task else 0
    text = card.render(Result.load(run), config, info, output.name, form, licence, notes, alone)
    path.write_text(text, encoding="utf-8")
    return Written(sizes[0], sizes[1], scored, unscored, path, distance)


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


def _alone(params: Params, info: dict[str, Any], task: str) -> Params:
    """One task's net; `info` becomes what is said of it.

    Raises:
        FedclError: there is no such task, or it shares its head with all.
    """
    net = extract(Exported(params, info).net, task)
    info["tasks"] = [each for each in info["tasks"] if each["id"] == task]
    info["config"]["model"] |= {"growth": "none", "masks": "none", "weight_norm": False}
    info["config"]["growth"] = {}
    return net.state_dict()


def _told(scored: Sequence[tuple[str, float, float]]) -> str:
    return "; ".join(
        f"accuracy, {name}, {units.percent(after, 2)} % instead of {units.percent(before, 2)} %"
        for name, before, after in scored
    )


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


def _scores(
    run: Path, change: Callable[[Params], Params] | None, task: str
) -> tuple[tuple[tuple[str, float, float], ...], str]:
    """Mean accuracy over tasks, or one's, on all hospitals' test samples: (…, before, after); or why there is none."""
    try:
        scores = rescore.rescore(run)
        pair = [scores, rescore.rescore(run, change=change) if change else scores]
    except FedclError as error:
        return (), str(error)
    found: list[tuple[str, float, float]] = []
    names = (("task known", "accuracy"), ("task inferred", "accuracy_inferred"))
    for title, name in names[:1] if task else names:
        rows = [[r for r in s.rows if r["client"] is None and r["name"] == name] for s in pair]
        values = [[r["value"] for r in each if task in ("", r["task"])] for each in rows]
        if not all(values):
            return (), f"there are no test samples of {task or 'any task'}"
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
