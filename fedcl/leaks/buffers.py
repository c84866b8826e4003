"""Which records the hospitals of a run keep for replay: found in their memories, whatever the method is called."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from fedcl.contracts import Memory
from fedcl.store import Store

_PARTS = ("x", "y", "task", "filled")  # of a buffer, after its method's name

Kept = set[tuple[int, bytes]]  # (task's index, the record's values)


def read(run: Path) -> Kept:
    """All that the hospitals of a finished run keep."""
    state = json.loads(sorted((run / "checkpoint").glob("*.json"))[-1].read_text(encoding="utf-8"))["state"]
    store = Store(run / "clients")
    kept: Kept = set()
    for client, version in state["versions"].items():
        kept |= _of(store.load(int(client), version))
    return kept


def has(kept: Kept, task: int, x: Tensor) -> Tensor:
    """Which of a task's records [n, *shape] are kept: bool [n]."""
    return torch.tensor([(task, row.numpy().tobytes()) in kept for row in x.contiguous()], dtype=torch.bool)


def _of(memory: Memory) -> Kept:
    kept: Kept = set()
    for key in memory:
        name = key.removesuffix("x")
        if key != name and all(name + part in memory for part in _PARTS):
            rows = range(int(memory[f"{name}filled"]))
            kept |= {(int(memory[f"{name}task"][row]), memory[key][row].numpy().tobytes()) for row in rows}
    return kept
