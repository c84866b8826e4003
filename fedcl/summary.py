"""What a run comes to, in a terminal: the accuracy matrix and the numbers that matter most."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedcl import metrics, units
from fedcl.report.privacy import epsilon
from fedcl.rescore import Scored
from fedcl.results import Result

_MOST = 20  # tasks; a wider matrix is for the report
_ROWS = {
    "average_accuracy": "average accuracy",
    "forgetting": "forgetting (best before the last stage − last)",
    "backward_transfer": "backward transfer",
    "forward_transfer": "forward transfer",
    "worst_hospital_accuracy": "worst hospital",
}


def render(result: Result, peer: str = "") -> RenderableType:
    """The end of a run (or of what there is of it).

    Args:
        result: finished or interrupted.
        peer: a name of `metrics.COMPAT`, to add what that project's own script would print.
    """
    if not len(result.accuracy):
        return Text("no stage is finished yet, so there are no results")
    parts = [matrix(result), figures(result), costs(result)]
    return Group(*parts, *([compared(result, peer)] if peer else []))


def matrix(result: Result) -> RenderableType:
    """Accuracy after stage i on task j, the task known, on all hospitals' test samples together."""
    if len(result.tasks) > _MOST:
        return Text(f"The accuracy matrix of {len(result.tasks)} tasks is in the report.\n")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("after stage", justify="right")
    for name in _short([task.title for task in result.tasks], [task.id for task in result.tasks]):
        table.add_column(name, justify="right", no_wrap=True)
    for stage, row in enumerate(result.pooled):
        table.add_row(str(stage + 1), *(units.percent(value) for value in row))
    return Group(Text("accuracy in % on task (task known, test samples of all hospitals)", "bold"), table)


def figures(result: Result) -> RenderableType:
    """The metrics, with the task known and with it inferred."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("after the last stage, in %", no_wrap=True)
    for name in ("task known", "task inferred"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, title in _ROWS.items():
        values = (result.metrics[name], result.metrics.get(f"{name}_inferred", math.nan))
        table.add_row(title + _who(result, name), *(units.percent(value) for value in values))
    return table


def costs(result: Result) -> RenderableType:
    """What was sent, how far the net has grown, how fast it answers, and where the report is."""
    up = f"{units.size(result.bytes_up)} up{uncompressed(result)}"
    rows = {sent(result): f"{units.size(result.bytes_down)} down, {up}, {_phases(result)}"}
    sizes = [r.value for r in result.records if r.phase == "model" and r.task is None and r.name == "parameters"]
    if sizes:
        known = {name: value for name, value in result.metrics.items() if math.isfinite(value)}
        rows["parameters"] = units.count(sizes[-1])
        if "parameter_growth" in known:
            rows["parameters"] += f", {known['parameter_growth']:.2f} × those of the first task's net"
        if "capacity" in known:
            rows["parameters"] += f", {100 * known['capacity']:.0f} % of a net for each task"
    if math.isfinite(result.metrics.get("latency_ms", math.nan)):
        rows["inference"] = f"{result.metrics['latency_ms']:.2f} ms a sample, the task inferred"
        if "latency_start_ms" in result.metrics:
            rows["inference"] += f"; {result.metrics['latency_start_ms']:.2f} ms as it was built"
    if math.isfinite(result.metrics.get("training_examples", math.nan)):
        again = result.metrics["cumulative_compute"]
        scratch = f"; from scratch at each stage it would be {again:.1f} ×" if again > 1 else ""
        rows["training"] = f"{units.count(result.metrics['training_examples'])} samples through a step{scratch}"
    if math.isfinite(kept := result.metrics.get("memory_per_hospital", math.nan)):
        rows["kept"] = f"{units.size(kept)} in a hospital's own store, at most"
    if said := epsilon(result):
        rows["privacy"] = said
    faults = sum(r.phase == "fault" for r in result.records)
    if faults:
        rows["faults"] = f"{faults} answers missing or rejected"
    report = result.path / "report.html"
    if report.exists():
        rows["report"] = str(report)
    table = Table.grid(padding=(0, 2))
    for title, text in rows.items():
        table.add_row(title, Text(text, overflow="fold"))
    return table


def sent(result: Result) -> str:
    """What to call the bytes: what stays in one place is not sent."""
    alone = any(len(members) > 1 for members in result.members) or len(result.members) < 2
    return "moved on one machine" if alone else "sent in all"


def uncompressed(result: Result) -> str:
    """What would have come up if updates were not compressed, where they are."""
    return f" (of {units.size(result.bytes_up_raw)} uncompressed)" if result.bytes_up_raw != result.bytes_up else ""


def _phases(result: Result) -> str:
    """The share of training; the rest is consolidation and evaluation."""
    ways = ("bytes_down", "bytes_up")
    train = [sum(r.value for r in result.records if (r.phase, r.name) == ("train", way)) for way in ways]
    return f"of which training {units.size(train[0])} and {units.size(train[1])}"


def compared(result: Result, peer: str) -> RenderableType:
    """What another project's script would print for these accuracies, or why it could not."""
    formula, note = metrics.COMPAT[peer]
    lines = [f"\nAs {peer} computes it: forgetting {formula} ({note})"]
    for how, values in (("known", result.pooled), ("inferred", result.pooled_inferred)):
        try:
            numbers = metrics.compat(peer, values, result.counts.sum(axis=1), result.schedule)
        except ValueError as error:
            lines = [f"\n{error}"]
            break
        text = ", ".join(f"{name.replace('_', ' ')} {units.percent(x, 2)} %" for name, x in numbers.items())
        lines.append(f"task {how}: {text}")
    return Text("\n".join(lines))


def by_hospital(scored: Scored) -> RenderableType:
    """Accuracy of each hospital on each task: known / inferred, in %."""
    cells = {(row["client"], row["task"], row["name"]): row["value"] for row in scored.rows}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("hospital")
    for title in _short(scored.titles, scored.tasks):
        table.add_column(title, justify="right", no_wrap=True)
    for hospital, name in [*enumerate(scored.hospitals), (None, "all together")]:
        row = []
        for task in scored.tasks:
            pair = [cells.get((hospital, task, f"accuracy{how}"), math.nan) for how in ("", "_inferred")]
            row.append(" / ".join(units.percent(value) for value in pair) if np.isfinite(pair).any() else "–")
        table.add_row(name, *row, style="bold" if hospital is None else "")
    return Group(Text(f"accuracy in %, task known / inferred: {scored.what}", "bold"), table)


def _who(result: Result, name: str) -> str:
    """The worst hospital's name, the task known."""
    accuracies = metrics.hospital_accuracy(result.known)
    if name != "worst_hospital_accuracy" or not np.isfinite(accuracies).any():
        return ""
    return f" ({result.hospitals[int(np.nanargmin(accuracies))]})"


def _short(titles: Sequence[str], identities: Sequence[str]) -> Sequence[str]:
    """Titles for columns, or the tasks' ids where those are too long."""
    return titles if max(map(len, titles), default=0) <= 8 else identities
