"""A grid run for real: side by side, again, with failures, and stopped in the middle."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from small import TINY
from typer.testing import CliRunner

import fedcl
from fedcl import Config, simulate
from fedcl.cli import app
from fedcl.comparison import Comparison, write
from fedcl.contracts import FedclError

FLAGS = ["--tasks", "2", "--clients", "3", "--rounds", "25", "--epochs", "1", "--set", "model.options.hidden=[8]"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Two methods, two seeds."""
    folder = tmp_path_factory.mktemp("compare") / "made"
    told = []
    made = fedcl.compare(
        Config.model_validate(TINY),
        {"method": ["finetune", "ewc"], "partition.alpha": [0.5, 5.0]},
        2,
        output=folder,
        jobs=1,
        notify=told.append,
    )
    return made, told


def test_every_run_is_an_ordinary_one_and_what_simulate_gives(found, tmp_path):
    made, told = found
    assert [p.kind for p in told].count("end") == 8
    assert not made.failed()
    run = next(r for r in made.runs if r.labels == ("ewc", "5.0") and r.seed == 1)
    alone = {"method": "ewc", "seed": 1, "partition": {"alpha": 5.0}, "run": {"output": str(tmp_path / "alone")}}
    result = simulate(Config.model_validate(TINY | alone))
    for name, value in result.metrics.items():
        if not name.startswith("latency"):
            assert run.figures[name] == pytest.approx(value, nan_ok=True, abs=0), name
    assert (run.path / "report.html").exists()


def test_values_and_tables_agree(found):
    made, _ = found
    assert made.rows() == ("finetune", "ewc")
    assert made.blocks() == (("0.5",), ("5.0",))
    by_run = {(r.labels, r.seed): r.figures["average_accuracy"] for r in made.runs}
    values = made.values("average_accuracy", ("5.0",))
    np.testing.assert_array_equal(values, [[by_run[(m, "5.0"), s] for s in (0, 1)] for m in ("finetune", "ewc")])
    rows = list(csv.DictReader((made.path / "comparison.csv").read_text().splitlines()))
    row = next(
        r for r in rows if (r["method"], r["partition.alpha"], r["metric"]) == ("ewc", "5.0", "average_accuracy")
    )
    assert float(row["mean"]) == pytest.approx(values[1].mean())
    assert float(row["sd"]) == pytest.approx(values[1].std(ddof=1))
    assert float(row["difference"]) == pytest.approx((values[1] - values[0]).mean())
    shown = f"{100 * values[1].mean():.1f} ± {100 * values[1].std(ddof=1):.1f}"
    assert shown in write.markdown(made)
    assert shown.replace("±", r"$\pm$") in write.latex(made)
    runs = list(csv.DictReader((made.path / "runs.csv").read_text().splitlines()))
    assert [float(r["average_accuracy"]) for r in runs] == list(by_run.values())
    frame = made.frame()
    assert list(frame["average_accuracy"]) == list(by_run.values())


def test_again_nothing_runs_and_one_more_value_runs_alone(found):
    made, _ = found
    told = []
    config = Config.model_validate(TINY)
    axes = {"method": ["finetune", "ewc"], "partition.alpha": [0.5, 5.0]}
    fedcl.compare(config, axes, 2, output=made.path, jobs=1, notify=told.append)
    assert told == []
    fedcl.compare(
        config,
        axes | {"method": ["ewc", "l2"], "partition.alpha": [0.5]},
        1,
        output=made.path,
        jobs=1,
        notify=told.append,
    )
    assert {p.labels for p in told} == {("l2", "0.5")}
    with pytest.raises(FedclError, match="another config"):
        fedcl.compare(Config.model_validate(TINY | {"train": {"rounds": 3}}), axes, 2, output=made.path, jobs=1)
    fedcl.compare(config, axes, 2, output=made.path, jobs=1)


def test_a_failed_run_is_shown_and_stops_nobody(tmp_path):
    made = fedcl.compare(
        Config.model_validate(TINY | {"method": "finetune"}),
        {"data.name": ["digits", f"npz:{tmp_path}/none.npz"]},
        1,
        output=tmp_path / "made",
        jobs=1,
    )
    (failed,) = made.failed()
    assert "none.npz" in failed.error
    assert math.isfinite(made.values("average_accuracy")[0, 0])
    assert math.isnan(made.values("average_accuracy")[1, 0])
    assert "none.npz" in (made.path / "comparison.md").read_text()


def test_data_from_python_are_compared_too(tmp_path):
    from fedcl import datasets
    from fedcl.sections import Data

    samples = datasets.load(Data(name="digits"))
    made = fedcl.compare(
        Config.model_validate(TINY), {"method": ["finetune", "l2"]}, 1, output=tmp_path / "made", samples=samples
    )
    assert not made.failed()
    assert np.isfinite(made.values("average_accuracy")).all()


def test_what_cannot_run_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(FedclError, match="methods"):
        fedcl.compare(None, {"method": ["ewc", "nothing"]}, 1, output=tmp_path / "made")
    assert not (tmp_path / "made").exists()
    with pytest.raises(FedclError, match="not a comparison"):
        Comparison.load(tmp_path)


def test_the_command_says_wrong_axes_with_exit_code_2(tmp_path):
    for words in (["--vary", "method"], ["--vary", "method=nothing"], ["--seeds", "x"], ["--vary", "rounds=a"]):
        done = CliRunner().invoke(app, ["compare", *words, "--output", str(tmp_path / "made")])
        assert done.exit_code == 2, done.output
        assert done.stderr
    some = ["compare", "--vary", "heads=task,shared", "--growth", "den", "--method", "finetune", "--dry-run"]
    done = CliRunner().invoke(app, some)
    assert done.exit_code == 2
    assert "--keep-going" in done.stderr
    done = CliRunner().invoke(app, [*some, "--keep-going"])
    assert done.exit_code == 0
    assert "heads=task" in done.stdout
    assert not (tmp_path / "made").exists()


def test_the_command_stops_on_ctrl_c_saved_and_goes_on(tmp_path):
    made = tmp_path / "made"
    long = [*FLAGS, "--vary", "method=finetune,ewc", "--seeds", "1", "--jobs", "1", "--output", str(made)]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedcl", "compare", *long], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while not list(made.glob("*/*/metrics.jsonl")) and time.monotonic() < end:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "go on with" in err
    states = [json.loads(path.read_text())["state"] for path in made.glob("*/*/status.json")]
    assert "interrupted" in states
    done = CliRunner().invoke(app, ["compare", *long])
    assert done.exit_code == 0, done.output
    assert len(list(made.glob("*/*/report.html"))) == 2


def test_a_folder_with_another_comparison_is_refused(found):
    made, _ = found
    with pytest.raises(FedclError, match=r"has a comparison of method, partition\.alpha, not of seeds"):
        fedcl.compare(Config.model_validate(TINY), {}, 2, output=made.path)
