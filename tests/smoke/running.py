"""Runs of the command line: in this process where torch is loaded, in another where that matters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from fedcl.cli import app

Fedcl = Callable[..., Result]
TINY = ("--rounds", "1", "--epochs", "1", "--tasks", "2")


def run_here(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def start(*words: str | Path) -> subprocess.Popen[str]:
    """`python -m fedcl …` with pipes instead of a terminal."""
    loud = ("FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE", "GITHUB_ACTIONS")
    return subprocess.Popen(
        [sys.executable, "-m", "fedcl", *map(str, words)],
        env={key: value for key, value in os.environ.items() if key not in loud},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
