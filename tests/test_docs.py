"""What the documents show works as shown."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import merged
from smoke.running import run_here

from fedcl.simulation import simulate

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING")), *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^fedcl ([a-z]+)\b", re.M)


def _blocks(document, language):
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.S)


def test_the_method_of_the_documentation_runs(small, tmp_path, monkeypatch):
    (code,) = _blocks(ROOT / "docs" / "methods.md", "python")
    (tmp_path / "stay.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    runs = {}
    for strength in (0.0, 100.0):
        method = {"method": "stay:Stay", "methods": {"stay:Stay": {"strength": strength}}}
        runs[strength] = simulate(small(**merged(method, run={"output": str(tmp_path / f"run{strength}")})))
    plain = simulate(small(method="finetune", run={"output": str(tmp_path / "plain")}))
    from safetensors.torch import load_file

    held, free, none = (
        load_file(result.path / "model.safetensors")["trunk.layers.0.weight"]
        for result in (runs[100.0], plain, runs[0.0])
    )
    assert free.equal(none)
    assert not free.equal(held)


def test_the_readme_shows_the_same_method():
    (code,) = _blocks(ROOT / "docs" / "methods.md", "python")
    assert code in _blocks(ROOT / "README.md", "python")


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md"])
def test_python_of_the_first_pages_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = [re.sub('"rounds": [0-9]', '"rounds": 1', code) for code in _blocks(ROOT / name, "python")]
    assert blocks
    for code in blocks:
        exec(compile(code, name, "exec"), {"__name__": "__main__"})
    assert sorted(path.parent.name for path in tmp_path.glob("runs/*/report.html"))


def test_own_data_as_in_the_readme(tmp_path, monkeypatch):
    """The commands under "Your own data", with images made here and fewer rounds."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    for site, label, k in itertools.product(("a", "b", "c"), ("healthy", "effusion", "nodule", "fracture"), range(12)):
        folder = tmp_path / "x-rays" / site / label
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(256, size=(20, 20), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    exec(next(code for code in _blocks(ROOT / "README.md", "python") if "savez" in code), {})
    commands = re.findall(r"^fedcl (simulate --dataset (?:folder|npz)(?:.*\\\n)*.*)$", text, re.M)
    assert len(commands) == 2
    for number, command in enumerate(commands):
        words = shlex.split(command.replace("\\\n", " "))
        result = run_here(*words, "--rounds", "1", "--epochs", "1", "--output", f"run{number}", "--quiet")
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", sorted({name for file in DOCUMENTS for name in re.findall(COMMAND, file.read_text())}))
def test_commands_that_the_documents_name_exist(name):
    assert run_here(name, "--help").exit_code == 0


def test_the_site_builds_and_fetches_nothing(tmp_path):
    """Strictly: every link and cross-reference leads somewhere. What pages load is their own."""
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("latex2mathml")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path), "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = {page: page.read_text() for page in tmp_path.rglob("*.html")}
    assert len(pages) > 30
    for page, text in pages.items():
        assert not re.findall(r"<(?:script|img|iframe)[^>]* src=\"?(?:https?:)?//[^>]*>", text), page
        assert not re.findall(r"<link[^>]* href=\"?(?:https?:)?//[^>]*>", text), page
    equations = (tmp_path / "equations" / "index.html").read_text()
    assert equations.count("<math") > 20
    assert "arithmatex" not in equations
    assert "proximal" in (tmp_path / "reference" / "methods" / "index.html").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_page_of_the_documentation_is_whole():
    (code,) = _blocks(ROOT / "docs" / "report.md", "python")
    made: dict[str, str] = {}
    exec(compile(code, "report.md", "exec"), made)
    assert 'download="mean.csv" href="data:text/csv' in made["page"]
    assert "98.1 %" in made["page"]
