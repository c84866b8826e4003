"""Every experiment runs in its quick form, and its table can be made."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from fedcl import Config
from fedcl.simulation import check

HERE = Path(__file__).parents[2] / "experiments"
NAMES = sorted(file.stem for file in HERE.glob("*.toml"))


@pytest.fixture
def run(monkeypatch):
    """The runner as a module."""
    monkeypatch.syspath_prepend(str(HERE))
    sys.modules.pop("run", None)
    import run

    return run


def test_the_readme_has_a_place_for_every_experiment(run):
    assert sorted(run.ORDER) == NAMES


def test_the_top_readme_shows_what_the_runs_came_to(run):
    assert "\n".join(run.grid(run.SHOWN)) in (HERE.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_is_a_config_whose_parts_go_together(run, name):
    """Also of those rows that the quick form leaves out."""
    cells = list(run.cells(run.read(name), [0], False, Path("runs")))
    assert cells
    for cell in cells:
        check(Config.model_validate(cell.config))


def test_a_column_that_is_run_alone_leaves_the_others(run, tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(run, "HERE", tmp_path)
    for column in ("one", "two"):
        run.save("some", {"row": {column: {"seconds": [1.0]}}})
    assert list(run.results("some")["row"]) == ["one", "two"]


@pytest.mark.parametrize("name", NAMES)
def test_quick_form(run, name, tmp_path, monkeypatch):
    arguments = argparse.Namespace(output=tmp_path / "runs", quick=True, seeds=0, rows=[], columns=[], jobs=1)
    found = run.experiment(name, arguments)
    plan = run.read(name)
    names = plan["quick"].get("rows") or [row["name"] for row in plan["rows"]]
    assert list(found) == names
    (tmp_path / "results").mkdir()
    for file in (f"{name}.toml", "head.md"):
        (tmp_path / file).write_text((HERE / file).read_text())
    monkeypatch.setattr(run, "HERE", tmp_path)
    run.save(name, found)
    text = run.table(name)
    for row in (row for row in plan["rows"] if row["name"] in names):
        assert f"| {row['name']} |" in text
        for published in row.get("published", {}).values():
            assert f"({published})" in text


def test_distributions_are_drawn_from_the_runs_own_parameters(run, tmp_path, monkeypatch):
    sys.modules.pop("distributions", None)
    import distributions

    found = distributions.parameters(1e9, True, tmp_path)
    assert found["old"].keys() == found["new"].keys() == found["EWC"].keys()

    def moved(name):
        return sum(float((found[name][key] - value).square().sum()) for key, value in found["old"].items())

    assert 0 < moved("EWC") < 0.5 * moved("new")
    assert distributions.draw(found).count('class="line"') == 5
