"""A thousand hospitals in one process: seconds a round and peak memory, after half of the rounds and at the end.

    python benchmarks/scale.py                 # made-up images, and MNIST in shards where FEDCL_DATA holds it
    python benchmarks/scale.py --clients 200

5 hospitals sampled a round, and all of them. Each line is a `fedcl simulate` in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from fedcl import datasets

WORKER = """
import json, resource, sys
from fedcl import Config, simulate
config = Config.model_validate_json(sys.argv[1])
peaks, half = [], config.train.rounds * config.stream.tasks // 2
def notify(event):
    if event.kind == "round":
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
simulate(config, notify=notify)
peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""


def measure(data: dict[str, object], partition: dict[str, object], clients: int, sampled: int, rounds: int) -> str:
    """One line: seconds a round, peak MB after half of the rounds, at the end."""
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "data": data, "partition": partition | {"min_samples": 2}, "stream": {"tasks": 2},
            "train": {"rounds": rounds, "epochs": 1},
            "federation": {"clients": clients, "fraction": sampled / clients},
            "run": {"output": f"{folder}/run", "validate_every": 0},
        }  # fmt: skip
        words = [sys.executable, "-W", "ignore", "-c", WORKER, json.dumps(config)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        peaks = [peak / 1024 for peak in json.loads(done.stdout.splitlines()[-1])]
        lines = (json.loads(line) for line in (Path(folder) / "run/metrics.jsonl").read_text().splitlines())
        seconds = [r["value"] for r in lines if (r["phase"], r["name"]) == ("train", "seconds")]
    third = [peaks[-1 - len(peaks) // 4], peaks[-1]]  # after three quarters of the rounds, and after all
    return f"{statistics.median(seconds):10.2f} {peaks[0]:9.0f} {third[0]:15.0f} {third[1]:11.0f}"


def main() -> None:
    """Print a line for each data set and share of hospitals."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=1000)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    made = {"name": "synthetic", "options": {"samples": 60 * arguments.clients}}
    loads: dict[str, tuple[dict[str, object], dict[str, object]]] = {"synthetic": (made, {"name": "iid"})}
    if datasets.find("mnist").found:
        loads["mnist"] = ({"name": "mnist"}, {"name": "shards", "shards": 2})
    print("data        sampled  s a round   peak MB: round 1, three quarters, whole process")
    for name, (data, partition) in loads.items():
        for sampled, rounds in ((5, 100), (arguments.clients, 4)):
            print(f"{name:10} {sampled:8d} {measure(data, partition, arguments.clients, sampled, rounds)}", flush=True)


if __name__ == "__main__":
    main()
