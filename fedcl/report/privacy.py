"""What left the hospitals, what covers it, and what may be said of that: from privacy.json, and pure but for it.

An ε is shown with its unit, δ, neighbouring relation and sampling, or not at all.
"""

from __future__ import annotations

import math
import tomllib
from typing import Any

from fedcl import infer
from fedcl.config import Config
from fedcl.report.charts import Series, curves
from fedcl.report.figures import names
from fedcl.report.layout import Cell, Data, Figure, Table, Value
from fedcl.report.svg import Axis, Head, colour, from_zero
from fedcl.report.tables import count
from fedcl.results import PRIVACY, Result, small
from fedcl.units import size


def facts(result: Result) -> dict[str, Any]:
    """privacy.json; empty where there is none."""
    return small(result.path, PRIVACY)


def epsilon(result: Result) -> str:
    """ε of the whole run with its terms; "" where nothing claims one."""
    told = facts(result).get("overall")
    return str(told["text"]) if told else ""


def audit(result: Result) -> list[Table]:
    """Everything that left a hospital."""
    rows = []
    for entry in facts(result).get("audit", ()):
        covered = ", ".join(entry["covered"]) or "nothing"
        rows.append(
            [
                Cell(entry["artefact"], entry["artefact"]),
                Cell(covered, covered),
                Cell(entry["seen"], entry["seen"]),
                count(entry["hospitals"]),
                count(entry["messages"]),
                Cell(size(entry["bytes"]), float(entry["bytes"])),
            ]
        )
    caption = "Everything that left a hospital in this run, as found in the messages; what nothing covers comes first."
    columns = ("What left", "Covered by", "Who sees it", "Hospitals", "Messages", "Bytes")
    return [Table(caption, columns, rows)] if rows else []


def budgets(result: Result) -> list[Table]:
    """ε of each task's records and of each hospital."""
    told = facts(result)
    if "overall" not in told:
        return []
    named = zip(result.tasks, names(result), strict=True)
    tasks = [(title, told["tasks"][task.id]) for task, title in named if task.id in told["tasks"]]
    hospitals = [(_clients(result, client), each) for client, each in enumerate(told["hospitals"])]
    tables = []
    for head, entries in (("Task", tasks), ("Hospital", hospitals)):
        rows = [
            [Cell(title, place), _number(each["epsilon"]), _number(each["rdp"]), Cell(_terms(each["text"]), "")]
            for place, (title, each) in enumerate(entries)
        ]
        caption = f"What the worst-off unit of each {head.lower()} has spent, over the whole run."
        tables.append(Table(caption, (head, "ε (PLD)", "ε (RDP)", "of"), rows))
    return tables


def spent(result: Result) -> list[Figure]:
    """ε after each stage."""
    told = facts(result)
    values = [math.nan if each["epsilon"] is None else each["epsilon"] for each in told.get("stages", ())]
    if not any(map(math.isfinite, values)):
        return []
    title = "What has been spent"
    terms = _terms(told["overall"]["text"])
    caption = f"ε of the unit that has spent most, after each stage, by privacy loss distributions. At the end: {terms}"
    points = [(stage + 1.0, value) for stage, value in enumerate(values)]
    stages = Axis("stage", 1.0, max(len(values), 2.0), lambda v: f"{v:.0f}", whole=True)
    head = Head("spent", title, caption)
    svg = curves(head, [Series("ε", points, colour(0))], stages, from_zero(values, "ε", lambda v: f"{v:g}"))
    rows: list[list[Value]] = [[stage, value] for stage, value in points]
    return [Figure("spent", title, caption, svg, Data(("stage", "epsilon"), rows))]


def words(result: Result) -> list[str]:
    """What protects the hospitals in this run, and what does not."""
    try:
        config = Config.model_validate(tomllib.loads((result.path / "config.toml").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []
    if config.federation.kind in ("central", "joint"):
        return [f"A bound, not a federation ({config.federation.kind}): all hospitals' data are in one place."]
    told = []
    if statement := epsilon(result):
        told.append(statement + ".")
    elif config.privacy.mechanism == "none":
        told.append("The server sees each hospital's own message: nothing hides them, and no noise is added, so no ε.")
    else:
        told.append(f"{config.privacy.mechanism} claims no ε: no noise is added.")
    if bare := [entry["artefact"] for entry in facts(result).get("audit", ()) if not entry["covered"]]:
        told.append("Nothing covers: " + "; ".join(bare) + ".")
    told.append(
        "Updates can tell about the samples that made them (gradient inversion, membership inference); smaller "
        "hospitals are told about more."
    )
    if config.federation.kind == "local":
        told.append("Nothing is averaged: each hospital has a model of its own, which the server keeps for it.")
    if infer.needs_statistics(config.model) and infer.resolve(config.model.infer) == "prototypes":
        told.append(
            "Inferring the task by prototypes sends sums over samples, in effect class means; a class of which a "
            "hospital has fewer than 5 training samples is withheld. The rules entropy and energy send nothing."
        )
    if math.isfinite(kept := result.metrics.get("memory_per_hospital", math.nan)):
        told.append(f"What a method remembers stays at the hospital: {size(kept)} at most.")
    return told


def _clients(result: Result, client: int) -> str:
    return ", ".join(result.hospitals[hospital] for hospital in result.members[client])


def _number(value: float | None) -> Cell:
    return Cell("∞" if value is None else f"{value:.3g}", math.inf if value is None else float(value))


def _terms(text: str) -> str:
    """A statement without what it says of artefacts that are not covered: the table of those stands beside it."""
    return text.partition("; it holds")[0]
