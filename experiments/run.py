"""Run an experiment of this folder, and write its table: the published number, ours, seeds, command and time.

    python experiments/run.py split_mnist [--quick] [--seeds 3] [--jobs 2] [--rows EWC SI] [--output runs/experiments]
    python experiments/run.py --tables          # write README.md, and its part of the top one, from results/

An experiment is one TOML file: a config (`base`), changes for each column and row, and what was published. Every
cell is an ordinary run directory under the output folder; started again, only what is missing is run. Full runs end
in results/<name>.json, and README.md and a table of the top one are made of these.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
Tree = dict[str, Any]


class Cell(NamedTuple):
    """One run."""

    row: str
    column: str
    seed: int
    config: Tree
    metrics: tuple[str, ...]


def merged(*trees: Tree) -> Tree:
    """Trees laid over each other, later ones winning key by key."""
    result: Tree = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def read(name: str) -> Tree:
    """An experiment's file."""
    return tomllib.loads((HERE / f"{name}.toml").read_text(encoding="utf-8"))


def seeds_of(plan: Tree, most: int) -> list[int]:
    """The seeds of an experiment: from 0 on, or those that it names; `most` limits their number, 0 does not."""
    seeds = plan["seeds"] if isinstance(plan["seeds"], list) else list(range(max(plan["seeds"], most)))
    return seeds[:most] if most else seeds


def cells(
    plan: Tree, seeds: list[int], quick: bool, output: Path, rows: Sequence[str] = (), columns: Sequence[str] = ()
) -> Iterator[Cell]:
    """All runs of an experiment; the quick form has smaller ones."""
    small = {key: value for key, value in plan["quick"].items() if key not in ("columns", "rows")} if quick else {}
    wanted = rows or (plan["quick"].get("rows", []) if quick else [])
    for row in plan["rows"]:
        if wanted and row["name"] not in wanted:
            continue
        for key, column in plan["columns"].items():
            if key not in row.get("columns", [key]) or (quick and key not in plan["quick"].get("columns", [key])):
                continue
            if columns and key not in columns:
                continue
            for seed in seeds:
                folder = output / "".join(c if c.isalnum() else "_" for c in f"{row['name']}-{key}") / str(seed)
                own = row.get("only", {}).get(key, {})
                config = merged(plan["base"], column.get("config", {}), row["config"], own, small)
                config = merged(config, {"seed": seed, "run": {"output": str(folder)}})
                yield Cell(row["name"], key, seed, config, tuple(column["metrics"]))


def run(cell: Cell) -> tuple[Cell, dict[str, float]]:
    """One run's figures; `seconds` is its own wall time, in whichever sitting it was."""
    import torch

    from fedcl import Config, simulate

    torch.set_num_threads(1)
    result = simulate(Config.model_validate(cell.config))
    status = json.loads((result.path / "status.json").read_text(encoding="utf-8"))
    found = {"bytes": result.bytes_up + result.bytes_down, "seconds": float(status["seconds"])}
    spent = json.loads((result.path / "privacy.json").read_text(encoding="utf-8")).get("overall", {}).get("epsilon")
    found["epsilon"] = math.nan if spent is None else spent
    found["retained"] = result.metrics["average_accuracy"] / result.metrics["learning_accuracy"]
    # What only a net that grows has, such as its latency before, has no value for another.
    return cell, {name: (result.metrics | found).get(name, math.nan) for name in (*cell.metrics, "seconds")}


def experiment(name: str, arguments: argparse.Namespace) -> Tree:
    """Run what is missing; returns row → column → metric → values by seed."""
    plan = read(name)
    output = arguments.output / (f"{name}-quick" if arguments.quick else name)
    seeds = seeds_of(plan, 1 if arguments.quick else arguments.seeds)
    todo = list(cells(plan, seeds, arguments.quick, output, arguments.rows, arguments.columns))
    begin, found = time.time(), {}
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for done, (cell, values) in enumerate(pool.map(run, todo), start=1):
            place = found.setdefault(cell.row, {}).setdefault(cell.column, {})
            for metric, value in values.items():
                place.setdefault(metric, []).append(value)
            shown = ", ".join(f"{metric} {value:.4g}" for metric, value in values.items())
            minutes = (time.time() - begin) / 60
            print(
                f"[{done}/{len(todo)} {minutes:.0f} min] {cell.row} / {cell.column} / {cell.seed}: {shown}", flush=True
            )
    return found


def save(name: str, found: Tree) -> None:
    """Add an experiment's figures to those that are there, cell by cell."""
    path = HERE / "results" / f"{name}.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rounded = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.6g}"))
    both = old | {row: old.get(row, {}) | columns for row, columns in rounded.items()}
    path.write_text(json.dumps(both, indent=1).replace("NaN", "null") + "\n", encoding="utf-8")


def table(name: str) -> str:
    """An experiment's section of the README."""
    plan, found = read(name), results(name)
    lines = [f"## {plan['title']}", "", plan["text"].strip(), ""]
    lines += [f"Source: {plan['source']}. `python experiments/run.py {name}`, {_cost(found)}.", "", *grid(name)]
    notes = [
        f"- {row['name']}: {row['note'].strip()}" for row in plan["rows"] if "note" in row and row["name"] in found
    ]
    return "\n".join([*lines, "", *notes, *([""] if notes else [])])


def results(name: str) -> Tree:
    """What an experiment's full runs came to: row → column → metric → values by seed."""
    found: Tree = json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def grid(name: str) -> list[str]:
    """The lines of an experiment's table."""
    plan, found = read(name), results(name)
    titles = [
        ": ".join([column["title"]] * several + [SHORT.get(metric, metric)] * (len(column["metrics"]) > 1))
        for several in (len(plan["columns"]) > 1,)
        for column in plan["columns"].values()
        for metric in column["metrics"]
    ]
    lines = ["| | " + " | ".join(titles) + " |", "|" + "---|" * (len(titles) + 1)]
    for row in plan["rows"]:
        if row["name"] not in found:
            continue
        shown = []
        for key, column in plan["columns"].items():
            for metric in column["metrics"]:
                values = [v for v in found[row["name"]].get(key, {}).get(metric, []) if v is not None]
                published = row.get("published", {}).get(key, "") if metric == column["metrics"][0] else ""
                shown.append(_cell(metric, values, published))
        lines.append(f"| {row['name']} | " + " | ".join(shown) + " |")
    return lines


SHORT = {
    "average_accuracy": "accuracy",
    "average_accuracy_inferred": "accuracy, task inferred",
    "worst_hospital_accuracy": "worst hospital",
    "memory_per_hospital": "kept",
    "learning_accuracy": "as learned",
    "parameter_growth": "parameters",
    "average_auroc": "AUROC",
    "latency_ms": "latency",
    "latency_start_ms": "latency before growth",
    "bytes": "sent",
    "epsilon": "ε",
    "seconds": "time",
    "backward_transfer": "BWT",
}


def _cell(metric: str, values: list[float], published: str) -> str:
    """Mean ± deviation over seeds, with what was published in brackets."""
    from fedcl import units

    if not values:
        return "–"
    mean = statistics.mean(values)
    if metric in ("bytes", "memory_per_hospital"):
        text = units.size(mean)
    elif metric == "seconds":
        text = f"{mean:.0f} s"
    elif metric.startswith("latency"):
        text = f"{mean:.1f} ms"
    elif metric == "epsilon":
        text = f"{mean:.2f}" if math.isfinite(mean) else "–"
    elif metric == "parameter_growth":
        text = f"{mean:.2f} ×"
    else:
        spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        text = f"{100 * mean:.1f}{spread}" if math.isfinite(mean) else "–"
    return f"{text} ({published})" if published else text


def _cost(found: Tree) -> str:
    """Seeds and time of all runs, one after another."""
    columns = [column for row in found.values() for column in row.values()]
    seeds = sorted({len(column["seconds"]) for column in columns})
    minutes = sum(sum(column["seconds"]) for column in columns) / 60
    many = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"{many} seed{'s' if seeds[-1] > 1 else ''}, {minutes:.0f} minutes of one core in all"


def readme() -> None:
    """Write README.md: its own head, then a section for each experiment that has results."""
    names = [name for name in ORDER if (HERE / "results" / f"{name}.json").exists()]
    head = (HERE / "head.md").read_text(encoding="utf-8").strip()
    text = "\n\n".join([head, *(table(name).strip() for name in names)])
    (HERE / "README.md").write_text(text + "\n", encoding="utf-8")


def top() -> None:
    """Write one table into the top README, between its marks."""
    file = HERE.parent / "README.md"
    before, rest = file.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    file.write_text("\n".join([before + BEGIN, *grid(SHOWN), END + after]), encoding="utf-8")


SHOWN = "split_mnist"  # the table of the top README
BEGIN, END = "<!-- made by experiments/run.py --tables -->", "<!-- end -->"


ORDER = (
    *("split_mnist", "permuted_mnist", "der_mnist", "stages", "penalties"),
    *("federated_mnist", "federated_fashion", "federated_medmnist", "federated_heart", "fed_mammoth", "fot"),
    *("den", "catalogue", "private_digits", "private_mnist"),
)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help=", ".join(ORDER))
    parser.add_argument("--quick", action="store_true", help="small runs, one seed; nothing is written to results")
    parser.add_argument("--seeds", type=int, default=0, help="instead of the experiment's own number")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--rows", nargs="*", default=[], help="only these rows")
    parser.add_argument("--columns", nargs="*", default=[], help="only these columns, by the names in the file")
    parser.add_argument("--output", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--tables", action="store_true", help="only write README.md again")
    arguments = parser.parse_args()
    for name in arguments.names:
        found = experiment(name, arguments)
        if not arguments.quick:
            save(name, found)
    if arguments.names and arguments.quick:
        return
    readme()
    top()


if __name__ == "__main__":
    main()
