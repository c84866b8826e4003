"""The other commands, and what help may import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from smoke.running import TINY, Fedcl

from fedcl import citations, plugins

HEAVY = {"torch", "torchvision", "flwr", "pydantic", "numpy", "sklearn", "matplotlib"}


@pytest.mark.parametrize("words", [["--help"], ["simulate", "--help"], ["list"], ["data", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom fedcl.cli import main\nsys.argv[1:] = " + repr(words) + "\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('MODULES', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    modules = set(done.stdout.rpartition("MODULES ")[2].split())
    assert "typer" in modules
    assert not modules & HEAVY


def test_every_flag_has_help_on_one_line_with_its_default(fedcl: Fedcl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = fedcl("simulate", "--help").stdout
    rows = [line for line in text.splitlines() if line.startswith("│ --")]
    assert len(rows) > 25
    blank = [line for line in text.splitlines() if line.startswith("│      ")]
    assert blank == []
    assert any("--rounds" in row and "(20)" in row for row in rows)


def test_no_command_shows_help_and_exits_2(fedcl: Fedcl) -> None:
    result = fedcl()
    assert result.exit_code == 2
    assert "simulate" in result.output


@pytest.mark.parametrize("words", [["simulat"], ["simulate", "--round", "3"], ["list", "method"], ["report"]])
def test_wrong_usage_exits_2(fedcl: Fedcl, words: list[str]) -> None:
    result = fedcl(*words)
    assert result.exit_code == 2
    assert result.stderr


@pytest.mark.parametrize("kind", list(plugins.KINDS))
def test_list_names_every_option_with_a_line(fedcl: Fedcl, kind: str) -> None:
    result = fedcl("list", kind)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == plugins.names(kind)
    assert all(len(line.split()) > 2 for line in lines)


def test_list_guesses_a_kind(fedcl: Fedcl) -> None:
    assert "did you mean 'methods'?" in fedcl("list", "method").stderr


def test_every_reference_reads_as_one_and_the_list_shows_it(fedcl: Fedcl) -> None:
    papers = {(kind, name): citations.of(kind, name) for kind in plugins.KINDS for name in plugins.names(kind)}
    assert sum(map(len, papers.values())) > 40
    keys = {paper.key: paper for found in papers.values() for paper in found}
    assert {paper for found in papers.values() for paper in found} == set(keys.values())  # no two share a key
    assert papers["methods", "si"][0].short == "Zenke et al. 2017"
    assert papers["methods", "packnet"][0].short == "Mallya & Lazebnik 2018"
    for line in fedcl("list", "methods").stdout.splitlines():
        found = papers["methods", line.split()[0]]
        assert line.endswith(f"[{'; '.join(paper.short for paper in found)}]") if found else "[" not in line


def test_list_bibtex(fedcl: Fedcl) -> None:
    entry = fedcl("list", "methods", "fot", "--bibtex").stdout
    assert entry.count("@misc{") == 2
    assert "@misc{bakman2024federated," in entry
    assert "author = {Saha and Garg and Roy}" in entry
    assert fedcl("list", "--bibtex").stdout.count("@misc{saha2021gradient,") == 1
    assert fedcl("list", "methods", "fott", "--bibtex").exit_code == 2


def test_data_list_tells_what_is_missing(fedcl: Fedcl) -> None:
    lines = {line.split()[0]: line for line in fedcl("data", "list").stdout.splitlines()}
    assert "found" in lines["digits"]
    assert "fedcl data fetch mnist" in lines["mnist"]


def test_data_fetch_of_what_needs_none(fedcl: Fedcl) -> None:
    result = fedcl("data", "fetch", "digits")
    assert (result.exit_code, result.stdout) == (0, "digits: nothing is to be fetched\n")


def test_data_fetch_of_an_unknown_name_exits_2(fedcl: Fedcl) -> None:
    result = fedcl("data", "fetch", "mnits")
    assert result.exit_code == 2
    assert "did you mean 'mnist'?" in result.stderr


def test_data_fetch_that_fails_exits_1(fedcl: Fedcl, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("fedcl.datasets.mnist.fetch", offline)
    result = fedcl("data", "fetch", "mnist")
    assert result.exit_code == 1
    assert "no network" in result.stderr


def test_doctor_says_what_is_here(fedcl: Fedcl) -> None:
    result = fedcl("doctor")
    assert result.exit_code == 0, result.output
    for words in ("python", "torch", "flwr", "devices", "cpu", "memory", "disk", "digits", "extra medmnist"):
        assert words in result.stdout


def test_doctor_exits_1_where_something_is_broken(fedcl: Fedcl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    result = fedcl("doctor")
    assert result.exit_code == 1
    assert "broken: safetensors cannot be imported" in result.stderr


def test_doctor_exits_1_where_a_device_cannot_compute(fedcl: Fedcl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    result = fedcl("doctor")
    assert result.exit_code == 1
    assert "cannot compute on mps" in result.stderr


def test_version(fedcl: Fedcl) -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["version"]
    assert fedcl("--version").stdout == f"fedcl {declared}\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("fedcl sim", "simulate"),
        ("fedcl simulate --method si", "si"),
        ("fedcl simulate --dataset fas", "fashion_mnist"),
    ],
)
def test_the_shell_completes_commands_and_names(typed: str, offered: str) -> None:
    code = "import sys\nfrom fedcl.cli import main\nsys.argv = ['fedcl']\ntry:\n    main()\nfinally:\n"
    code += f"    assert not {HEAVY} & set(sys.modules)"
    asked = {"_FEDCL_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    environment = os.environ | asked
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [offered], done.stderr


def test_report_prints_the_path_of_a_new_page(fedcl: Fedcl, finished: Path) -> None:
    page = finished / "report.html"
    page.unlink()
    result = fedcl("report", finished)
    assert (result.exit_code, result.stdout) == (0, f"{page}\n")
    assert page.exists()


@pytest.mark.parametrize("command", ["report", "evaluate"])
def test_what_is_no_run_exits_1(fedcl: Fedcl, tmp_path: Path, command: str) -> None:
    result = fedcl(command, tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


def test_evaluate_repeats_the_runs_own_accuracies(fedcl: Fedcl, finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    value = {
        (row["client"], row["task"], row["name"]): f"{100 * row['value']:.1f}"
        for row in rows
        if row["phase"] == "end" and row["stage"] == 1
    }

    def line(name: str, client: int | None) -> str:
        cells = [
            f"{value[client, task, 'accuracy']} / {value[client, task, 'accuracy_inferred']}" for task in ("t0", "t1")
        ]
        return " ".join([name, *cells])

    result = fedcl("evaluate", finished)
    assert result.exit_code == 0, result.output
    table = [" ".join(text.split()) for text in result.stdout.splitlines()]
    assert line("hospital 3", 3) in table
    assert line("all together", None) in table


def test_evaluate_by_another_rule(fedcl: Fedcl, finished: Path) -> None:
    own, other = fedcl("evaluate", finished), fedcl("evaluate", finished, "--infer", "energy")
    assert other.exit_code == 0, other.output
    assert own.stdout != other.stdout
    assert fedcl("evaluate", finished, "--infer", "guess").exit_code == 2


def test_evaluate_each_hospitals_own_model(fedcl: Fedcl) -> None:
    assert fedcl("simulate", *TINY, "--federation", "local", "--output", "here", "-q").exit_code == 0
    result = fedcl("evaluate", "here")
    assert result.exit_code == 0, result.output
    assert "hospital 4" in result.stdout


def test_evaluate_on_other_data(fedcl: Fedcl, tmp_path: Path, finished: Path) -> None:
    generator = np.random.default_rng(0)
    own = tmp_path / "own.npz"
    names = np.array([str(digit) for digit in range(10)])
    np.savez(own, x=generator.random((600, 8, 8)).astype(np.float32), y=np.arange(600) % 10, classes=names)
    plugin = tmp_path / "own_digits.py"
    plugin.write_text(
        "from pathlib import Path\nfrom fedcl.datasets import npz\n\n"
        f"def build(root: Path):\n    return npz.build(root, path=Path({str(own)!r}))\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        result = fedcl("evaluate", finished, "--dataset", "own_digits:build")
    finally:
        sys.path.remove(str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "test data of own_digits:build" in result.stdout


def test_evaluate_refuses_data_of_another_shape(fedcl: Fedcl, finished: Path) -> None:
    result = fedcl("evaluate", finished, "--dataset", "synthetic")
    assert result.exit_code == 1
    assert "the model was made for [1, 8, 8]" in result.stderr
