"""The page opened in Chromium without a complaint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chromium import Browser, find_chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on PATH (apt-get install chromium)")
    with Browser(program, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (1280, True)])
def test_opens_in_chromium_without_a_complaint(browser: Browser, path: Path, width: int, dark: bool) -> None:
    page = browser.open(path, width, dark)
    assert page.problems == []
    assert page.requests == []
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("[...document.images].every((image) => image.naturalWidth > 0)") is True
    light = page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((part) => part > 127)")
    assert light is not dark


def test_a_heading_sorts_in_chromium(browser: Browser, path: Path) -> None:
    page = browser.open(path)
    script = """(() => {
      const table = [...document.querySelectorAll("table.sortable")].find((one) => one.innerText.includes("variant"));
      const place = [...table.tHead.rows[0].cells].findIndex((cell) => cell.innerText.includes("Fréchet"));
      const column = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[place].dataset.value));
      const button = table.tHead.rows[0].cells[place].querySelector("button");
      button.click(); const falling = column(); button.click(); const rising = column();
      return [falling, rising];
    })()"""
    falling, rising = page.run(script)
    assert falling == sorted(falling, reverse=True)
    assert rising == falling[::-1]
    assert falling[0] != falling[-1]
    assert page.run("document.querySelectorAll('.plate [data-tip]').length") > 10


def test_a_dial_moves_a_film_in_chromium(browser: Browser, path: Path) -> None:
    script = """(() => {
      const film = document.querySelector(".film");
      const input = film.querySelector("input");
      const place = (what) => film.querySelector(what).getBoundingClientRect();
      const top = () => place(".screen img").top - place(".screen").top;
      const seen = (step) => {
        input.value = step; input.dispatchEvent(new Event("input"));
        return [film.querySelector("output").textContent, top(), place(".strip i").left];
      };
      return [Number(input.value), Number(input.max), seen(0), seen(input.max)];
    })()"""
    value, last, first, end = page_values = browser.open(path).run(script)
    assert value == last > 0, page_values
    assert re.match(r"t \d+: \d+% of heads, \d+% of channel groups, \d+% of tokens; [\d.]+ \w*MACs", first[0])
    assert first[0] != end[0]
    assert first[1] == pytest.approx(0, abs=1)
    assert end[1] < -10
    assert first[2] < end[2]


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("<script>nothing.here()</script>", "exception: ReferenceError: nothing is not defined"),
        ("<script>console.error('oh')</script>", "console: ['oh']"),
        ("<script>Promise.reject(new Error('late'))</script>", "exception: Error: late"),
        ('<img src="missing.png">', "not loaded: net::ERR_FILE_NOT_FOUND"),
        ('<link rel="stylesheet" href="http://127.0.0.1:9/a.css">', "not loaded: net::ERR_"),
    ],
)
def test_the_browser_sees_faults(tmp_path: Path, browser: Browser, fault: str, problem: str) -> None:
    (tmp_path / "broken.html").write_text(f"<!doctype html><link rel=icon href='data:,'><title>x</title>{fault}")
    page = browser.open(tmp_path / "broken.html")
    assert any(found.startswith(problem) for found in page.problems), page.problems
    assert bool(page.requests) is ("script" not in fault)


def test_an_injected_script_would_not_run(browser: Browser, path: Path, tmp_path: Path) -> None:
    """The page's policy lets its own script run and no other."""
    text = path.read_text().replace("</main>", "<script>document.title = 'taken'</script></main>")
    (tmp_path / "taken.html").write_text(text)
    page = browser.open(tmp_path / "taken.html")
    assert page.run("document.title") != "taken"
    assert any("Content Security Policy" in found for found in page.problems)
