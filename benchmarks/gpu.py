"""All checks that need a GPU, and a table of what it brings.

    python benchmarks/gpu.py                    # runs the tests marked `gpu`, then measures
    python benchmarks/gpu.py --device cpu       # only whether this script works

A ResNet-18 on made-up 32×32 colour images, 8 hospitals of 500, one epoch a round. Rates are training samples a second,
from the median round; each line is a `fedcl simulate` in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

CLIENTS, SAMPLES = 8, 500
ROOT = Path(__file__).parents[1]


def rate(rounds: int, samples: int, **run: object) -> tuple[float, float]:
    """(training samples a second, final accuracy in %)."""
    with tempfile.TemporaryDirectory() as folder:
        sets = {
            "data.options.samples": int(CLIENTS * samples / 0.9), "data.options.shape": [3, 32, 32], "data.val": 0,
            "data.test": 0.1, "run.validate_every": 0, "run.checkpoint_every": 10**9,
            **{f"run.{key}": value for key, value in run.items()},
        }  # fmt: skip
        words = f"simulate -q --clients {CLIENTS} --rounds {rounds} --epochs 1 --dataset synthetic --partition iid"
        words += f" --tasks 1 --model resnet18 --method finetune --batch-size 64 --output {folder}/run"
        command = [sys.executable, "-m", "fedcl", *words.split()]
        command += [word for key, value in sets.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        records = [json.loads(line) for line in (Path(folder) / "run/metrics.jsonl").read_text().splitlines()]
    seconds = [r["value"] for r in records if (r["phase"], r["name"]) == ("train", "seconds")]
    final = next(r["value"] for r in records if (r["phase"], r["name"]) == ("final", "average_accuracy"))
    return CLIENTS * samples / statistics.median(seconds[1:]), 100 * final


def main() -> None:
    """Tests first, then a line for each way to use the device."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    arguments = parser.parse_args()
    device, gpus = arguments.device, torch.cuda.device_count()
    name = torch.cuda.get_device_name(device) if gpus else "no GPU"
    print(f"{name}; {gpus} device(s); torch {torch.__version__}", flush=True)
    failed = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"], cwd=ROOT, check=False)
    one = {"runtime": "processes", "devices": device, "device": device}
    lines: dict[str, dict[str, object]] = {
        "CPU, inline, one thread": {"device": "cpu", "threads": 1},
        "inline": {"device": device},
        "inline, bf16": {"device": device, "precision": "bf16"},
        "1 slot": one,
        "2 slots on one device": {**one, "clients_per_device": 2},
        "4 slots on one device": {**one, "clients_per_device": 4},
        "4 slots, bf16": {**one, "clients_per_device": 4, "precision": "bf16"},
    }
    if gpus > 1:
        lines["2 devices, 2 slots each"] = {**one, "devices": "cuda:0,cuda:1", "clients_per_device": 2}
    first = 0.0
    print(f"{'':28} {'samples/s':>10} {'against CPU':>12} {'accuracy %':>11}")
    for title, run in lines.items():
        speed, accuracy = rate(arguments.rounds, arguments.samples, **run)
        first = first or speed
        print(f"{title:28} {speed:10.0f} {speed / first:11.2f}× {accuracy:11.1f}", flush=True)
    sys.exit(failed.returncode)


if __name__ == "__main__":
    main()
