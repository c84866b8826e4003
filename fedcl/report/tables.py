"""The page's tables: Result → rows of cells. Pure."""

from __future__ import annotations

from contextlib import suppress

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
from fedcl.report.layout import Cell, Table
from fedcl.report.svg import points
from fedcl.results import Result


def share(value: float, signed: bool = False) -> Cell:
    """A fraction in per cent, or points if signed; "–" where undefined."""
    if not np.isfinite(value):
        return Cell("–", -9.0)
    return Cell(points(value) if signed else f"{100 * value:.1f}".replace("-", "−"), float(value))


def count(value: float) -> Cell:
    """A whole number."""
    return Cell(f"{value:,.0f}".replace(",", " "), float(value))


def task_table(result: Result) -> Table:
    """Per task, after the final stage, pooled over hospitals."""
    caption = "Tasks after the final stage, on the test samples of all hospitals. Per cent; changes in points."
    columns = ["Task", "Test samples", "Task known", "Task inferred", "Balanced", "AUROC"]
    columns += ["Since best", "Since learned", "Since best, inferred"]
    known, unknown = result.known.whole(), result.unknown.whole()
    peak, just, other = peak_forgetting(known), just_learned_forgetting(known), peak_forgetting(unknown)
    stages = len(result.accuracy)
    blank = np.full(len(result.tasks), np.nan)
    balanced, auroc = (
        np.where(known.seen, a[-1], np.nan) if stages else blank for a in (result.pooled_balanced, result.pooled_auroc)
    )
    rows = []
    for t, title in enumerate(names(result)):
        numbers = [known.final[t], unknown.final[t], balanced[t], auroc[t], -peak[t], -just[t], -other[t]]
        cells = [share(float(v), signed=i > 3) for i, v in enumerate(numbers)]
        rows.append([Cell(title, t), count(float(result.counts[t].sum())), *cells])
    return Table(caption, columns, rows)


def hospital_table(result: Result) -> Table:
    """Per hospital, after the final stage, on its own test samples."""
    caption = "Hospitals after the final stage, each on its own test samples. Per cent; changes in points, "
    caption += "negative is a loss."
    columns = ["Hospital", "Training samples", "Test samples", "Task known", "Task inferred"]
    columns += ["By merging (spatial)", "Since learned (temporal)", "Since best"]
    known, inferred = hospital_accuracy(result.known), hospital_accuracy(result.unknown)
    drop = merging_drop(result.known)
    rows = []
    for c, hospital in enumerate(result.hospitals):
        own = result.known.hospital(c)
        lost = [mean(drop[:, c]), mean(just_learned_forgetting(own)), mean(peak_forgetting(own))]
        cells = [share(float(v)) for v in (known[c], inferred[c])] + [share(-v, signed=True) for v in lost]
        samples = [count(float(result.split[c, :, 0].sum())), count(float(result.counts[:, c].sum()))]
        rows.append([Cell(hospital, hospital), *samples, *cells])
    return Table(caption, columns, rows)


def fault_table(result: Result) -> list[Table]:
    """What went wrong, and what alarms told, each in the order of rounds, the first 500. Nothing where nothing did."""
    faults = _told(result, "fault", "Answers that were missing or rejected.")
    return faults + _told(
        result, "alarm", "What somebody should look at: the run went on, and learned what it would have."
    )


def _told(result: Result, phase: str, caption: str) -> list[Table]:
    rows = []
    for r in [r for r in result.records if r.phase == phase][:500]:
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
    caption = f"{caption} Stages and rounds count from 1."
    return [Table(caption, ("Stage", "Round", "Hospital", phase.title(), "Why"), rows)] if rows else []


def alarm_table(result: Result) -> list[Table]:
    """What the run was warned of, in the order of rounds; the first 500. Nothing where nothing was."""
    order = {task.id: title for task, title in zip(result.tasks, names(result), strict=True)}
    rows = []
    for r in [r for r in result.records if r.phase == "alarm"][:500]:
        known = r.client is not None and r.client < len(result.hospitals)
        who = result.hospitals[r.client] if known and r.client is not None else "–"
        task = order.get(r.task or "", "–")
        value = Cell(f"{r.value:.4g}" if np.isfinite(r.value) else "–", float(np.nan_to_num(r.value)))
        words = [Cell(text, text) for text in (who, task, r.name.replace("_", " "))]
        rows.append([count(r.stage + 1), count(r.round + 1), *words, value, Cell(r.note, r.note)])
    caption = "What the run warned of. Stages and rounds count from 1."
    columns = ("Stage", "Round", "Hospital", "Task", "Alarm", "Value", "Why")
    return [Table(caption, columns, rows)] if rows else []


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
                row[how] = share(compat(peer, pooled, result.counts.sum(axis=1), result.schedule)["forgetting"]).text
        rows.append(row)
    return [row for row in rows if {row["known"], row["inferred"]} != {"–"}]


def extras(result: Result) -> list[tuple[str, str, str]]:
    """Final figures that are not metrics of accuracy, e.g. a privacy budget: (name, value, note)."""
    known = (
        set(DEFINITIONS)
        | {f"{name}_inferred" for name in INFERRED}
        | {"latency_ms", "parameters_start", "parameter_growth"}
        | {"training_examples", "cumulative_compute", "memory_per_hospital"}
    )
    chosen = [r for r in result.records if r.phase == "final" and r.client is None and r.name not in known]
    return [(r.name.replace("_", " "), f"{r.value:.6g}" if np.isfinite(r.value) else "–", r.note) for r in chosen]
