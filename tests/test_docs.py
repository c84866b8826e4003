"""What the documents show works as shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small import merged

from fedcl.simulation import simulate

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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
