"""The README's table: what protection buys on digits, with its bounds.

    python experiments/bounds.py [--seeds 5] [--output runs/bounds]

Every cell is an ordinary run directory under the output folder; started again, only what is missing is run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from fedcl import Config, simulate
from fedcl.rescore import rescore
from fedcl.results import Result

ROWS: dict[str, dict[str, Any]] = {
    "`joint` (bound)": {"method": "finetune", "federation": {"kind": "joint"}},
    "`central`, EWC": {"federation": {"kind": "central"}},
    "**EWC** (default)": {},
    "EWC, Fishers summed over hospitals": {"methods": {"ewc": {"share": "sum"}}},
    "`freeze`": {"method": "freeze"},
    "`finetune`": {"method": "finetune"},
    "`local`, EWC (bound)": {"federation": {"kind": "local"}},
}
COLUMNS = {
    "accuracy, task known": "average_accuracy",
    "forgetting": "forgetting",
    "worst hospital": "worst_hospital_accuracy",
    "accuracy, task inferred": "average_accuracy_inferred",
}
RULES = ("confidence", "entropy", "energy")


def row(name: str, changes: dict[str, Any], seeds: int, output: Path) -> list[Result]:
    """The runs of one row."""
    results = []
    for seed in range(seeds):
        folder = output / f"{''.join(c for c in name if c.isalnum())}-{seed}"
        config = Config.model_validate({**changes, "seed": seed, "run": {"output": str(folder)}})
        results.append(simulate(config))
    return results


def cell(values: list[float]) -> str:
    """Mean ± standard deviation, in per cent; a dash where it is not defined."""
    if np.isnan(values).all():
        return "–"
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1 if len(values) > 1 else 0):.1f}"


def by_rule(result: Result, rule: str) -> float:
    """Final accuracy with the task inferred by another rule."""
    scored = rescore(result.path, rule=rule)
    values = [r["value"] for r in scored.rows if r["client"] is None and r["name"] == "accuracy_inferred"]
    return float(np.mean(values))


def main() -> None:
    """Run what is missing, print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/bounds"))
    arguments = parser.parse_args()
    titles = ["", *COLUMNS, *(f"… by {rule}" for rule in RULES)]
    print("| " + " | ".join(titles) + " |")
    print("|" + "---|" * len(titles))
    for name, changes in ROWS.items():
        results = row(name, changes, arguments.seeds, arguments.output)
        cells = [cell([result.metrics[metric] for result in results]) for metric in COLUMNS.values()]
        if not changes:  # only the default run is scored by the other rules
            cells += [cell([by_rule(result, rule) for result in results]) for rule in RULES]
        else:
            cells += [""] * len(RULES)
        print("| " + " | ".join([name, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
