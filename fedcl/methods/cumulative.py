"""Retrain from scratch on all data so far, at each stage: the upper bound that forgets nothing, and what it costs.

Each stage starts from the weights that everybody began with, and each hospital trains on its samples of all its tasks
so far. What continual learning saves against it is a figure of every run (`cumulative_compute`). Needs all old
samples, so it keeps raw data by definition; sends parameters of all tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedcl.contracts import Method


@dataclass(frozen=True)
class Cumulative(Method):
    """Training from scratch on everything."""

    every_task: ClassVar[bool] = True
    alone: ClassVar[bool] = True
