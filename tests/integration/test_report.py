"""The page as a browser shows it: wide, on a phone, light, dark, on paper."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shufflectl.benchmarks.results import Suite
from support.chromium import Page, chromium
from support.results import hostile, suite

pytestmark = pytest.mark.integration

OVERFLOW = """[...document.querySelectorAll('main *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && box.right > document.documentElement.clientWidth + 1
    && !e.closest('.scroll') && !e.closest('.stack thead');  // scrolls by itself; is for screen readers
}).map(e => e.tagName + '.' + e.className)"""
SHOWN = "(e => e !== null && e.getBoundingClientRect().width > 10 && e.getBoundingClientRect().height > 10)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, run_cli: Any) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("report with 'quotes' and spaces")
    made = {}
    found: dict[str, Suite] = {"plain": suite(), "hostile": hostile()}
    for name, result in found.items():
        source, made[name] = folder / f"{name}.json", folder / f"{name}.html"
        source.write_text(json.dumps(result.to_json()), encoding="utf-8")
        run = run_cli("report", source, "--html", made[name], "--json")
        assert 0 == run.status, run.stderr
        assert len(result.benchmarks) == len(run.document["benchmarks"])
    return made


@pytest.mark.parametrize("name", ["plain", "hostile"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_asks_for_nothing_and_says_nothing(
    browser: Page, pages: dict[str, Path], name: str, dark: bool, width: int
) -> None:
    browser.open(pages[name], width=width, dark=dark)
    browser.read("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.read("document.documentElement.scrollWidth") <= width
    assert [] == browser.read(OVERFLOW)
    assert [] == browser.complaints
    assert [pages[name].as_uri()] == browser.requests
    assert 0 == browser.read("document.querySelectorAll('script,img,iframe,a').length")


def test_the_policy_in_the_page_keeps_requests_out(browser: Page, pages: dict[str, Path]) -> None:
    browser.open(pages["plain"])
    browser.read("{const i = new Image(); i.src = 'http://127.0.0.1:9/x'; document.body.append(i)}")
    browser.read(
        "{const s = document.createElement('script'); s.text = 'window.ran = 1'; document.body.append(s)}"
    )
    assert "undefined" == browser.read("typeof window.ran")
    assert any("Content Security Policy" in text for text in browser.complaints)


@pytest.mark.parametrize("width", [360, 1200])
def test_every_plot_and_table_is_seen(browser: Page, pages: dict[str, Path], width: int) -> None:
    browser.open(pages["plain"], width=width)
    for selector, count in (("figure svg", 3), (".forest svg", 3), (".stack tbody tr", 4), (".flags", 2)):
        assert count == browser.read(f"document.querySelectorAll('{selector}').length")
        assert browser.read(f"[...document.querySelectorAll('{selector}')].every({SHOWN})")
    # Dots are round, whatever the width: their line has no length, and does not scale.
    assert "non-scaling-stroke" == browser.read(
        "getComputedStyle(document.querySelector('.dots')).vectorEffect"
    )
    # The points of an interval and the words beside the axis have the same scale.
    one = browser.read("document.querySelector('.one').getBoundingClientRect().x")
    label = browser.read(
        "(b => b.x + b.width / 2)([...document.querySelectorAll('.scale span')]"
        ".find(s => s.textContent === '1').getBoundingClientRect())"
    )
    assert abs(one - label) <= 2


def test_the_theme_follows_the_system(browser: Page, pages: dict[str, Path]) -> None:
    seen = []
    for dark in (False, True):
        browser.open(pages["plain"], dark=dark)
        seen.append(browser.read("getComputedStyle(document.body).backgroundColor"))
    assert ["rgb(255, 255, 255)", "rgb(17, 21, 26)"] == seen


def test_it_names_its_parts_for_those_who_do_not_see_it(browser: Page, pages: dict[str, Path]) -> None:
    browser.open(pages["plain"], width=360)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        role = node.get("role", {}).get("value", "")
        named.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    assert named["RootWebArea"][0].startswith("Latency: shufflenet_v2_x1_0")
    images = [name for role in ("image", "img", "graphics-document") for name in named.get(role, [])]
    assert 3 == len([name for name in images if name.startswith("Run times of 10 rounds")])
    assert all(named["figure"])
    assert named["table"][0] == "Figures"  # still a table where it is stacked
    assert "rowheader" in named


def test_it_prints(browser: Page, pages: dict[str, Path]) -> None:
    browser.open(pages["plain"], dark=True)
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert "rgb(255, 255, 255)" == browser.read("getComputedStyle(document.body).backgroundColor")
        assert 2 <= browser.print_pages() <= 8
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


def test_a_result_that_is_none_writes_nothing(tmp_path: Path, run_cli: Any) -> None:
    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    run = run_cli("report", tmp_path / "x.json", "--html", tmp_path / "x.html")
    assert 3 == run.status
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "x.html").exists()


def test_a_folder_that_does_not_exist_is_one_sentence(tmp_path: Path, run_cli: Any) -> None:
    (tmp_path / "x.json").write_text(json.dumps(suite().to_json()), encoding="utf-8")
    run = run_cli("report", tmp_path / "x.json", "--html", tmp_path / "no" / "x.html")
    assert 3 == run.status
    assert "there is no folder" in run.stderr
