"""The command line in an empty directory, and one finished run."""

from __future__ import annotations

from pathlib import Path

import pytest
from smoke.running import TINY, Fedcl, run_here


@pytest.fixture
def fedcl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fedcl:
    """`fedcl("simulate", …)`, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDCL_DATA", str(tmp_path / "data"))
    return run_here


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    run = tmp_path_factory.mktemp("smoke") / "run"
    result = run_here("simulate", *TINY, "--output", run, "--quiet")
    assert result.exit_code == 0, result.output
    return run
