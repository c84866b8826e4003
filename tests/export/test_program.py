"""The model as a program that needs no fedcl answers as the run's net, and its card says what the run found."""

from __future__ import annotations

import json

import pytest
import torch
from smoke.running import run_here

from fedcl import export, federation, finish, run_dir, units
from fedcl.contracts import FedclError

CASES = {
    "modules of tasks, normalised inputs": {"data": {"normalize": "train"}},
    "masks over units": {"method": "hat"},
    "a net that grew": {
        "model": {"growth": "threshold"},
        "growth": {"threshold": {"patience": 1, "window": 1, "ratio": 0.99}},
        "train": {"rounds": 4},
    },
}


def _raw(result):
    """(samples as the data set has them, the run's own logits by task): hospital 0's tests of the first task."""
    config = run_dir.read_config(result.path)
    plain = config.model_copy(update={"data": config.data.model_copy(update={"normalize": "none"})})
    params, _ = finish.read(result.path / "model.safetensors")
    net = finish.restore(config, federation.build(config), params)
    x, scaled = (federation.build(each).batch(0, 0, "test").x for each in (plain, config))
    with torch.no_grad():
        own = {}
        for task in federation.build(config).tasks:
            logits = net(scaled, net.owner(task.id) if net.masks == "none" else task.id)
            own[task.id] = logits[:, list(task.classes)] if config.model.heads == "shared" else logits
        return x, own


def _near(found, own):
    assert found.keys() == own.keys()
    for task, logits in own.items():
        assert torch.allclose(found[task], logits, atol=1e-5), task


@pytest.mark.parametrize("case", CASES)
def test_torch_export_answers_as_the_run(run, tmp_path, case):
    result = run("run", **CASES[case])
    assert ("growth" in {record.phase for record in result.records}) == (case == "a net that grew")
    done = export.export(result.path, tmp_path / "net.pt2")
    x, own = _raw(result)
    said = {"fedcl.json": ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=said).module()
    _near(program(x), own)
    _near(program(x[:1]), {task: logits[:1] for task, logits in own.items()})
    assert json.loads(said["fedcl.json"])["tasks"][1]["id"] == "t1"
    assert done.distance < 1e-5
    assert done.accuracies[0][1] == pytest.approx(result.metrics["average_accuracy"])


def test_onnx_answers_as_the_run(run, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    result = run("run", **CASES["modules of tasks, normalised inputs"])
    export.export(result.path, tmp_path / "net.onnx")
    x, own = _raw(result)
    _near(export.program.run_onnx(tmp_path / "net.onnx", x), own)
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model)
    said = {each.key: each.value for each in model.metadata_props}
    assert json.loads(said["fedcl.json"])["normalize"]["how"] == "train"


def test_the_card_says_what_the_run_found(run, tmp_path):
    result = run()
    done = run_here("export", result.path, "-o", tmp_path / "net.safetensors", "--license", "CC-BY-4.0")
    assert done.exit_code == 0, done.output
    card = (tmp_path / "net.safetensors.card.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines() if line.startswith("|")]
    for task in range(3):
        (row,) = [row for row in rows if row[0] == f"`t{task}`"]
        assert row[1] == f"class {2 * task}, class {2 * task + 1}"
        assert row[5] == units.percent(result.pooled[-1, task])
    (worst,) = [row for row in rows if row[0] == "Worst hospital"]
    assert worst[1] == units.percent(result.metrics["worst_hospital_accuracy"])
    assert next(row[-1] for row in rows if row[0].startswith("hospital ")) == worst[1]
    assert str(result.path.parent) not in card
    assert "alone" not in card
    export.export(result.path, tmp_path / "net.safetensors", task="t1")
    card = (tmp_path / "net.safetensors.card.md").read_text()
    size = sum(value.numel() for value in export.load_export(tmp_path / "net.safetensors").net.parameters())
    assert "ewc: task `t1` alone, of 3 tasks of 3 hospitals" in card
    assert f"what one task needs of it, {units.count(size)} parameters" in card
    export.export(result.path, tmp_path / "net.safetensors")
    assert "Licence: unknown" in (tmp_path / "net.safetensors.card.md").read_text()


def test_what_cannot_be_written_is_said(run, tmp_path, monkeypatch):
    result = run()
    assert run_here("export", result.path, "-o", tmp_path / "a", "--format", "torchscript").exit_code == 2
    with pytest.raises(FedclError, match="--int8 is for safetensors"):
        export.export(result.path, tmp_path / "a.pt2", int8=True)
    with pytest.raises(FedclError, match="choose another place"):
        export.export(result.path, tmp_path / "nowhere" / "a.pt2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FedclError, match=r"pip install 'fedcl\[onnx\]'"):
        export.export(result.path, tmp_path / "a.onnx")
    assert not list(tmp_path.glob("*a.*"))


def test_a_program_that_answers_otherwise_is_no_export(run, tmp_path, monkeypatch):
    result = run()
    monkeypatch.setattr(export.program, "_NEAR", -1.0)
    with pytest.raises(FedclError, match="take the format safetensors"):
        export.export(result.path, tmp_path / "net.pt2")
    assert not list(tmp_path.glob("*.pt2"))
