"""Randomness is an argument: every draw comes from a stream named by what it is for.

A stream depends on (seed, purpose, client, task, round) alone, so results do not depend on scheduling,
on the number of workers, or on where a run was resumed.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def _entropy(seed: int, purpose: str, client: int, task: int, round: int) -> list[int]:
    # +1: "not about one client" is -1, and SeedSequence takes no negative numbers.
    return [seed, zlib.crc32(purpose.encode()), client + 1, task + 1, round + 1]


def stream(seed: int, purpose: str, client: int = -1, task: int = -1, round: int = -1) -> np.random.Generator:
    """An independent NumPy generator for one purpose.

    Args:
        seed: the run's seed, ≥ 0.
        purpose: what the draws are for, for example "partition" or "batches".
        client: index of the client, -1 where the draw is not about one client.
        task: index of the task, -1 likewise.
        round: index of the round over the whole run, -1 likewise.
    """
    return np.random.default_rng(_entropy(seed, purpose, client, task, round))


def torch_stream(seed: int, purpose: str, client: int = -1, task: int = -1, round: int = -1) -> torch.Generator:
    """The same as `stream`, as a torch generator on the CPU."""
    import torch

    words = np.random.SeedSequence(_entropy(seed, purpose, client, task, round)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


@contextlib.contextmanager
def torch_global(seed: int, purpose: str, client: int = -1, task: int = -1, round: int = -1) -> Iterator[None]:
    """Seed torch's global generator for a block and put its state back: layers draw their weights from it."""
    with torch_global_from(torch_stream(seed, purpose, client, task, round)):
        yield


@contextlib.contextmanager
def torch_global_from(generator: torch.Generator) -> Iterator[None]:
    """The same, from a generator that is there already."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        yield
