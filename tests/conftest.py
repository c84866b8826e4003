"""Fixtures of all tests: real data where it is at hand, and the small federation of `small.py`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import BASE, light, merged

from fedcl.config import Config
from fedcl.results import Result
from fedcl.simulation import simulate

torch.set_num_threads(1)  # as many tests as cores run side by side; two threads each would wait for one another


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; without one the test is skipped."""
    root = os.environ.get("FEDCL_DATA", "")
    if not root:
        pytest.skip("FEDCL_DATA is not set; it names the folder that MNIST, heart and medmnist lie in")
    return Path(root)


@pytest.fixture
def small() -> Callable[..., Config]:
    """Config of the small federation, with nested changes."""

    def make(**changes: Any) -> Config:
        return Config.model_validate(light(merged(BASE, **changes)))

    return make


@pytest.fixture
def run(tmp_path: Path, small: Callable[..., Config]) -> Callable[..., Result]:
    """Run the small federation in a named directory of its own."""

    def go(name: str = "run", **changes: Any) -> Result:
        changes = merged(changes, run={"output": str(tmp_path / name)})
        return simulate(small(**changes))

    return go
