"""How often each alarm rings in runs that are there, by the limits and rules of now.

    python experiments/alarms.py runs/experiments/federated_fashion runs/experiments/federated_heart

Alarms read nothing but a run's own records, so they can be asked again. Without a fault in a run (noisy labels, a
learning rate that is too high, copies), what rings is a false alarm, but for `forgetting`, which is true by definition,
and for `leakage`, `duplicates` and `gaps`, which count.
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from pathlib import Path

from fedcl import Config, federation
from fedcl.alarms import Alarms
from fedcl.run_dir import read_metrics


def rings(run: Path) -> set[str]:
    """The names of the alarms that ring in a run."""
    tree = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    config = Config.model_validate(tree | {"alarms": {}})
    alarms = Alarms(config, federation.build(config))
    records = [record for record in read_metrics(run) if record["phase"] != "alarm"]
    return {alarm["name"] for record in records for alarm in alarms.take(record)}


def main() -> None:
    """Count by folder and by the last word of what a row and column are called."""
    runs, rang = Counter[str](), Counter[tuple[str, str]]()
    for file in sorted(file for folder in sys.argv[1:] for file in Path(folder).rglob("metrics.jsonl")):
        name = f"{file.parents[2].name} {file.parents[1].name.rpartition('_')[2]}"
        runs[name] += 1
        rang.update((name, alarm) for alarm in rings(file.parent))
    for name, several in sorted(runs.items()):
        said = ", ".join(f"{alarm} {count}" for (own, alarm), count in sorted(rang.items()) if own == name)
        print(f"{name}: {several} runs; {said or 'nothing rang'}")


if __name__ == "__main__":
    main()
