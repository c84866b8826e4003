"""`fedcl new`: each kind of plug-in works as it is written, its test passes, nothing is overwritten."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from smoke.running import run_here

from fedcl import starters
from fedcl.cli import main

ROOT = Path(__file__).parents[2]


def test_what_is_written_passes_its_own_tests_and_the_linter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in starters.KINDS:
        result = run_here("new", kind, f"my-{kind}")
        assert result.exit_code == 0, result.output
        assert f"pytest test_my_{kind}.py" in result.stdout
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", "."]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "13 passed" in done.stdout
    for command in (["check", "--ignore", "D"], ["format", "--check"]):
        words = ["ruff", *command, "--config", str(ROOT / "pyproject.toml"), "."]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_command_finds_it_in_the_current_folder(tmp_path, monkeypatch):
    """Also without `python -m`, which would put the folder on the path itself."""
    monkeypatch.chdir(tmp_path)
    flags = run_here("new", "dataset", "Clinic").stdout.partition("fedcl simulate ")[2].splitlines()[0]
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place and Path(place) != tmp_path])
    monkeypatch.setattr(
        sys, "argv", ["fedcl", "simulate", *flags.split(), "--rounds", "1", "--output", "run", "--quiet"]
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert (tmp_path / "run" / "report.html").exists()


def test_the_help_says_which_kinds_there_are():
    assert all(kind in run_here("new", "--help").stdout for kind in starters.KINDS)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["metod", "mine"], 2, "there are: method, dataset"),
        (["method", "my method"], 2, "a name is letters, digits and _"),
        (["method", "class"], 2, "a name is letters, digits and _"),
        (["method", "ewc"], 2, "one of fedcl's own"),
        (["dataset", "json"], 1, "'json' is an installed module"),
        (["method", "there"], 1, "there.py is there already"),
        (["method", "tested"], 1, "test_tested.py is there already"),
    ],
)
def test_names_that_cannot_be_and_files_that_are_there(tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    kept = [tmp_path / "there.py", tmp_path / "test_tested.py"]
    for file in kept:
        file.write_text("mine\n")
    result = run_here("new", *words)
    assert result.exit_code == code
    assert message in result.stderr
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    assert all(file.read_text() == "mine\n" for file in kept)


@pytest.mark.parametrize("method", ["nowhere:Nothing", "fedcl.methods.ewc:Ewcc"])
def test_what_a_dotted_name_does_not_lead_to_is_one_line(tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    result = run_here("simulate", "--method", method, "--dry-run")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
