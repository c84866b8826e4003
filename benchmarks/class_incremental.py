"""Sequential MNIST, class-incremental: CPU time of whole fedcl runs over a plain in-memory torch loop.

    FEDCL_DATA=… python benchmarks/class_incremental.py

5 hospitals, Dirichlet 0.5, 5 tasks of 2 classes, 3 rounds of one epoch a task, batch 64, AdamW 1e-3, MLP
784-100-100-10 with one head, cross-entropy over the task's classes. The loop does what federated averaging has to:
load, deal out, train, average, score all tasks met so far after each task. Runs take turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from fedcl import federation as federations
from fedcl import rng
from fedcl.config import Config
from fedcl.models import dynamic_net
from fedcl.simulation import simulate


def config(method: str, output: Path, seed: int) -> Config:
    """The workload, for one method."""
    options = {"ewc": {"form": "online", "gamma": 0.9, "strength": 1.0}} if method == "ewc" else {}
    return Config.model_validate({
        "seed": seed,
        "method": method,
        "methods": options,
        "data": {"name": "mnist", "val": 0},
        "model": {"heads": "shared", "options": {"hidden": [100, 100]}, "mask": "task"},
        "train": {
            "rounds": 3, "epochs": 1, "batch_size": 64,
            "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "lr_schedule": "constant",
        },
        "run": {"output": str(output), "validate_every": 0},
    })  # fmt: skip


def plain(config: Config) -> float:
    """The same work in a plain loop; returns the mean accuracy over tasks after the last, in [0, 1]."""
    data, train = federations.build(config), config.train
    with rng.torch_global(config.seed, "init"):
        net = dynamic_net.build(config.model, data.shape, len(data.classes))
    params = list(net.parameters())
    mean = [p.detach().clone() for p in params]
    accuracies: list[float] = []
    for stage, task in enumerate(data.tasks):
        net.allow(task.classes)
        for number in range(train.rounds):
            net.train()
            parts = [data.train_data(client, task.index) for client in range(len(data.members))]
            samples = sum(len(part.y) for part in parts)
            total = [torch.zeros_like(p) for p in params]
            for client, part in enumerate(parts):
                with torch.no_grad():
                    for p, start in zip(params, mean, strict=True):
                        p.copy_(start)
                optimizer = torch.optim.AdamW(params, lr=train.lr, weight_decay=train.weight_decay, fused=True)
                generator = rng.torch_stream(config.seed, "train", client, task.index, stage * train.rounds + number)
                for index in torch.randperm(len(part.y), generator=generator).split(train.batch_size):
                    optimizer.zero_grad()
                    logits = net(part.x.index_select(0, index), task.id)
                    torch.nn.functional.cross_entropy(logits, part.y.index_select(0, index)).backward()
                    optimizer.step()
                with torch.no_grad():
                    for sum_, p in zip(total, params, strict=True):
                        sum_.add_(p, alpha=len(part.y) / samples)
            mean = total
        with torch.no_grad():
            for p, value in zip(params, mean, strict=True):
                p.copy_(value)
            net.eval()
            net.allow(sorted({c for past in data.tasks[: stage + 1] for c in past.classes}))
            accuracies = []
            for past in data.tasks[: stage + 1]:
                tests = [data.batch(hospital, past.index, "test") for hospital in range(len(data.names))]
                right = sum(int((net(t.x, past.id).argmax(1) == t.y).sum()) for t in tests)
                accuracies.append(right / sum(len(t.y) for t in tests))
    return statistics.mean(accuracies)


def main() -> None:
    """Print CPU seconds, the ratio and the accuracy of each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {"plain": [], "finetune": [], "ewc": []}
    accuracy: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats + 1):  # the first is a warm-up
            for name, times in seconds.items():
                settings = config("finetune" if name == "plain" else name, Path(folder) / f"{name}-{repeat}", 42)
                begin = time.process_time()
                if name == "plain":
                    accuracy[name] = plain(settings)
                else:
                    accuracy[name] = simulate(settings).metrics["average_accuracy_inferred"]
                times.append(time.process_time() - begin)
    base = statistics.median(seconds["plain"][1:])
    print(f"{'run':>10} {'CPU s':>7} {'ratio':>6} {'accuracy, class among all seen':>31}")
    for name, times in seconds.items():
        cpu = statistics.median(times[1:])
        print(f"{name:>10} {cpu:7.2f} {cpu / base:6.2f} {100 * accuracy[name]:31.1f}")


if __name__ == "__main__":
    main()
