"""The page in a browser: it draws what it says, answers mouse and keyboard, fetches nothing, complains of nothing."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fedcl import report
from fedcl.results import Result

Maker = Callable[..., Path]


def _browser() -> ModuleType:
    spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


browser = _browser()
pytestmark = pytest.mark.skipif(not browser.BROWSER, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def tab() -> Iterator[Any]:
    with browser.browse() as tab:
        tab.size(1200, 900)
        yield tab


@pytest.fixture
def page(tab: Any, make_run: Maker) -> Result:
    """A run whose page is open."""
    run = make_run(tasks=4, hospitals=3, staggered=True)
    tab.requests.clear()
    tab.console.clear()
    tab.open(report.write(run))
    return Result.load(run)


def _loosely(drawing: str) -> tuple[str, list[float]]:
    """A drawing without its numbers, and the numbers."""
    number = r"-?\d+(?:\.\d+)?"
    return re.sub(number, "#", drawing), [float(found) for found in re.findall(number, drawing)]


def test_switches_redraw_what_the_page_was_drawn_with(tab: Any, page: Result) -> None:
    svgs = "[...document.querySelectorAll('figure[data-switch] svg')].map((svg) => svg.innerHTML)"
    drawn = tab.run(svgs)
    choose = """(index) => { for (const s of document.querySelectorAll("select")) {
        s.selectedIndex = index; s.dispatchEvent(new Event("change")); } }"""
    tab.run(f"({choose})(2)")
    second = tab.run(svgs)
    assert sum(a != b for a, b in zip(drawn, second, strict=True)) >= 9
    shown = tab.run("[...document.querySelectorAll('#matrix-known text.value')].map((t) => t.textContent)")
    expected = [f"{100 * v:.1f}" if np.isfinite(v) else "–" for v in page.accuracy[:, :, 1].ravel()]
    assert len(shown) == len(expected)
    for words, value in zip(shown, expected, strict=True):
        assert words == value or abs(float(words) - float(value)) < 0.11
    chosen = tab.run("[...document.querySelectorAll('.chosen')].map((g) => g.dataset.name)")
    assert "Hospital 2" in chosen
    assert "2, 3" in chosen
    tab.run(f"({choose})(0)")
    for before, after in zip(drawn, tab.run(svgs), strict=True):
        (words, numbers), (words_now, numbers_now) = _loosely(before), _loosely(after)
        assert words_now == words
        assert numbers_now == pytest.approx(numbers, abs=0.11)  # the CSV has four digits
    assert tab.console == []


def test_mouse_and_keyboard(tab: Any, page: Result) -> None:
    column = "[...document.querySelectorAll('#hospitals table.sortable tbody tr')].map((r) => r.cells[2].textContent)"
    tab.click("#hospitals table.sortable thead th:nth-child(3) button")
    up = tab.run(column)
    assert [int(v) for v in up] == sorted(int(v) for v in up)
    tab.press("Enter", 13, "\r")  # the click has put the focus there
    assert tab.run(column) == up[::-1]
    state = "document.querySelector('#hospitals thead th:nth-child(3)').getAttribute('aria-sort')"
    assert tab.run(state) == "descending"
    tab.run("document.querySelector('select[data-switch=hospital]').focus()")
    tab.press("ArrowDown", 40)
    values = tab.run("[...document.querySelectorAll('select[data-switch=hospital]')].map((s) => s.selectedIndex)")
    assert set(values) == {1}  # the same in all sections
    assert "Hospital 1" in tab.run("document.getElementById('said').textContent")
    tab.click("#fig-matrix-known summary")
    rows = "document.querySelectorAll('#fig-matrix-known .numbers tbody tr').length"
    assert tab.run(rows) == len(page.accuracy)
    tab.click("#fig-weights summary")
    assert tab.run("document.querySelectorAll('#fig-weights .numbers tbody tr').length") == 81
    tab.run("window.scrollTo(0, 0)")
    tab.press("Tab", 9)
    tab.run("document.querySelector('.skip').focus()")
    tab.press("Enter", 13, "\r")
    assert tab.run("location.hash") == "#main"


def test_nothing_is_fetched_and_everything_has_a_name(tab: Any, page: Result) -> None:
    tab.send("Accessibility.enable")
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    roles = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]
    asking = [
        (role, name) for role, name in roles if role in ("button", "link", "combobox", "image", "region", "table")
    ]
    assert len(asking) > 60
    assert [role for role, name in asking if not name] == []
    tab.send("Accessibility.disable")
    assert tab.requests == [(page.path / "report.html").resolve().as_uri()]
    assert tab.console == []


def test_a_phone_and_the_dark(tab: Any, page: Result) -> None:
    tab.size(380, 800, "dark")
    assert tab.run("document.documentElement.scrollWidth") <= 380
    paper = tab.run("getComputedStyle(document.body).backgroundColor")
    ink = tab.run("getComputedStyle(document.body).color")
    assert sum(map(int, re.findall(r"\d+", paper))) < 150 < 500 < sum(map(int, re.findall(r"\d+", ink)))
    tab.size(1200, 900)


def test_a_large_page_opens_at_once(tab: Any, make_run: Maker) -> None:
    """Twenty tasks, fifty hospitals: at most 2 s of the browser's time, measured where others run too."""
    target = report.write(make_run(tasks=20, hospitals=50, rounds=1, brief=True))
    tab.send("Performance.enable", timeDomain="threadTicks")
    tab.open(target)
    spent = {one["name"]: one["value"] for one in tab.send("Performance.getMetrics")["metrics"]}
    assert 0 < spent["TaskDuration"] < 2
