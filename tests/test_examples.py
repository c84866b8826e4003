"""The worked examples and notebooks run as they are, and learn."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def _module(name, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["ids", "embeddings"])
def test_text(tmp_path, monkeypatch, kind):
    text = _module("text", monkeypatch)
    assert text.ids(["heart murmur unheard"])[0, :3].tolist() == [text.WORDS["heart"], text.WORDS["murmur"], text.PAD]
    result = text.run(tmp_path, kind)
    assert len(result.hospitals) == len(result.tasks) == 3
    assert result.metrics["average_accuracy"] > 0.9


def test_audio(tmp_path, monkeypatch):
    np = pytest.importorskip("numpy")
    audio = _module("audio", monkeypatch)
    tone = np.sin(2 * np.pi * 1000 * np.arange(audio.RATE) / audio.RATE)[None]
    loudest = audio.log_mel(tone)[0].mean(1).argmax()
    top = 2595 * np.log10(1 + audio.RATE / 2 / 700)
    assert loudest == round(2595 * np.log10(1 + 1000 / 700) / (top / 25)) - 1  # the band whose centre is nearest
    assert audio.run(tmp_path).metrics["average_accuracy"] > 0.65  # chance is 0.5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_no_outputs(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.filterwarnings("default")  # of Jupyter's own packages
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert ("to the hospitals" if path.stem == "first_run" else "over finetune, seed by seed") in said
