import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from shufflectl.benchmarks.report import page
from shufflectl.benchmarks.report.page import render
from shufflectl.benchmarks.results import Suite
from shufflectl.errors import UsageError
from support.results import benchmark, hostile, suite


class Elements(HTMLParser):
    """The elements, their attributes, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_has_every_figure_flag_reason_and_verdict() -> None:
    found = Elements(render([("result.json", suite())])).text
    entries = suite().benchmarks
    for entry in entries:
        assert entry.name in found
        assert entry.model.sha256 in found
        for reason in entry.reasons:
            assert reason in found
        for flag in entry.summary.flags if entry.summary else ():
            assert f"{flag.name} : {flag.text}" in found
            assert flag.advice in found
    for comparison in suite().comparisons:
        assert f"{comparison.ratio:.3f}" in found
        assert comparison.reason in found
    assert "0.815 to 0.846" in found
    for words in ("inconclusive", "too few rounds", "Example CPU", "performance", "1.31.1", "2.80 GHz"):
        assert words in found


def test_a_measurement_that_was_interrupted_is_called_so() -> None:
    words = "the measurement was ended before all rounds were run"
    pages = [render([("r", replace(suite(), interrupted=state))]) for state in (True, False)]
    assert [True, False] == [words in Elements(text).text for text in pages]


def test_conditions_that_differ_stand_apart_and_equal_ones_once() -> None:
    one, two = benchmark("a.onnx", 4e6), benchmark("b.onnx", 4e6)
    other = replace(two, config=replace(two.config, threads=4))
    for entries, blocks in (((one, two), 1), ((one, other), 2)):
        text = render([("r", Suite("", "", entries))])
        assert blocks == text.count('class="card conditions"')


def test_hostile_words_stay_words() -> None:
    text = render([("<script>x</script>", hostile())])
    found = Elements(text)
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "img", "iframe", "object", "a", "form", "base"}
    assert all(not name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert {"data:,"} == {a["href"] for _, a in found.elements if "href" in a}
    assert not any("src" in attributes for _, attributes in found.elements)
    assert "<script>x</script>" in found.text
    assert "{{7*7}}" in found.text
    assert not re.search("[\u202e\x1b]", text)


def test_the_page_names_no_other_place() -> None:
    text = render([("result.json", suite())])
    assert not re.search(r"(?:https?:)?//[a-z]", text)
    assert "@import" not in text
    assert "url(" not in text


def test_the_same_results_give_the_same_page() -> None:
    assert render([("r", suite())]) == render([("r", suite())])


@pytest.mark.parametrize("count", [0, 201])
def test_a_page_holds_something_and_not_too_much(count: int) -> None:
    entries = (benchmark("a.onnx", 4e6, rounds=1, runs=1),) * count
    results = [("r", Suite("", "", entries))] if count else []
    with pytest.raises(UsageError):
        render(results)


def test_a_result_without_benchmarks_is_a_page_too() -> None:
    assert "holds no benchmark" in render([("r", Suite("", "", ()))])


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_words_stand_out_from_every_background() -> None:
    """WCAG 2, contrast (minimum): 4.5 to 1 for text, 3 to 1 for what is drawn."""
    template = (Path(page.__file__).parent / "page.html.j2").read_text(encoding="utf-8")
    palettes = [
        dict(re.findall(r"--(\w+): (#\w{6})", b)) for b in re.findall(r":root \{(.*?)\}", template, re.DOTALL)
    ]
    assert 3 == len(palettes)
    for palette in palettes:
        for name, least in (
            ("text", 7),
            ("soft", 4.5),
            ("good", 4.5),
            ("bad", 4.5),
            ("warn", 4.5),
            ("dot", 3),
            ("mark", 3),
        ):
            for under in ("page", "card"):
                bright, dim = sorted((luminance(palette[name]), luminance(palette[under])), reverse=True)
                assert (bright + 0.05) / (dim + 0.05) >= least, (name, under)
