"""What the settings of fot.toml's long rows come to without fedcl: one plain loop of torch, one seed.

    python experiments/fot_plain.py [--threshold 0.96] [--shards] [--tasks 10] [--rounds 200]

Needs MNIST in $FEDCL_DATA. Without a threshold it is FedAvg. With one it is FOT, and goes where the rows of fot.toml
do not by the authors' code: the hospitals that were drawn in a task's last round measure their own trained models,
with dropout on, what a layer hands on before its dropout; a share of lengths, not of energies, is what the basis has
yet to cover; biases are free. Prints, after each task, the accuracy on all tasks so far, and at the end ACC and
forgetting (just-learned over T − 1).
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from fedcl import datasets
from fedcl.config import Data as Source
from fedcl.samples import TEST

CLIENTS, DRAWN, BATCH, LR = 125, 64, 64, 0.01
INPUTS = {0: None, 3: 1, 6: 4, 9: 7}  # layer → the activation that it sees, before dropout
Data = tuple[Tensor, Tensor]  # x [n, 784], y [n]
Told = dict[int, tuple[Tensor, float]]  # by layer


def net() -> nn.Sequential:
    """784-400-400-400-10 with dropout behind each activation."""
    parts: list[nn.Module] = []
    for width, dropout in ((784, 0.2), (400, 0.5), (400, 0.5)):
        parts += [nn.Linear(width, 400), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*parts, nn.Linear(400, 10))


def load(name: str) -> tuple[Data, Data]:
    """The published training and test samples, normalised."""
    found = datasets.load(Source(name=name))
    x = (torch.from_numpy(found.x).flatten(1).float() / 255 - 0.1307) / 0.3081
    y, test = torch.from_numpy(found.y), torch.from_numpy(found.split == TEST)
    return (x[~test], y[~test]), (x[test], y[test])


def deal(labels: Tensor, shards: bool, draw: np.random.RandomState) -> list[np.ndarray]:
    """Who holds which samples of a task: alike, or two shards of the sorted labels each."""
    if not shards:
        return np.split(draw.permutation(len(labels)), CLIENTS)
    pieces = np.split(np.argsort(labels.numpy(), kind="stable"), 2 * CLIENTS)
    order = draw.permutation(2 * CLIENTS)
    return [np.concatenate([pieces[order[2 * i]], pieces[order[2 * i + 1]]]) for i in range(CLIENTS)]


def train(model: nn.Sequential, x: Tensor, y: Tensor) -> None:
    """One epoch of one hospital, in this order."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, weight_decay=1e-5)
    model.train()
    for inputs, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@torch.no_grad()
def measure(model: nn.Sequential, x: Tensor, basis: dict[int, Tensor]) -> Told:
    """Of each layer: its inputs less the basis, mixed [in, in], and which share of their length that left."""
    seen = [x]
    for part in model:
        seen.append(part(seen[-1]))
    told = {}
    for layer, activation in INPUTS.items():
        inputs = (x if activation is None else seen[activation + 1]).T
        left = inputs - basis[layer] @ (basis[layer].T @ inputs)
        told[layer] = left @ (torch.rand(left.shape[1], left.shape[0]) * 2 - 1), float(left.norm() / inputs.norm())
    return told


def extend(basis: Tensor, told: list[tuple[Tensor, float]], threshold: float) -> Tensor:
    """The basis and the first left singular vectors of the sum that cover what is missing."""
    share = float(np.mean([each[1] for each in told]))
    vectors, values, _ = torch.linalg.svd(torch.stack([each[0] for each in told]).sum(0))
    covered = values.square().cumsum(0) / values.square().sum()
    count = int((covered <= (share - (1 - threshold)) / share).sum()) + 1
    return torch.linalg.qr(torch.cat([basis, vectors[:, :count]], 1))[0]


def one_round(model: nn.Sequential, hospitals: list[Data], basis: dict[int, Tensor], last: bool) -> list[Told]:
    """FedAvg, the move of each weight only across the basis of its layer's inputs; in the last round, what they say."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mean, told = {name: torch.zeros_like(value) for name, value in before.items()}, list[Told]()
    for x, y in hospitals:
        order = torch.randperm(len(x))
        x, y = x[order], y[order]
        model.load_state_dict(before)
        train(model, x, y)
        for name, value in model.state_dict().items():
            mean[name].add_(value, alpha=1 / len(hospitals))
        told += [measure(model, x, basis)] if last and basis else []
    for name in before if basis else ():
        moved, across = before[name] - mean[name], basis.get(int(name.split(".")[0]))
        if name.endswith(".weight") and across is not None:
            moved = moved - (moved @ across) @ across.T
        mean[name] = before[name] - moved
    model.load_state_dict(mean)
    return told


@torch.no_grad()
def accuracy(model: nn.Sequential, x: Tensor, y: Tensor) -> float:
    """In per cent."""
    return 100 * float((model.eval()(x).argmax(1) == y).float().mean())


def main() -> None:
    """Train the tasks one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threshold", type=float, default=0.0, help="ε of FOT; 0 is FedAvg")
    parser.add_argument("--shards", action="store_true", help="two shards a hospital instead of iid")
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=200, help="of a task")
    parser.add_argument("--dataset", default="mnist")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    (x, y), (x_test, y_test) = load(asked.dataset)
    model, orders, found = net(), list[np.ndarray](), list[list[float]]()
    basis = {layer: torch.empty(784 if layer == 0 else 400, 0) for layer in INPUTS} if asked.threshold else {}
    for task in range(asked.tasks):
        draw = np.random.RandomState(task)
        draw.permutation(CLIENTS)  # who has the task: all; their code draws it, and so come the same permutations
        orders.append(draw.permutation(784) if task else np.arange(784))
        held, turned = deal(y, asked.shards, draw), x[:, orders[-1]]
        for number in range(asked.rounds):
            drawn = np.random.RandomState(task * asked.rounds + number).choice(CLIENTS, DRAWN, replace=False)
            hospitals = [(turned[held[i]], y[held[i]]) for i in drawn]
            told = one_round(model, hospitals, basis, number == asked.rounds - 1)
        basis = {layer: extend(basis[layer], [each[layer] for each in told], asked.threshold) for layer in basis}
        found.append([accuracy(model, x_test[:, order], y_test) for order in orders])
        print(f"after task {task}: " + " ".join(f"{each:.1f}" for each in found[-1]), flush=True)
    last = found[-1]
    print(f"ACC {np.mean(last):.2f}, forgetting {np.mean([found[t][t] - last[t] for t in range(asked.tasks - 1)]):.2f}")


if __name__ == "__main__":
    main()
