"""What the page says besides the figures: headline numbers and tables."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedcl.metrics import (
    COMPAT,
    DEFINITIONS,
    INFERRED,
    compat,
    hospital_accuracy,
    just_learned_forgetting,
    mean,
    merging_drop,
    peak_forgetting,
)
from fedcl.report.figures import names
from fedcl.report.svg import compact, data_size, points
from fedcl.results import Result


class Cell(NamedTuple):
    """A table cell: what is read, and what is sorted by."""

    text: str
    key: float | str


class Tile(NamedTuple):
    """A headline number."""

    title: str
    value: str
    notes: tuple[str, ...]  # on what terms, and the other way of testing


def share(value: float, signed: bool = False) -> Cell:
    """A fraction in per cent, or points if signed; "–" where undefined."""
    if not np.isfinite(value):
        return Cell("–", -9.0)
    return Cell(points(value) if signed else f"{100 * value:.1f}", float(value))


def count(value: float) -> Cell:
    """A whole number."""
    return Cell(f"{value:,.0f}".replace(",", " "), float(value))


def seconds(value: float) -> str:
    """83.4 → "1 min 23 s"."""
    if not np.isfinite(value):
        return "–"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{value:.1f} s"


def small(run: Path, name: str) -> dict[str, Any]:
    """A small JSON file of the run; empty if it is not there or cut short."""
    try:
        content = json.loads((run / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def config(run: Path) -> tuple[str, dict[str, Any]]:
    """config.toml, as text and as values."""
    try:
        text = (run / "config.toml").read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError:
        return "", {}


def head(result: Result, status: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, str]:
    """Title, state and when."""
    data = values.get("data", {}).get("name", "")
    method = values.get("method", "")
    planned, done = len(result.schedule), len(result.accuracy)
    state = str(status.get("state", "unknown"))
    when = datetime.fromtimestamp((result.path / "metrics.jsonl").stat().st_mtime, tz=UTC)
    return {
        "title": " · ".join(part for part in (data, method) if part) or result.path.resolve().name,
        "name": result.path.resolve().name,
        "state": state,
        "when": f"{when:%Y-%m-%d %H:%M} UTC",
        "size": f"{_many(len(result.hospitals), 'hospital')}, {_many(len(result.tasks), 'task')}, "
        f"{_many(planned, 'stage')}",
        "warning": ""
        if done == planned
        else f"{done} of {_many(planned, 'stage')} finished: all numbers are those "
        "of the finished stages, on the tasks met so far.",
    }


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def tiles(result: Result, status: Mapping[str, Any]) -> list[list[Tile]]:
    """The headline numbers: what was learned, and what it cost."""
    m = result.metrics
    pairs = (
        ("Average accuracy", "average_accuracy", "%", False),
        ("Forgetting, peak", "forgetting", "points", False),
        ("Backward transfer", "backward_transfer", "points", True),
        ("Forward transfer", "forward_transfer", "points", True),
        ("Worst hospital", "worst_hospital_accuracy", "%", False),
    )
    learned = []
    for title, name, unit, signed in pairs:
        known, other = (share(m[key], signed).text for key in (name, f"{name}_inferred"))
        if known == other == "–":
            learned.append(Tile(title, "–", ("not defined in this run",)))
            continue
        second = "not defined" if other == "–" else f"{other} {unit}"
        learned.append(Tile(title, f"{known} {unit}", ("task known", f"{second} task inferred")))
    return [learned, _costs(result, status)]


def _costs(result: Result, status: Mapping[str, Any]) -> list[Tile]:
    sizes = {
        r.stage: r.value
        for r in result.records
        if r.phase == "model" and r.name == "parameters" and r.task is None
    }
    first, last = (sizes[min(sizes)], sizes[max(sizes)]) if sizes else (float("nan"), float("nan"))
    ratio = f"× {last / first:.2f}" if sizes and first else "–"
    latency = result.metrics.get("inference_latency_ms", float("nan"))
    took = status.get("seconds")
    speed = f"{latency:.3g} ms" if np.isfinite(latency) else "–"
    change = f"{compact(first)} → {compact(last)}" if sizes else "not recorded"
    return [
        Tile("Sent to clients", data_size(result.bytes_down), ("all rounds, all clients",)),
        Tile("Sent by clients", data_size(result.bytes_up), ("all rounds, all clients",)),
        Tile("Time", seconds(float("nan") if took is None else float(took)), ("wall clock, whole run",)),
        Tile("Parameter growth", ratio, (change,)),
        Tile("Inference", speed, ("per sample",)),
    ]


def task_table(result: Result) -> list[list[Cell]]:
    """Per task, after the final stage, pooled over hospitals."""
    known, unknown = result.known.whole(), result.unknown.whole()
    peak, just, other = peak_forgetting(known), just_learned_forgetting(known), peak_forgetting(unknown)
    stages = len(result.accuracy)
    blank = np.full(len(result.tasks), np.nan)
    balanced, auroc = (
        np.where(known.seen, a[-1], np.nan) if stages else blank
        for a in (result.pooled_balanced, result.pooled_auroc)
    )
    rows = []
    for t, title in enumerate(names(result)):
        numbers = [known.final[t], unknown.final[t], balanced[t], auroc[t], -peak[t], -just[t], -other[t]]
        cells = [share(float(v), signed=i > 3) for i, v in enumerate(numbers)]
        rows.append([Cell(title, t), count(float(result.counts[t].sum())), *cells])
    return rows


def hospital_table(result: Result) -> list[list[Cell]]:
    """Per hospital, after the final stage, on its own test samples."""
    known, inferred = hospital_accuracy(result.known), hospital_accuracy(result.unknown)
    drop = merging_drop(result.known)
    rows = []
    for c, hospital in enumerate(result.hospitals):
        own = result.known.hospital(c)
        lost = [mean(drop[:, c]), mean(just_learned_forgetting(own)), mean(peak_forgetting(own))]
        cells = [share(float(v)) for v in (known[c], inferred[c])] + [share(-v, signed=True) for v in lost]
        samples = [count(float(result.split[c, :, 0].sum())), count(float(result.counts[:, c].sum()))]
        rows.append([Cell(hospital, hospital), *samples, *cells])
    return rows


def fault_table(result: Result) -> list[list[Cell]]:
    """What went wrong, in the order of rounds; the first 500."""
    rows = []
    for r in [r for r in result.records if r.phase == "fault"][:500]:
        clients = result.members[r.client] if r.client is not None and r.client < len(result.members) else ()
        who = ", ".join(result.hospitals[h] for h in clients[:3]) + (" …" if len(clients) > 3 else "")
        rows.append(
            [
                count(r.stage + 1),
                count(r.round + 1),
                Cell(who or "–", who),
                Cell(r.name, r.name),
                Cell(r.note, r.note),
            ]
        )
    return rows


def metric_table(result: Result) -> list[dict[str, str]]:
    """Every metric with its value, formula and source."""
    rows = []
    for name, (title, formula, source) in DEFINITIONS.items():
        known = share(result.metrics[name]).text
        inferred = share(result.metrics[f"{name}_inferred"]).text if name in INFERRED else ""
        rows.append(
            {
                "name": name,
                "title": title,
                "formula": formula,
                "source": source,
                "known": known,
                "inferred": inferred,
            }
        )
    return rows


def compat_table(result: Result) -> list[dict[str, str]]:
    """What the peers' scripts would print, where they can read this run."""
    rows = []
    for peer, (formula, note) in COMPAT.items():
        row = {"peer": peer, "formula": formula, "note": note, "known": "–", "inferred": "–"}
        for how, pooled in (("known", result.pooled), ("inferred", result.pooled_inferred)):
            with suppress(ValueError):
                row[how] = share(compat(peer, pooled, result.counts.sum(axis=1))["forgetting"]).text
        rows.append(row)
    return [row for row in rows if {row["known"], row["inferred"]} != {"–"}]


def extras(result: Result) -> list[tuple[str, str, str]]:
    """Final figures that are not metrics of accuracy, e.g. a privacy budget: (name, value, note)."""
    known = set(DEFINITIONS) | {f"{name}_inferred" for name in INFERRED} | {"inference_latency_ms"}
    chosen = [r for r in result.records if r.phase == "final" and r.client is None and r.name not in known]
    return [
        (r.name.replace("_", " "), f"{r.value:.6g}" if np.isfinite(r.value) else "–", r.note) for r in chosen
    ]


def switch_data(result: Result) -> dict[str, Any]:
    """What the hospital switch needs: accuracies in tenths of a per cent, −1 where undefined."""

    def pack(values: np.ndarray[Any, Any]) -> list[int]:
        return [int(v) for v in np.where(np.isnan(values), -1, np.rint(1000 * np.nan_to_num(values))).ravel()]

    hospitals = [
        {"known": pack(result.accuracy[:, :, c]), "inferred": pack(result.inferred[:, :, c])}
        for c in range(len(result.hospitals))
    ]
    pooled = {"known": pack(result.pooled), "inferred": pack(result.pooled_inferred)}
    return {"digits": 0 if len(result.tasks) > 12 else 1, "views": [pooled, *hospitals]}
