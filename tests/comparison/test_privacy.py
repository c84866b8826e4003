"""Comparing what privacy costs: which runs there are, what they say of ε, and what the page shows."""

import csv
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from small import TINY, merged
from typer.testing import CliRunner

import fedcl
from fedcl import Config, simulate
from fedcl.cli import app
from fedcl.comparison import figures, fronts, grid, leakage, page, presets, protection, write
from fedcl.comparison.grid import Axis

ALONE = {"federation": {"kind": "local"}}
PRIVATE = {"privacy": {"mechanism": "client-dp"}, "mechanisms": {"client-dp": {"epsilon": 50, "clip": 0.1}}}
SMALL = [
    *("--tasks", "2", "--clients", "3", "--rounds", "1", "--epochs", "1", "--jobs", "1"),
    *("--set", "model.options.hidden=[8]", "--set", "mechanisms.client-dp.clip=0.1"),
]


class Page(HTMLParser):
    """What is shown, and every address."""

    def __init__(self, html):
        super().__init__()
        self.text, self.addresses, self.tags, self.ids = "", [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [values[name] for name in ("href", "src") if name in values]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Two settings with an ε and one without, one method, one seed."""
    folder = tmp_path_factory.mktemp("privacy") / "made"
    two = merged(PRIVATE, mechanisms={"client-dp": {"epsilon": 200}})
    settings = {"local": ALONE, "federated": {}, "client-DP ε = 50": PRIVATE, "client-DP ε = 200": two}
    return fedcl.compare(
        Config.model_validate(TINY | {"method": "finetune", "model": {"options": {"hidden": [8]}, "infer": "entropy"}}),
        {"setting": settings, "method": ["finetune"]},
        1,
        output=folder,
        jobs=1,
        metrics=("average_accuracy", "forgetting", "epsilon", leakage.FIGURE),
    )


# ── named values ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_name_stands_for_several_settings_at_once():
    axes = [Axis("setting", ("local", "usual"), {"local": ALONE, "usual": {}}), Axis("train.lr", ("0.1", "0.2"))]
    made = grid.build(axes, (0,), sets=["train.rounds=2"], flags={"federation.kind": "central"})
    kinds = [(cell.labels, cell.config.federation.kind, cell.config.train.lr) for cell in made.cells]
    assert kinds == [
        (("local", "0.1"), "local", 0.1),
        (("local", "0.2"), "local", 0.2),
        (("usual", "0.1"), "central", 0.1),
        (("usual", "0.2"), "central", 0.2),
    ]


def test_a_name_may_not_change_what_the_grid_sets_itself():
    with pytest.raises(ValueError, match="seed"):
        grid.build([Axis("setting", ("odd",), {"odd": {"seed": 3}})], (0,))


FILE = """
seeds = "2"
metrics = ["forgetting"]
keep-going = true
[config]
train.rounds = 4
train.epochs = 2
[vary]
"partition.alpha" = [0.1, 0.5]
[vary.setting]
alone = { federation.kind = "local" }
usual = {}
"""


def test_a_grid_is_a_file_with_a_config_file_over_it(tmp_path):
    (tmp_path / "grid.toml").write_text(FILE)
    (tmp_path / "base.toml").write_text("train.epochs = 3\n")
    made = presets.load(tmp_path / "grid.toml")
    assert (made.seeds, made.metrics, made.keep_going) == ("2", ("forgetting",), True)
    assert made.under(tmp_path / "base.toml") == {"train": {"rounds": 4, "epochs": 3}}
    assert [(axis.key, axis.values) for axis in made.axes] == [
        ("partition.alpha", ("0.1", "0.5")),
        ("setting", ("alone", "usual")),
    ]


def test_names_are_picked_by_pattern_and_other_keys_are_added(tmp_path):
    (tmp_path / "grid.toml").write_text(FILE)
    made = presets.load(tmp_path / "grid.toml")
    axes = made.with_axes([Axis("setting", ("us*",)), Axis("partition.alpha", ("1",)), Axis("method", ("ewc",))])
    assert [(axis.key, axis.values) for axis in axes] == [
        ("partition.alpha", ("1",)),
        ("setting", ("usual",)),
        ("method", ("ewc",)),
    ]
    with pytest.raises(ValueError, match="there are alone, usual"):
        made.with_axes([Axis("setting", ("nothing",))])


@pytest.mark.parametrize("text", ["vary = 3", "[vary]\nmethod = []", "[vary.partition]\nalpha = [1]", "odd = 1", "="])
def test_what_is_no_grid_is_refused(tmp_path, text):
    (tmp_path / "grid.toml").write_text(text)
    with pytest.raises(ValueError, match="--grid"):
        presets.load(tmp_path / "grid.toml")


# ── the grid of --privacy ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_grid_has_every_mechanism_at_every_epsilon():
    made = presets.load(presets.shipped("privacy"))
    names = [f"{m} ε = {e}" for m in ("DP-SGD", "DP-FTRL", "client-DP", "local-DP") for e in (1, 3, 8)]
    settings, methods = made.axes
    assert settings.values == ("local", "central", "federated", *names, "SecAgg", "not sending")
    assert (settings.key, methods.key, methods.values) == ("setting", "method", ("finetune", "ewc", "replay"))
    cells = {cell.labels: cell for cell in grid.build(made.axes, (0,), made.under(None)).cells}
    assert len(cells) == 17 * 3
    refused = {labels for labels, cell in cells.items() if cell.error}
    assert refused == {(f"DP-FTRL ε = {e}", "replay") for e in (1, 3, 8)}
    assert "take dp-sgd" in cells["DP-FTRL ε = 1", "replay"].error
    for (name, method), cell in cells.items():
        if cell.config is None:
            continue
        own = cell.config.mechanisms.get(cell.config.privacy.mechanism, {})
        assert cell.config.method == method
        assert own.get("epsilon", 0) == (float(name.split("= ")[1]) if "ε" in name else 0)
        assert method != "replay" or cell.config.methods["replay"]["keep"] == "independent"
    kinds = {name: cells[name, "ewc"].config.federation.kind for name in ("local", "central", "federated", "SecAgg")}
    assert kinds == {"local": "local", "central": "central", "federated": "federated", "SecAgg": "federated"}
    server, hospital = (cells[f"{name} ε = 3", "ewc"].config.mechanisms for name in ("client-DP", "local-DP"))
    assert (server["client-dp"]["where"], hospital["client-dp"]["where"]) == ("server", "hospital")


def test_the_quick_grid_is_a_part_of_it():
    whole, quick = (presets.load(presets.shipped(name)) for name in ("privacy", "privacy-quick"))
    assert (quick.seeds, quick.metrics) == (whole.seeds, whole.metrics)
    assert set(quick.axes[0].values) < set(whole.axes[0].values)
    assert not [c.error for c in grid.build(quick.axes, (0,), quick.under(None)).cells if c.error]


def test_the_command_plans_and_refuses(tmp_path):
    base = ["compare", "--output", str(tmp_path / "made"), "--dry-run"]
    done = CliRunner().invoke(app, [*base, "--privacy", "--vary", "setting=local,DP-FTRL*", "--seeds", "2"])
    assert done.exit_code == 0, done.output
    assert done.stdout.count("take dp-sgd") == 6
    assert done.stdout.endswith("24 runs\n")
    for words in (["--quick"], ["--privacy", "--grid", "x.toml"], ["--grid", "x.toml"], ["--vary", "privacy=odd"]):
        done = CliRunner().invoke(app, [*base, *words])
        assert done.exit_code == 2, done.output


def test_the_command_runs_two_settings_and_what_cannot_run_is_no_failure(tmp_path):
    made = tmp_path / "made"
    (tmp_path / "grid.toml").write_text(
        'keep-going = true\nmetrics = ["epsilon", "membership_auc"]\n[config]\nmethod = "replay"\n'
        'model.infer = "entropy"\n[vary.setting]\nfederated = {}\n'
        'odd = { privacy.mechanism = "dp-ftrl", mechanisms.dp-ftrl.epsilon = 1 }\n'
    )
    words = ["compare", "--grid", str(tmp_path / "grid.toml"), "--seeds", "1", "--output", str(made), *SMALL[:-2]]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    plan = json.loads((made / "grid.json").read_text())
    assert [bool(run["error"]) for run in plan["runs"]] == [False, True]
    assert plan["metrics"] == ["epsilon", "membership_auc"]


# ── what the runs say ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_epsilon_is_what_the_run_spent_and_is_nowhere_without_terms(found):
    assert not found.failed()
    values = found.values("epsilon", ("finetune",))[:, 0]
    assert np.isnan(values[:2]).all()
    assert 49 < values[2] <= 50
    assert 195 < values[3] <= 200
    stated = dict(protection.stated(found, ("finetune",)))
    assert list(stated) == ["client-DP ε = 50", "client-DP ε = 200"]
    assert (
        "at δ = 1e-5 per hospital (zero-out: that it takes part is not hidden, q = 1, σ = "
        in stated["client-DP ε = 50"]
    )
    assert stated["client-DP ε = 50"] in write.markdown(found)
    assert r"$\varepsilon$ = " in write.latex(found)
    rows = list(csv.DictReader((found.path / "comparison.csv").read_text().splitlines()))
    told = {row["setting"]: row["terms"] for row in rows if row["metric"] == "epsilon"}
    assert told == {"local": "", "federated": ""} | stated
    runs = list(csv.DictReader((found.path / "runs.csv").read_text().splitlines()))
    assert ["per hospital" in run["epsilon_terms"] for run in runs] == [False, False, True, True]


def test_what_nothing_covers_is_listed_for_each_mechanism(found):
    head, rows = protection.covering(found)
    assert head == ["what left", "federated", "client-DP"]
    told = {row[0]: row[1:] for row in rows}
    assert told["change of the trunk"] == ["nothing", "client-dp"]
    assert told["right and wrong answers on test samples"] == ["nothing", "nothing"]
    assert all(row[2] == "nothing" for row in rows[: sum("client-dp" not in row for row in rows)])


def test_fronts_end_where_no_noise_is(found):
    known = fronts.points(found, "average_accuracy")
    accuracy = found.values("average_accuracy", ("finetune",))[:, 0]
    assert [(p.curve, p.block, p.seeds) for p in known] == [
        ("federated", "finetune", 1),
        ("client-DP", "finetune", 1),
        ("client-DP", "finetune", 1),
    ]
    assert [p.mean for p in known] == list(accuracy[1:])
    assert known[0].epsilon == math.inf
    drawn = {figure.id: figure for figure in fronts.fronts(found)}
    rows = drawn["front-average_accuracy"].data.rows
    assert (
        "client-DP: δ = 1e-5 per hospital (zero-out: that it takes part is not hidden);"
        in drawn["front-average_accuracy"].caption
    )
    assert [row[:3] for row in rows] == [
        ["finetune", "client-DP", "50"],
        ["finetune", "client-DP", "200"],
        ["finetune", "client-DP", "∞"],
    ]


def test_places_of_the_axis_are_logarithmic_with_infinity_at_the_right():
    axis = fronts.EpsilonAxis("ε", 0.0, 1.3, str, known=(1.0, 1.01, 10.0))
    assert [axis.place(e) for e in (1.0, 10.0, math.inf)] == [0.0, 1.0, 1.3]
    assert axis.ticks() == [0.0, 1.0, 1.3]


def test_the_page_has_fronts_terms_and_what_is_open_and_asks_nothing_of_the_network(found):
    html = page.render(found)
    seen = Page(html)
    assert {"fig-front-forgetting", "fig-front-average_accuracy", f"fig-front-{leakage.FIGURE}"} <= set(seen.ids)
    assert len(seen.ids) == len(set(seen.ids))
    assert "What left the hospitals, and what covered it" in seen.text
    assert "per hospital (zero-out" in seen.text
    remote = [link for link in seen.addresses if not link.startswith(("#", "data:")) and "report.html" not in link]
    assert remote == []
    assert not {"img", "iframe", "object", "image", "use"} & set(seen.tags)
    assert not re.search(r"\b(cx|cy|x1|x2|y1|y2|d|points)=\"[^\"]*(nan|inf)", html)


# ── membership ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_loss_threshold_finds_those_who_were_learned_by_heart(small, tmp_path):
    config = small(
        data={"options": {"noise": 8.0}},  # labels hardly follow from the features: to be right is to remember
        federation={"kind": "local"},
        model={"options": {"hidden": [64]}},
        train={"epochs": 40},
        alarms={"on": False},
        method="finetune",
        run={"output": str(tmp_path / "run"), "validate_every": 0},
    )
    run = simulate(config).path
    leakage.measure(run)
    told = json.loads((run / "attacks" / "threshold.json").read_text())
    assert told["auc"] > 0.6
    assert told["low95"] < told["auc"] < told["high95"]
    plan = np.array(json.loads((run / "federation.json").read_text())["counts"])  # [hospitals, tasks, 3, classes]
    assert (told["members"], told["others"]) == (plan[:, :, 0].sum(), plan[:, :, 2].sum())
    assert leakage.read(run) == {leakage.FIGURE: told["auc"]}
    (run / "attacks" / "results.json").write_text(json.dumps({"membership": {"auc": 0.75}}))
    assert leakage.read(run) == {leakage.FIGURE: 0.75}


def test_figures_are_written_with_care():
    epsilon = figures.find("epsilon")
    assert epsilon.text(2.99991) == "3"  # never less than what was spent
    assert epsilon.text(3.0, 1e-6) == "3"
    assert epsilon.text(3.0, 0.25) == "3 ± 0.25"
    assert epsilon.text(math.nan) == "–"
    assert not epsilon.tested
    assert figures.find(leakage.FIGURE).lower
