"""Flower's own commands: where they are, and the environment that they run in."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fedcl.errors import FedclError

CONNECTION = "hospitals"  # the name that a deployment gives its Flower connection


def environment(home: Path) -> dict[str, str]:
    """Of every Flower process: a home of its own, nothing phoned home, quick polls, and our own commands first."""
    own = {
        "FLWR_HOME": str(home.absolute()),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        # Flower looks for its other commands there, and waits without a word if they are not.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONUNBUFFERED": "1",
    }
    return {**os.environ, **own}


def command(name: str) -> str:
    """One of Flower's commands, of the environment that fedcl is installed in.

    Raises:
        FedclError: it is not there.
    """
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise FedclError(f"{path} is not there; install fedcl in this environment again")
    return str(path)
