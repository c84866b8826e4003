from __future__ import annotations

import csv
import io
import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from fedcl import report
from fedcl.metrics import DEFINITIONS
from fedcl.report.charts import spread
from fedcl.report.svg import Axis, from_zero, points
from fedcl.results import Result

Maker = Callable[..., Path]
HOSTILE = '<script>alert("x")</script>'


class Page(HTMLParser):
    """What the tests ask of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.blocks: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag not in ("meta", "link", "br", "img", "input", "option"):
            self.open.append(tag)
        if tag in self.blocks:
            self.blocks[tag].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag != "option":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.blocks:
            self.blocks[self.open[-1]][-1] += data
        else:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def parsed(run: Path) -> Page:
    page = Page(report.write(run).read_text(encoding="utf-8"))
    assert page.open == []
    return page


CASES: dict[str, dict[str, Any]] = {
    "usual": {},
    "interrupted": {"finished": 2, "staggered": True},
    "nothing finished": {"finished": 0},
    "one task": {"tasks": 1},
    "one hospital": {"hospitals": 1},
    "one of each": {"tasks": 1, "hospitals": 1, "rounds": 1},
    "all undefined": {"nan": True},
    "crowd": {"hospitals": 14, "tasks": 13, "rounds": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_page_is_whole(make_run: Maker, case: str) -> None:
    page = parsed(make_run(**CASES[case]))
    doubled = [name for name, count in Counter(page.ids).items() if count > 1]
    assert doubled == []
    links = [str(link["href"]) for link in page.all("a") if "download" not in link]
    assert links
    assert all(link[0] == "#" and link[1:] in page.ids for link in links)
    assert [str(link["href"]) for link in page.all("link")] == ["data:,"]  # no icon is asked for
    for tag in ("img", "iframe", "object", "image", "use"):
        assert page.all(tag) == []
    assert not any("src" in attrs for _, attrs in page.tags)
    for source in page.blocks["style"] + page.blocks["script"]:
        assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest", source)


@pytest.mark.parametrize("case", CASES)
def test_every_figure_has_a_name_a_description_and_its_csv(make_run: Maker, case: str) -> None:
    page = parsed(make_run(**CASES[case]))
    drawings = page.all("svg")
    for drawing in drawings:
        named = str(drawing["aria-labelledby"]).split()
        assert drawing["role"] == "img"
        assert len(named) == 2
        assert set(named) <= set(page.ids)
    files = numbers(page)
    assert len(page.all("figure")) == len(page.all("figcaption")) == len(files) <= len(drawings)
    assert len(files) >= 15
    for name, rows in files.items():
        assert len({len(row) for row in rows}) == 1, name
        assert len(rows[0]) >= 2
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    geometry = {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height", "points", "d", "viewbox"}
    drawn = [value for _, attrs in page.tags for name, value in attrs.items() if name in geometry]
    assert not any(word in str(value) for value in drawn for word in ("nan", "inf"))


def numbers(page: Page) -> dict[str, list[list[str]]]:
    """Each figure's CSV."""
    links = [link for link in page.all("a") if "download" in link]
    texts = {
        str(link["download"]): unquote(str(link["href"]).removeprefix("data:text/csv;charset=utf-8,")) for link in links
    }
    return {name: list(csv.reader(io.StringIO(text))) for name, text in texts.items()}


def test_hostile_names_stay_text(make_run: Maker) -> None:
    run = make_run(hospitals=2, names=[HOSTILE, '" onload="x'])
    (run / "env.json").write_text(json.dumps({"command": HOSTILE}))
    (run / "config.toml").write_text(f"method = '{HOSTILE}'\n")
    html = report.write(run).read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.all("script")) == 1
    assert HOSTILE not in html
    assert HOSTILE in "".join(page.text)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert {row[0] for row in numbers(page)["split.csv"][1:]} == {HOSTILE, '" onload="x'}


def test_headline_numbers_are_those_of_the_metrics(make_run: Maker) -> None:
    run = make_run()
    text = " ".join(" ".join(parsed(run).text).split())
    metrics = Result.load(run).metrics
    assert f"Average accuracy {100 * metrics['average_accuracy']:.1f} %" in text
    assert f"Forgetting, peak {100 * metrics['forgetting']:.1f} points" in text
    assert f"Worst hospital {100 * metrics['worst_hospital_accuracy']:.1f} % task known" in text
    assert "Forward transfer – needs a shared head and two tasks" in text
    assert "1:23 min" in text
    assert "× 1.13 34.1 k → 38.5 k" in text
    assert "0.21 ms" in text
    for title, formula, source in DEFINITIONS.values():
        assert title in text
        assert formula in text
        assert source in text
    assert f"fedcl simulate -c {run}/config.toml --output {run}-again" in text


def test_state_and_faults(make_run: Maker) -> None:
    text = " ".join(parsed(make_run(finished=2)).text)
    assert "interrupted" in text
    assert "2 of 5 stages finished" in text
    assert "rejected" in text
    assert "3 values are NaN <b>&" in text


def test_a_figure_has_the_numbers_of_every_choice(make_run: Maker) -> None:
    run = make_run(tasks=3, hospitals=4)
    page = parsed(run)
    accuracy = Result.load(run).accuracy
    rows = numbers(page)["matrix-known.csv"]
    assert rows[0] == ["hospital", "after stage", "0, 1", "2, 3", "4, 5"]
    assert len(rows) == 1 + (1 + 4) * 3
    first = next(row for row in rows if row[0] == "Hospital 3")
    assert float(first[2]) == pytest.approx(accuracy[0, 0, 2], abs=1e-4)
    assert first[3] == ""
    chosen = [attrs for tag, attrs in page.tags if tag == "select"]
    assert {attrs["data-switch"] for attrs in chosen} == {"hospital", "task", "stage"}


def test_alarms_are_kept(make_run: Maker) -> None:
    run = make_run()
    told = {"stage": 1, "round": 5, "phase": "alarm", "client": 2, "task": "t0", "name": "opposed", "value": -0.61}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(told | {"note": "against <the> others"}) + "\n")
    page = parsed(run)
    assert "alarms" in page.ids
    text = " ".join(" ".join(page.text).split())
    assert "2 6 Hospital 3 0, 1 opposed -0.61 against <the> others" in text


def test_a_result_as_it_was(make_run: Maker) -> None:
    """What is drawn stage by stage is what a run that ended there would say."""
    whole = Result.load(make_run(tasks=4, staggered=True))
    for stage in (0, 2):
        past = whole.until(stage)
        assert past.accuracy.shape[0] == stage + 1
        assert past.first.max() <= stage
        assert past.last.max() == min(stage, 3)
        learned = [past.pooled[s, t] for t, s in enumerate(past.learned_at) if s >= 0]
        assert np.nanmean(past.known.whole().learned) == pytest.approx(np.mean(learned))


def test_large_run_is_small_enough(make_run: Maker) -> None:
    run = make_run(tasks=20, hospitals=50, rounds=1, brief=True)
    assert report.write(run).stat().st_size < 5_000_000


def test_a_run_without_its_small_files_is_still_reported(make_run: Maker) -> None:
    run = make_run()
    for name in ("env.json", "status.json", "config.toml"):
        (run / name).unlink()
    assert "unknown" in " ".join(parsed(run).text)


def test_a_run_that_is_just_ending_is_finished(make_run: Maker) -> None:
    run = make_run()
    (run / "status.json").write_text('{"state": "running", "seconds": 0.0}')
    text = " ".join(" ".join(parsed(run).text).split())
    assert "Federated continual learning finished" in text
    assert "22.0 s wall clock, all rounds" in text


def test_environment_is_flattened_and_errors_are_shown(make_run: Maker) -> None:
    run = make_run(finished=2)
    (run / "env.json").write_text('{"packages": {"torch": "2.11", "numpy": "2.4"}, "command": ["fedcl", "simulate"]}')
    (run / "status.json").write_text('{"state": "failed", "seconds": 3, "error": "quorum <missed>"}')
    text = " ".join(parsed(run).text)
    assert "torch 2.11, numpy 2.4" in text
    assert "fedcl simulate" in text
    assert "quorum <missed>" in text


def test_config_is_shown_as_written(make_run: Maker) -> None:
    page = parsed(make_run())
    shown = next(block for block in page.text if "rounds = 4" in block)
    assert tomllib.loads(shown)["train"]["rounds"] == 4


def test_labels_are_moved_apart_and_stay_inside() -> None:
    assert spread([10, 50, 90], 12, 0, 100) == [10, 50, 90]
    crowded = spread([95, 96, 97], 12, 0, 100)
    assert crowded == [76, 88, 100]


def test_axes_have_round_ticks() -> None:
    assert Axis("x", 0, 1, str).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert Axis("round", 1, 7, str, whole=True).ticks(8) == [1, 2, 3, 4, 5, 6, 7]
    assert from_zero([690_000.0], "bytes", str).high == pytest.approx(800_000)
    assert points(-0.00001) == "0.0"
    assert points(-0.128) == "−12.8"
