"""CPU time of a round of fedcl's in-process run over a bare torch loop that takes the same steps and averages.

    python benchmarks/overhead.py            # MLP 784-128-10, 1,000 samples a client, batch 64, one epoch, SGD

Both sides use the same optimiser class, the same tensors in memory and one thread, and are timed in turns, round by
round; the ratio of the medians is printed. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from fedcl import federation as federations
from fedcl import methods, rng
from fedcl.config import Config
from fedcl.contracts import Ask, Event
from fedcl.models import dynamic_net
from fedcl.run_dir import RunDir
from fedcl.runtime import inline
from fedcl.runtime.apps import Launch
from fedcl.server import Server
from fedcl.store import Store

SAMPLES = 1_000


def config(clients: int, rounds: int) -> Config:
    """Plain federated averaging of one task, nothing validated, nothing saved in between."""
    return Config.model_validate({
        "method": "finetune",
        "data": {"name": "synthetic", "options": {"samples": int(clients * SAMPLES / 0.98)}, "val": 0, "test": 0.02},
        "partition": {"name": "iid"},
        "stream": {"tasks": 1},
        "model": {"heads": "shared", "options": {"hidden": [128]}, "mask": "all"},
        "train": {"rounds": rounds, "epochs": 1, "batch_size": 64, "lr": 0.01, "lr_schedule": "constant"},
        "federation": {"clients": clients},
        "run": {"validate_every": 0, "checkpoint_every": 10**9},
    })  # fmt: skip


class Bare:
    """The same work in a plain loop: every client starts from the mean, trains an epoch, and is averaged."""

    def __init__(self, config: Config, data: federations.Federation) -> None:
        self.config = config
        self.parts = [data.train_data(client, 0) for client in range(len(data.members))]
        with rng.torch_global(config.seed, "init"):
            self.net = dynamic_net.build(config.model, data.shape, len(data.classes))
        self.mean = [p.detach().clone() for p in self.net.parameters()]
        self.net.train()

    def round(self, number: int) -> None:
        """Train all clients once."""
        train, params = self.config.train, list(self.net.parameters())
        total = [torch.zeros_like(p) for p in params]
        samples = sum(len(part.y) for part in self.parts)
        for client, part in enumerate(self.parts):
            with torch.no_grad():
                for p, start in zip(params, self.mean, strict=True):
                    p.copy_(start)
            optimizer = torch.optim.SGD(params, lr=train.lr, momentum=train.momentum, fused=True)
            generator = rng.torch_stream(self.config.seed, "train", client, 0, number)
            for index in torch.randperm(len(part.y), generator=generator).split(train.batch_size):
                optimizer.zero_grad()
                logits = self.net(part.x.index_select(0, index), "t0")
                torch.nn.functional.cross_entropy(logits, part.y.index_select(0, index)).backward()
                optimizer.step()
            with torch.no_grad():
                for sum_, p in zip(total, params, strict=True):
                    sum_.add_(p, alpha=len(part.y) / samples)
        self.mean = total


def measure(clients: int, rounds: int, warm: int = 3) -> tuple[float, float, float]:
    """Median CPU seconds of a round (fedcl, bare), and the largest difference of the parameters at the end."""
    settings = config(clients, rounds + warm)
    data = federations.build(settings)
    bare, ours, theirs = Bare(settings, data), [], []
    state: dict[str, Any] = {"begin": 0.0, "number": 0}

    def between(event: Event) -> None:
        """After a round of fedcl, one of the bare loop."""
        if event.kind == "round":
            ours.append(time.process_time() - state["begin"])
            begin = time.process_time()
            bare.round(state["number"])
            theirs.append(time.process_time() - begin)
            state["number"] += 1
        state["begin"] = time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run", settings)

        def serve(ask: Ask) -> None:
            server = Server(settings, data, methods.build(settings), ask, run, between)
            server.run()
            state["params"] = server.state.groups[0].params

        inline.run(Launch(settings, data, Store(), run, between, serve))
        run.close()
    names = [name for name, _ in bare.net.named_parameters()]
    off = max(float((state["params"][n] - m).abs().max()) for n, m in zip(names, bare.mean, strict=True))
    return statistics.median(ours[warm:]), statistics.median(theirs[warm:]), off


def main() -> None:
    """Print a line for each number of clients."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[5, 50])
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'clients':>8} {'fedcl ms':>10} {'bare ms':>10} {'ratio':>7} {'difference':>11}")
    for clients in arguments.clients:
        ours, theirs, off = measure(clients, max(arguments.rounds * 5 // clients, 10))
        print(f"{clients:8d} {ours * 1e3:10.1f} {theirs * 1e3:10.1f} {ours / theirs:7.3f} {off:11.1e}")


if __name__ == "__main__":
    main()
