"""Start-up, seconds a round and peak memory of every way to run, with stock Flower beside it.

    python benchmarks/runtimes.py                                    # CNN on 28×28 images, 5 and 50 hospitals
    python benchmarks/runtimes.py --runtimes inline processes --clients 5

Each line is a whole `fedcl simulate` in a process of its own, one torch thread a client, two clients at a time where
the runtime has them. Start-up runs from the command to the first round, less that round's own time; a round is the
median of the others; memory is the largest sum of proportional set sizes over all processes of the line. `superlink`
is a deployment on loopback with TLS and authentication, and its start-up that of the SuperLink and all SuperNodes.
Nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import stock

from fedcl.deploy import layout, rehearsal

SAMPLES, NODES = 200, 2  # of a hospital; SuperNodes, each is a few processes
RUNTIMES = ("inline", "processes", "ray", "superlink", "stock-ray", "stock-superlink")
MARK = "FEDCL_BENCHMARK"


def settings(clients: int, rounds: int) -> list[str]:
    """Plain federated averaging of one task on a CNN: what stock Flower does too."""
    sets = {
        "data.options.samples": int(clients * SAMPLES / 0.98), "data.val": 0, "data.test": 0.02, "model.mask": '"all"',
        "run.validate_every": 0, "run.checkpoint_every": 10**9, "train.lr_schedule": '"constant"',
    }  # fmt: skip
    flags = f"--clients {clients} --rounds {rounds} --dataset synthetic --partition iid --tasks 1 --model cnn"
    words = f"{flags} --method finetune --heads shared --epochs 1 --batch-size 32 --threads 1 --workers 2 -q".split()
    return words + [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]


def memory(mark: str) -> float:
    """Bytes of all processes started under a mark: proportional set sizes, so that shared pages count once."""
    total = 0
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                line = next(x for x in (entry / "smaps_rollup").read_text().splitlines() if x.startswith("Pss:"))
                total += int(line.split()[1]) * 1024
        except (OSError, StopIteration):
            continue
    return total


def watch(words: list[str], mark: str, times: Path) -> tuple[float, list[float], float]:
    """Run a command: (seconds to the first round's end, seconds of each round, peak bytes)."""
    begin, first, peak, next_look = time.monotonic(), 0.0, 0.0, 0.0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(words, env={**os.environ, MARK: mark}, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if not first and rounds(times):
                first = time.monotonic() - begin
            if time.monotonic() > next_look:  # which costs some milliseconds itself
                peak, next_look = max(peak, memory(mark)), time.monotonic() + 1
            time.sleep(0.05)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(words)}\n{said.read()[-3000:]}")
    return first, rounds(times), peak


def rounds(times: Path) -> list[float]:
    """Seconds of each round so far: of metrics.jsonl, or one number a line."""
    if not times.exists():
        return []
    lines = times.read_text().splitlines()
    if times.suffix != ".jsonl":
        return [float(line) for line in lines]
    records = (json.loads(line) for line in lines if '"seconds"' in line and line.endswith("}"))
    return [r["value"] for r in records if (r["phase"], r["name"]) == ("train", "seconds")]


def measure(runtime: str, clients: int, count: int, folder: Path) -> tuple[float, float, float]:
    """(start-up s, s a round, peak bytes) of one line."""
    mark = f"{runtime}-{clients}"
    if not runtime.endswith("superlink"):
        if runtime == "stock-ray":
            times = folder / "times"
            words = [sys.executable, stock.__file__, str(clients), str(count), str(times)]
        else:
            times = folder / "run" / "metrics.jsonl"
            words = [sys.executable, "-m", "fedcl", "simulate", *settings(clients, count)]
            words += ["--runtime", runtime, "--output", str(folder / "run")]
        first, each, peak = watch(words, mark, times)
        return first - each[0], statistics.median(each[1:]), peak
    deployment = folder / "deployment"
    layout.write(deployment, clients, "127.0.0.1", 8731, "", insecure=False)
    os.environ[MARK] = mark  # of what `up` starts
    begin = time.monotonic()
    try:
        rehearsal.up(deployment)
        up = time.monotonic() - begin
        if runtime == "superlink":
            times = folder / "run" / "metrics.jsonl"
            words = [sys.executable, "-m", "fedcl", "simulate", *settings(clients, count), "--runtime", "superlink"]
            words += ["--connection", str(deployment), "--output", str(folder / "run")]
        else:
            times = folder / "times"
            words = stock.deployed(folder, deployment, clients, count, times)
        _, each, peak = watch(words, mark, times)
        return up, statistics.median(each[1:]), peak
    finally:
        del os.environ[MARK]
        rehearsal.down(deployment)


def main() -> None:
    """Print a line for each runtime and number of hospitals."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[5, 50])
    parser.add_argument("--runtimes", nargs="+", default=RUNTIMES, choices=RUNTIMES)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    print(f"{'runtime':16} {'hospitals':>9} {'start-up s':>11} {'s a round':>10} {'against inline':>15} {'peak MB':>8}")
    for clients in arguments.clients:
        inline = float("nan")
        for runtime in arguments.runtimes:
            deployed = runtime.endswith("superlink")
            if deployed and clients > 5:
                continue  # a SuperNode is three processes: the machine is the limit, not fedcl
            count = NODES if deployed else clients
            with tempfile.TemporaryDirectory() as folder:
                start, each, peak = measure(
                    runtime, count, min(arguments.rounds, 5 if deployed else 10**6), Path(folder)
                )
            inline = each if runtime == "inline" else inline
            ratio = f"{inline / each:.2f} ×" if not deployed else ""
            print(f"{runtime:16} {count:9d} {start:11.1f} {each:10.2f} {ratio:>15} {peak / 1e6:8.0f}", flush=True)


if __name__ == "__main__":
    main()
