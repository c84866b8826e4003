"""Who sent what to whom: bytes of each kind of message, and what there was in them. Pure but for small files."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Collection

import numpy as np

from fedcl import infer, plugins
from fedcl.config import Config
from fedcl.report.bars import stacked
from fedcl.report.layout import Cell, Data, Figure, Table, Value
from fedcl.report.svg import Head, from_zero
from fedcl.results import Result, small
from fedcl.units import size

PHASES = {"train": "training", "consolidate": "consolidation", "evaluate": "evaluation"}
_WAYS = {"bytes_down": "↓", "bytes_up": "↑"}


def traffic(result: Result) -> Figure:
    """Bytes of each stage, by kind of message and direction."""
    keys = [(phase, way) for way in _WAYS for phase in PHASES]
    stages = max((r.stage + 1 for r in result.records if r.phase in PHASES and r.name in _WAYS), default=0)
    values = np.zeros((stages, len(keys)))
    for r in result.records:
        if r.client is None and (r.phase, r.name) in keys and r.stage >= 0:
            values[r.stage, keys.index((r.phase, r.name))] += np.nan_to_num(r.value)
    titles = [f"{PHASES[phase]} {_WAYS[way]}" for phase, way in keys]
    title = "Bytes of each stage"
    caption = "Payload of all messages, all clients together: ↓ to hospitals, ↑ from them."
    axis = from_zero(values.sum(axis=1), "bytes", size)
    svg = stacked(Head("exchange", title, caption), values, [f"stage {s + 1}" for s in range(stages)], titles, axis)
    rows: list[list[Value]] = [[s + 1, *map(float, row)] for s, row in enumerate(values)]
    return Figure("exchange", title, caption, svg, Data(("stage", *titles), rows))


def sent(result: Result) -> list[Table]:
    """What each kind of message brings to a hospital; nothing where the config cannot be read.

    What comes back is told by the audit, which looked into the messages.
    """
    try:
        config = Config.model_validate(tomllib.loads((result.path / "config.toml").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []
    parts = _contents(config, small(result.path, "federation.json").get("hooks", ()))
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for r in result.records:
        if r.name in _WAYS and r.client is None:
            sums[r.phase, r.name] += r.value
    rows = []
    for phase, title in PHASES.items():
        volume = [Cell(size(sums[phase, way]), float(sums[phase, way])) for way in _WAYS]
        if any(cell.key for cell in volume):
            rows.append([Cell(title, title), Cell(parts[phase], parts[phase]), *volume])
    caption = "What travelled, by kind of message. Raw samples are in none of them."
    return [Table(caption, ("Message", "Brings to a hospital", "Bytes down", "Bytes up"), rows)]


def _contents(config: Config, hooks: Collection[str]) -> dict[str, str]:
    """Phase → what it brings to a hospital."""
    stays = plugins.stays(config.federation.aggregator, config.federation.merger)
    module = "" if stays else ", module and gate of its task"
    heads = {"task": module, "shared": " and the shared head", "domain": " and the shared head"}[config.model.heads]
    news = "; what the server half of the method says" if "server" in hooks or "receive" in hooks else ""
    prepared = ", what the task is inferred by" if infer.needs_statistics(config.model) else ""
    return {
        "train": f"trunk{heads}{news}",
        "consolidate": f"the same, merged{news}",
        "evaluate": f"trunk and all modules{prepared}",
    }
