"""A model card (Mitchell et al. 2019, arXiv 1810.03993) in Markdown, from the figures of the run behind the model."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fedcl
from fedcl import metrics, units
from fedcl.config import Config
from fedcl.results import Result

_MOST = 12  # hospitals that get a line each
_USE = {
    "safetensors": 'import fedcl\n\nnet = fedcl.load_export("{file}")\nlogits = net(x, "{task}")',
    "torch.export": (
        'import torch\n\nnet = torch.export.load("{file}").module()\nlogits = net(x)["{task}"]  # float32, any batch'
    ),
    "onnx": (
        'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{file}")\n'
        '(logits,) = session.run(["{task}"], {{"x": x}})  # float32, any batch'
    ),
}


def render(
    result: Result,
    config: Config,
    info: Mapping[str, Any],
    file: str,
    form: str,
    licence: str,
    notes: Sequence[str],
    alone: int = 0,
) -> str:
    """The card.

    Args:
        result: the finished run.
        config: its config.
        info: what the exported file says of itself.
        file: the exported file's name.
        form: its format.
        licence: of the model, an SPDX identifier; "" is unknown.
        notes: what else is to be known of the file, a sentence each.
        alone: of a file with one task of several, how many parameters it has.
    """
    head = ["---", f"license: {licence.lower() or 'unknown'}", "library_name: fedcl"]
    head += ["tags: [federated-learning, continual-learning]", "---", ""]
    which = f"task `{info['tasks'][0]['id']}` alone, of " if alone else ""
    title = (
        f"# {config.data.name}, {config.method}: {which}{len(result.tasks)} tasks of {len(result.hospitals)} hospitals"
    )
    parts = [title, *_what(result, config, info, alone), *_use(info, file, form), *_tasks(result, info)]
    parts += ["What follows is of the whole run, with all its tasks."] if alone else []
    parts += [*_figures(result), *_hospitals(result), *_training(result, config), *_limits(config, licence, notes)]
    return "\n".join(head) + "\n\n".join(parts) + "\n"


def _what(result: Result, config: Config, info: Mapping[str, Any], alone: int) -> Iterator[str]:
    parameters = [r.value for r in result.records if (r.phase, r.name, r.task) == ("model", "parameters", None)]
    size = f", {units.count(parameters[-1])} parameters" if parameters else ""
    heads = {"task": "a module for each task", "shared": "one head for all classes", "domain": "one head by place"}
    trunk = f"trunk `{info['trunk']['name']}`, {heads[config.model.heads]}{size}"
    kinds = {"federated": "trained together, data apart", "joint": "trained on all data and tasks at once"}
    how = kinds.get(config.federation.kind, f"federation.kind = {config.federation.kind}")
    yield f"A classifier ({trunk}), {how}, task after task; merged model after the last stage."
    if alone:
        yield f"This file is what one task needs of it, {units.count(alone)} parameters: the rest was taken out."


def _use(info: Mapping[str, Any], file: str, form: str) -> Iterator[str]:
    task = info["tasks"][0]["id"] if info["tasks"] else "t0"
    yield f"## Use\n\n```python\n{_USE[form].format(file=file, task=task)}\n```"
    scaled = "normalised by the net itself" if info["normalize"].get("mean") else "not normalised by the net"
    shape = "×".join(map(str, info["shape"]))
    flagged = f" The last {len(info['flagged'])} features say 1 where a value was missing." if info["flagged"] else ""
    yield f"x is [B, {shape}], images 0…1; {scaled} (data.normalize = {info['normalize'].get('how')!r}).{flagged}"


def _tasks(result: Result, info: Mapping[str, Any]) -> Iterator[str]:
    there = [task["id"] for task in info["tasks"]]
    rows = []
    for index, task in enumerate(result.tasks):
        if task.id not in there:
            continue
        stage = int(result.learned_at[index])
        fresh = result.pooled[stage, index] if stage >= 0 else math.nan
        names = ", ".join(result.classes[c] for c in task.classes)
        figures = (fresh, result.pooled[-1, index], result.pooled_inferred[-1, index], result.pooled_auroc[-1, index])
        tested = str(int(result.counts[index].sum()))
        rows.append([f"`{task.id}`", names, str(stage + 1), tested, *(units.percent(value) for value in figures)])
    columns = ["task", "classes, in the order of the outputs", "last trained in stage", "test samples"]
    columns += ["accuracy then", "accuracy now, task known", "task inferred", "AUROC"]
    yield "## Tasks\n\nPer cent, on the test samples of all hospitals together.\n\n" + _table(columns, rows)


def _figures(result: Result) -> Iterator[str]:
    names = ("average_accuracy", "forgetting", "backward_transfer", "worst_hospital_accuracy", "hospital_spread")
    rows = []
    for name in (name for name in names if name in metrics.DEFINITIONS and name in result.metrics):
        title, formula, _ = metrics.DEFINITIONS[name]
        values = (result.metrics[name], result.metrics.get(f"{name}_inferred", math.nan))
        rows.append([title, *(units.percent(value) for value in values), formula])
    yield "## Figures\n\nPer cent, after the last stage.\n\n" + _table(
        ["figure", "task known", "task inferred", "is"], rows
    )


def _hospitals(result: Result) -> Iterator[str]:
    samples = result.split.sum(axis=(1, 3))  # [C, 3]
    if not len(result.accuracy):
        return
    now = result.accuracy[-1]  # [T, C]
    known = np.isfinite(now)
    mean = np.where(known.any(0), np.where(known, now, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)
    order = np.argsort(np.where(np.isfinite(mean), mean, np.inf))
    rows = [[result.hospitals[k], *(str(n) for n in samples[k]), units.percent(mean[k])] for k in order[:_MOST]]
    rest = f"\n\nThe {_MOST} with the lowest accuracy, of {len(order)}." if len(order) > _MOST else ""
    columns = ["hospital", "training samples", "validation", "test", "mean accuracy over its tasks"]
    yield "## Hospitals\n\nThe lowest accuracy first, the task known.\n\n" + _table(columns, rows) + rest


def _training(result: Result, config: Config) -> Iterator[str]:
    environment = _environment(result.path)
    versions = environment.get("packages", {})
    train = config.train
    yield "## Training\n\n" + _table(
        ["what", "value"],
        [
            ["data", f"`{config.data.name}`, {int(result.split.sum())} samples, partition `{config.partition.name}`"],
            ["stream", f"`{config.stream.kind}`, schedule `{config.stream.schedule}`, {len(result.schedule)} stages"],
            ["method", f"`{config.method}`, aggregator `{config.federation.aggregator}`"],
            ["rounds of a stage, local epochs", f"{train.rounds}, {train.epochs}; {train.optimizer}, lr {train.lr:g}"],
            ["seed", str(config.seed)],
            ["sent", f"{units.size(result.bytes_down)} to hospitals, {units.size(result.bytes_up)} from them"],
            ["with", f"fedcl {versions.get('fedcl', fedcl.__version__)}, torch {versions.get('torch', 'unknown')}"],
            ["exported with", f"fedcl {fedcl.__version__}, python {platform.python_version()}"],
        ],
    )
    yield "The exported file holds the whole config; the run's `config.toml` runs it again: `fedcl simulate -c`."


def _limits(config: Config, licence: str, notes: Sequence[str]) -> Iterator[str]:
    private = config.model_dump().get("privacy")
    lines = [
        "Accuracies hold for test samples of these hospitals; nothing is known of others.",
        f"Privacy settings of the training: `{json.dumps(private)}`."
        if private
        else "Trained without differential privacy: what it learned of single samples has no proven bound.",
        "Not validated for clinical or any other use.",
        f"Licence: {licence}." if licence else "Licence: unknown; nobody gave one when the model was exported.",
    ]
    if config.model.heads == "task":
        lines.append("The file answers with the task known; what inferred it in the run is not in the file.")
    if config.data.name in ("digits", "synthetic"):
        lines.insert(0, "A demonstration: these are not medical data.")
    yield "## Limits\n\n" + "\n".join(f"- {line}" for line in [*lines, *notes])


def _environment(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / "env.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return {}


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in cells)
