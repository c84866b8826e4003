from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

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
    for link in page.all("a"):
        assert str(link["href"])[0] == "#"
        assert str(link["href"])[1:] in page.ids
    for tag in ("link", "img", "iframe", "object", "image", "use"):
        assert page.all(tag) == []
    assert not any("src" in attrs for _, attrs in page.tags)
    for source in page.blocks["style"] + page.blocks["script"]:
        assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest", source)


@pytest.mark.parametrize("case", CASES)
def test_every_figure_has_a_name_and_a_description(make_run: Maker, case: str) -> None:
    page = parsed(make_run(**CASES[case]))
    drawings = page.all("svg")
    assert len(drawings) == 15
    for drawing in drawings:
        named = str(drawing["aria-labelledby"]).split()
        assert drawing["role"] == "img"
        assert len(named) == 2
        assert set(named) <= set(page.ids)
    assert len(page.all("figure")) == len(page.all("figcaption")) == len(drawings)
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    geometry = {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height", "points", "d", "viewbox"}
    drawn = [value for _, attrs in page.tags for name, value in attrs.items() if name in geometry]
    assert not any(word in str(value) for value in drawn for word in ("nan", "inf"))


def test_hostile_names_stay_text(make_run: Maker) -> None:
    run = make_run(hospitals=2, names=[HOSTILE, '" onload="x'])
    (run / "env.json").write_text(json.dumps({"command": HOSTILE}))
    (run / "config.toml").write_text(f"method = '{HOSTILE}'\n")
    html = report.write(run).read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.all("script")) == 2
    assert HOSTILE not in html
    assert HOSTILE in "".join(page.text)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    json.loads(page.blocks["script"][0])


def test_headline_numbers_are_those_of_the_metrics(make_run: Maker) -> None:
    run = make_run()
    text = " ".join(" ".join(parsed(run).text).split())
    metrics = Result.load(run).metrics
    assert f"Average accuracy {100 * metrics['average_accuracy']:.1f} %" in text
    assert f"Forgetting, peak {100 * metrics['forgetting']:.1f} points" in text
    assert f"Worst hospital {100 * metrics['worst_hospital_accuracy']:.1f} % task known" in text
    assert "Forward transfer – needs a shared head and two tasks" in text
    assert "1:23 min" in text
    assert "× 1.13" in text
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


def test_switch_has_every_hospital(make_run: Maker) -> None:
    run = make_run(tasks=3, hospitals=4)
    page = parsed(run)
    views = json.loads(page.blocks["script"][0])["views"]
    accuracy = Result.load(run).accuracy
    assert len(views) == len(page.all("option")) == 1 + 4
    assert views[3]["known"][0] == round(1000 * accuracy[0, 0, 2])
    assert views[3]["known"][1] == -1
    cells = [attrs for tag, attrs in page.tags if tag == "rect" and "data-cell" in attrs]
    assert len(cells) == 2 * len(views[0]["known"])


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
