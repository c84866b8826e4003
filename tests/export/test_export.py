"""A finished run's model as a file of its own: exact as floats, a quarter of the bytes as int8, answering alone."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import TINY, model, stop_after
from smoke.running import run_here

import fedcl
from fedcl import export, federation, finish, quantize, run_dir
from fedcl.config import Config
from fedcl.contracts import TEST, TRAIN, FedclError
from fedcl.simulation import Interrupted, simulate


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A short run on the real digits that has learned something."""
    output = tmp_path_factory.mktemp("export") / "run"
    train = {"rounds": 8, "epochs": 5, "lr": 0.1}
    config = {"train": train, "stream": {"tasks": 2, "classes": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]}}
    return simulate(Config.model_validate(config | {"run": {"output": str(output)}}))


def _answers(result, net):
    """(the file's answers to a hospital's test samples, the run's own), as logits of t1."""
    config = run_dir.read_config(result.path)
    hospitals = federation.build(config)
    params, _ = finish.read(result.path / "model.safetensors")
    x = hospitals.batch(0, 1, "test").x
    with torch.no_grad():
        return net(x, "t1"), finish.restore(config, hospitals, params)(x, "t1")


ALONE = {
    "slices, some units closed": {
        "model": {"growth": "prune"},
        "growth": {"prune": {"share": 0.5}},
        "train": {"rounds": 2},
    },
    "gates on units": {"method": "hat"},
    "owners of weights": {"method": "packnet"},
    "weights of its own": {"method": "ewc", "model": {"masks": "adaptive"}},
    "lengths and directions": {"model": {"weight_norm": True}},
    "no masks": {},
}


@pytest.mark.parametrize("kind", ALONE)
def test_one_task_alone_answers_as_in_the_whole_net(run, tmp_path, kind):
    """The file has its module only; what masks closed is not there, what they scaled is in the weights."""
    result = run(**{"method": "finetune"} | ALONE[kind])
    done = export.export(result.path, tmp_path / "t1.safetensors", task="t1")
    export.export(result.path, tmp_path / "all.safetensors")
    net, whole = (fedcl.load_export(tmp_path / f"{name}.safetensors") for name in ("t1", "all"))
    x = torch.rand(9, *net.info["shape"])
    torch.testing.assert_close(net(x, "t1"), whole(x, "t1"), rtol=0, atol=1e-5)
    assert set(net.tasks) == {"t1"}
    assert done.bytes < done.bytes_float
    known = {r.task: r.value for r in result.records if (r.phase, r.name, r.client) == ("end", "accuracy", None)}
    assert done.accuracies == (("task known", known["t1"], known["t1"]),)


def test_a_task_that_is_not_there_or_rounded_is_refused(digits, tmp_path):
    with pytest.raises(FedclError, match="'t9' has no module; there are: t0, t1"):
        export.export(digits.path, tmp_path / "net.safetensors", task="t9")
    with pytest.raises(FedclError, match="--int8 or --task"):
        export.export(digits.path, tmp_path / "net.safetensors", int8=True, task="t1")


def test_floats_come_back_exactly(digits, tmp_path):
    file = tmp_path / "net.safetensors"
    done = export.export(digits.path, file)
    net = fedcl.load_export(file)
    one, two = _answers(digits, net)
    assert torch.equal(one, two)
    saved = {name: value for name, value in model(digits).items() if not name.startswith("infer.")}
    assert net.net.state_dict().keys() == saved.keys()
    assert all(torch.equal(net.net.state_dict()[name], value) for name, value in saved.items())
    assert net.tasks == {"t0": tuple("01234"), "t1": tuple("56789")}
    assert done.bytes == done.bytes_float == sum(value.nbytes for value in saved.values())
    known, inferred = done.accuracies
    for (_, before, after), name in ((known, "average_accuracy"), (inferred, "average_accuracy_inferred")):
        assert before == after == pytest.approx(digits.metrics[name])


def test_eight_bits(digits, tmp_path):
    file, whole = tmp_path / "int8.safetensors", tmp_path / "float.safetensors"
    done = export.export(digits.path, file, int8=True)
    export.export(digits.path, whole)
    assert file.stat().st_size < whole.stat().st_size / 3  # of a small net the words weigh
    assert 3.5 < done.bytes_float / done.bytes < 4
    saved, written = model(digits), load_file(file)
    net = fedcl.load_export(file)
    for name, value in net.net.state_dict().items():
        if written[name].dtype == torch.int8:
            half = quantize.scales(quantize.rows(saved[name]))[:, None] / 2
            assert torch.all((quantize.rows(value) - quantize.rows(saved[name])).abs() <= half * 1.0001)
            assert written[f"{name}#scale"].shape == (len(saved[name]),)
        else:
            assert torch.equal(value, saved[name]), name
    kinds = {name: written[name].dtype for name in saved if name in written}
    assert kinds["trunk.layers.0.weight"] == kinds["tasks.t1.out.weight"] == torch.int8
    assert {kinds[n] for n in kinds if n.endswith("bias") or n.startswith("gates.")} == {torch.float32}
    for _, before, after in done.accuracies:
        assert before > 0.8
        assert abs(after - before) < 0.01
    one, two = _answers(digits, net)
    assert 0 < (one - two).abs().max() < 0.2


def test_the_file_says_what_it_is(digits, tmp_path):
    file = tmp_path / "net.safetensors"
    run_here("export", digits.path, "--output", file, "--int8")
    with safe_open(file, framework="pt") as opened:
        head = opened.metadata()
    said = {name: json.loads(text) for name, text in head.items() if name != "format"}
    assert said["trunk"]["name"] == "mlp"
    assert said["tasks"][1]["classes"] == [5, 6, 7, 8, 9]
    assert said["normalize"] == {"how": "none"}
    assert said["bytes"] < said["bytes_float"]
    assert said["accuracy"]["task known"]["after"] == pytest.approx(said["accuracy"]["task known"]["before"], abs=0.01)
    assert str(digits.path) not in json.dumps(head)


def test_the_command_says_what_it_cost(digits, tmp_path):
    done = run_here("export", digits.path, "--output", tmp_path / "a.safetensors", "--int8")
    assert done.exit_code == 0, done.output
    size, known, inferred, card = done.stdout.splitlines()
    assert card == f"model card: {tmp_path / 'a.safetensors.card.md'}"
    assert "kB of " in size
    assert known.startswith("accuracy, task known: ")
    assert inferred.endswith("% as exported")


CASES = {
    "a shared head": {"model": {"heads": "shared"}},
    "a head by place": {"model": {"heads": "domain"}, "stream": {"kind": "domain"}},
    "masks over weights": {"method": "packnet"},
    "masks over units": {"method": "hat"},
    "weight normalisation": {"model": {"weight_norm": True}},
    "normalised inputs": {"data": {"normalize": "train"}},
    "inputs normalised by given numbers": {"data": {"normalize": {"mean": 0.5, "std": 2.0}}},
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_net_answers_as_in_its_run(run, tmp_path, case):
    """Also from inputs as they are before normalisation, which the file knows of."""
    result = run("run", **{"method": "finetune"} | CASES[case])
    done = export.export(result.path, tmp_path / "net.safetensors")
    assert not done.unscored
    net = fedcl.load_export(tmp_path / "net.safetensors")
    config = run_dir.read_config(result.path)
    plain = config.model_copy(update={"data": config.data.model_copy(update={"normalize": "none"})})
    raw = federation.build(config if config.stream.kind == "domain" else plain)
    for task in raw.tasks:
        right = total = 0
        for hospital in range(3):
            batch = raw.batch(hospital, task.index, "test")
            right += int((torch.tensor(task.classes)[net(batch.x, task.id).argmax(1)] == batch.y).sum())
            total += len(batch.y)
        assert right / total == pytest.approx(result.pooled[-1, task.index])
    quantised = export.export(result.path, tmp_path / "int8.safetensors", int8=True)
    assert quantised.bytes < quantised.bytes_float
    assert fedcl.load_export(tmp_path / "int8.safetensors")(batch.x, task.id).isfinite().all()


def test_missing_values_have_flags_that_are_not_scaled(tmp_path, small):
    pytest.importorskip("sklearn")
    info = {"config": small().model_dump(), "shape": [12], "classes": ["a", "b"], "outputs": 2}
    info |= {"tasks": [{"id": "t0", "classes": [0, 1]}]}
    info |= {"normalize": {"how": "train", "mean": [1.0] * 10, "std": [2.0] * 10}}
    net = finish.rebuild(small(), (12,), 2, {"t0": 2}, _params(small()))
    told = export.Exported(net.state_dict(), info)
    x = torch.randn(4, 12)
    scaled = torch.cat([(x[:, :10] - 1) / 2, x[:, 10:]], 1)
    assert torch.equal(told(x, "t0"), net(scaled, "t0"))


def _params(config):
    from fedcl.models import dynamic_net

    net = dynamic_net.build(config.model, (12,), 2)
    net.add_task("t0", 2, config.model.expansion_units)
    return net.state_dict()


def test_pixels_are_bytes_too(digits, tmp_path):
    export.export(digits.path, tmp_path / "net.safetensors")
    net = fedcl.load_export(tmp_path / "net.safetensors")
    pixels = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(net(pixels, "t0"), net(pixels.float() / 255, "t0"))


def test_an_unknown_task_is_named(digits, tmp_path):
    export.export(digits.path, tmp_path / "net.safetensors")
    with pytest.raises(FedclError, match="'t7' is not in this file; there are: t0, t1"):
        fedcl.load_export(tmp_path / "net.safetensors")(torch.zeros(1, 1, 8, 8), "t7")


# ── what cannot be exported ──────────────────────────────────────────────────────────────────────────────────────────


def test_without_the_data_it_says_so(digits, tmp_path, monkeypatch):
    def gone(*args, **options):
        raise FedclError("the data are not here; fedcl data fetch digits")

    monkeypatch.setattr(federation, "build", gone)
    done = run_here("export", digits.path, "--output", tmp_path / "net.safetensors", "--int8")
    assert done.exit_code == 0, done.output
    assert "accuracy is not measured: the data are not here" in done.stdout
    assert fedcl.load_export(tmp_path / "net.safetensors").info["accuracy"] == {}


def test_no_run(tmp_path):
    done = run_here("export", tmp_path / "nowhere", "--output", tmp_path / "net.safetensors")
    assert done.exit_code == 1
    assert "is not a run directory" in done.stderr


def test_an_unfinished_run(small, tmp_path, monkeypatch):
    stop_after(monkeypatch, 2)
    with pytest.raises(Interrupted):
        simulate(small(run={"output": str(tmp_path / "run")}))
    with pytest.raises(FedclError, match="is interrupted, not finished; go on with it: fedcl simulate"):
        export.export(tmp_path / "run", tmp_path / "net.safetensors")
    assert not (tmp_path / "net.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "why"), [({"merger": "personal"}, "modules of its own"), ({"kind": "local"}, "of its own")]
)
def test_where_nothing_is_merged(run, tmp_path, changes, why):
    result = run("run", federation=changes)
    with pytest.raises(FedclError, match=why):
        export.export(result.path, tmp_path / "net.safetensors")


def test_a_place_that_cannot_be_written(digits, tmp_path):
    with pytest.raises(FedclError, match="choose another place"):
        export.export(digits.path, tmp_path / "no" / "folder" / "net.safetensors")


def test_what_is_no_export_is_not_loaded(digits, tmp_path):
    with pytest.raises(FedclError, match="is not an exported model"):
        fedcl.load_export(digits.path / "model.safetensors")
    with pytest.raises(FedclError, match="cannot be read"):
        fedcl.load_export(tmp_path / "nowhere.safetensors")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(FedclError, match="cannot be read"):
        fedcl.load_export(tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "half", metadata={"format": export.FORMAT, "int8": "[]"})
    with pytest.raises(FedclError, match="damaged"):
        fedcl.load_export(tmp_path / "half")


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom fedcl.cli import main\nsys.argv[1:] = ['export', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('HEAVY', *({'torch', 'flwr', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1].strip() == "HEAVY"


def test_a_suffix_that_names_no_format_is_refused(digits, tmp_path):
    with pytest.raises(FedclError, match=r"net\.onx: no format is known by that suffix; take \.safetensors, .*\.onnx"):
        export.form_of(tmp_path / "net.onx")
    assert export.form_of(tmp_path / "net.onx", "onnx") == "onnx"


def test_a_task_without_test_samples_is_exported_unscored(tmp_path):
    """Samples are there to train on only, of the last two classes."""
    x, y = np.random.default_rng(0).normal(size=(240, 12)).astype(np.float32), np.arange(240) % 4
    np.savez(tmp_path / "data.npz", x=x, y=y, split=np.where((y < 2) & (np.arange(240) % 3 == 0), TEST, TRAIN))
    data = {"name": "npz", "options": {"path": str(tmp_path / "data.npz")}}
    result = simulate(Config.model_validate(TINY | {"data": data, "run": {"output": str(tmp_path / "run")}}))
    assert export.export(result.path, tmp_path / "t0.safetensors", task="t0").accuracies
    done = export.export(result.path, tmp_path / "t1.safetensors", task="t1")
    assert (done.accuracies, done.unscored) == ((), "there are no test samples of t1")
