"""A run as one self-contained page: figures, plan and rounds draw, page counts, report.html lays out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedcl.report import figures, page, plan, rounds, tables
from fedcl.results import Result

REPORT = "report.html"


def write(run: Path) -> Path:
    """Write `report.html` into a run directory, finished or not, and return its path.

    The page needs nothing else: no network, no fonts, no other file.

    Raises:
        FileNotFoundError: it is not a run directory.
        ValueError: its metrics.jsonl is damaged before the last line.
    """
    html = render(Result.load(run))
    target = run / REPORT
    draft = run / f"{REPORT}.part"  # a reader never sees half a page
    draft.write_text(html, encoding="utf-8")
    draft.replace(target)
    return target


def render(result: Result) -> str:
    """The page as HTML text."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(REPORT).render(_content(result))


def _content(result: Result) -> dict[str, Any]:
    status, (text, values) = page.status(result), page.config(result.path)
    return {
        "head": page.head(result, status, values),
        "tiles": page.tiles(result, status),
        "sections": _sections(result),
        "hospitals": result.hospitals,
        "switch": page.switch_data(result),
        "tasks": tables.task_table(result),
        "hospital_rows": tables.hospital_table(result),
        "faults": tables.fault_table(result),
        "metrics": tables.metric_table(result),
        "compat": tables.compat_table(result),
        "extras": tables.extras(result),
        "environment": page.environment(result.path),
        "config": text,
        "path": str(result.path),
    }


def _sections(result: Result) -> dict[str, list[figures.Figure]]:
    return {
        "matrix": figures.matrices(result),
        "forgetting": figures.forgetting(result),
        "curves": [*figures.task_curves(result), rounds.validation(result)],
        "hospitals": [figures.hospital_curves(result), figures.merging(result)],
        "data": [plan.split(result), plan.schedule(result)],
        "costs": [plan.growth(result), rounds.traffic(result), rounds.duration(result), rounds.loss(result)],
    }
