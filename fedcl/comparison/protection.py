"""What the runs of a comparison spent of privacy, and what nothing covered: read from their privacy.json.

An ε stands nowhere without its unit, δ, neighbouring relation and sampling: beside every table of it are its `terms`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedcl import run_dir
from fedcl.results import PRIVACY, small

if TYPE_CHECKING:
    from fedcl.comparison.table import Comparison, Run

_TARGET = re.compile(r"\s*ε\s*=.*$")


def figures(run: Path) -> dict[str, float]:
    """`epsilon` (PLD) and `epsilon_rdp` of the unit that has spent most, where one is claimed.

    `uncovered` is how many kinds of artefacts left without any mechanism to cover them.
    """
    told = small(run, PRIVACY)
    found: dict[str, float] = {}
    if overall := told.get("overall"):
        spent = {"epsilon": overall["epsilon"], "epsilon_rdp": overall["rdp"]}
        found |= {name: math.inf if value is None else float(value) for name, value in spent.items()}
    if "audit" in told:
        found["uncovered"] = float(sum(not entry["covered"] for entry in told["audit"]))
    return found


def terms(run: Path) -> str:
    """What its ε is about, a whole sentence; "" where none is claimed."""
    overall = small(run, PRIVACY).get("overall")
    return str(overall["text"]) if overall else ""


def stated(comparison: Comparison, block: Sequence[str]) -> list[tuple[str, str]]:
    """(row, terms of its first finished run) for each row of a block that claims an ε."""
    found: dict[str, str] = {}
    for run in comparison.runs:
        if run.state == "finished" and tuple(run.labels[1:]) == tuple(block) and (text := terms(run.path)):
            found.setdefault(run.labels[0] if run.labels else "all", f"seed {run.seed}: {text}")
    return list(found.items())


def about(comparison: Comparison) -> str:
    """In one line what the ε of each curve is about: "DP-SGD: δ = 1e-5 per record (add/remove)"."""
    found: dict[str, None] = {}
    for block in comparison.blocks():
        for row, text in stated(comparison, block):
            found[f"{curve(row)}: {text.partition(' at ')[2].partition(',')[0]})"] = None
    return "; ".join(found)


def curve(row: str) -> str:
    """What a row is called without its ε: rows that differ in nothing else are one curve."""
    return _TARGET.sub("", row)


def open_ended(run: Run) -> bool:
    """Whether hospitals average without any mechanism: ε = ∞."""
    config = run_dir.read_config(run.path)
    return config.federation.kind == "federated" and config.privacy.mechanism == "none"


def covering(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """(head, rows): for each artefact that left a hospital of a federation, and each mechanism, what covered it.

    Over all blocks, seeds and ε. Where several runs differ the weakest counts: "nothing" if in any nothing covered it.
    """
    found: dict[str, dict[str, str]] = {}
    names: list[str] = []
    for run in comparison.runs:
        if run.state != "finished" or run_dir.read_config(run.path).federation.kind != "federated":
            continue
        name = curve(run.labels[0]) if run.labels else "all"
        names += [] if name in names else [name]
        for entry in small(run.path, PRIVACY).get("audit", ()):
            words = found.setdefault(entry["artefact"], {})
            if words.get(name) != "nothing":
                words[name] = ", ".join(entry["covered"]) or "nothing"
    order = sorted(found, key=lambda artefact: (-sum(v == "nothing" for v in found[artefact].values()), artefact))
    return ["what left", *names], [
        [artefact, *(found[artefact].get(name, "–") for name in names)] for artefact in order
    ]
