"""The figure of a result: what is drawn, and what is refused before anything is measured."""

import importlib.util
import itertools
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shufflectl.benchmarks.compare import paired
from shufflectl.benchmarks.plot import figure, write_plot
from shufflectl.benchmarks.results import Suite
from shufflectl.deploy.drawing import check_plot
from shufflectl.errors import MissingDependencyError, OutputError, UsageError
from support.results import benchmark, hostile, suite

HEADS = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml", ".pdf": b"%PDF-"}


@pytest.fixture
def drawing() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        reason = "matplotlib is not installed: pip install 'shufflectl[plot]'"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def pair() -> Suite:
    """Two artifacts that took turns in ten processes, of which one does not count."""
    sides = [benchmark(name, median) for name, median in (("old.onnx", 4e6), ("new.onnx", 3e6))]
    both = tuple(
        replace(side, rounds=tuple(replace(entry, partner=1 - place) for entry in side.rounds))
        for place, side in enumerate(sides)
    )
    found = paired(*both, (0, 1), None)
    assert found is not None
    return replace(suite(), benchmarks=both, comparisons=(found,))


def points(axes: Any) -> int:
    return sum(len(entry.get_offsets()) for entry in axes.collections)


def labels(axes: Any) -> list[str]:
    return [entry.get_text() for entry in axes.get_yticklabels()]


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize("suffix", HEADS)
def test_a_file_is_of_the_kind_that_its_name_says_and_the_same_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"figure{suffix}"
    write_plot(suite(), path)
    first = path.read_bytes()
    assert first.startswith(HEADS[suffix])
    write_plot(suite(), path)
    assert first == path.read_bytes()


@pytest.mark.usefixtures("drawing")
def test_a_point_is_a_process_and_a_row_an_artifact() -> None:
    (axes,) = figure(replace(suite(), comparisons=())).axes
    assert 30 == points(axes)  # ten of each but of the one that failed
    assert [
        "shufflenet_v2_x1_0-native-fp32.onnx\nonnxruntime, 2 threads",
        "shufflenet_v2_x1_0-fold-fp32.onnx\nonnxruntime, 2 threads",
        "shufflenet_v2_x1_0-rank4-fp32.onnx\nonnxruntime, 2 threads",
        "shufflenet_v2_x1_0-broken-fp32.onnx\nonnxruntime, 2 threads",
    ] == labels(axes)
    assert ["unstable" in t.get_text() for t in axes.texts] == [False, True, False, False]
    assert "no round counts" == axes.texts[-1].get_text()


@pytest.mark.usefixtures("drawing")
def test_ratios_have_a_panel_with_a_point_for_each_process_that_counts_and_a_line_at_one() -> None:
    result = pair()
    times, ratios = figure(result).axes
    assert (20, 9) == (points(times), points(ratios))
    assert ["new.onnx\nover old.onnx"] == labels(ratios)
    interval = result.comparisons[0].interval
    assert interval is not None
    drawn = [list(line.get_xdata()) for line in ratios.lines]
    assert [1, 1] in drawn
    assert list(interval) in drawn


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize("count", [1, 8])
def test_rows_do_not_lie_on_one_another(count: int) -> None:
    entries = tuple(benchmark(f"a-rather-long-name-{i}-fp32.onnx", 1e6 * (1 + 9 * i)) for i in range(count))
    drawn = figure(Suite("", "", entries))
    drawn.draw_without_rendering()
    boxes = [label.get_window_extent() for label in drawn.axes[0].get_yticklabels()]
    assert all(above.y0 > below.y1 for above, below in itertools.pairwise(boxes))
    page = drawn.bbox
    texts = [*boxes, *(text.get_window_extent() for text in drawn.axes[0].texts)]
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 for box in texts)


@pytest.mark.usefixtures("drawing")
def test_words_of_a_result_from_elsewhere_are_only_words(tmp_path: Path) -> None:
    bad = hostile()
    formula = replace(bad.benchmarks[0], name=r"$\frac{1}{$ \u3042 日本 %s")
    write_plot(replace(bad, benchmarks=(formula, *bad.benchmarks)), tmp_path / "figure.png")
    assert "<script>" not in (tmp_path / "figure.png").read_bytes().decode("latin-1")


def test_what_cannot_be_drawn_or_written_is_refused(tmp_path: Path) -> None:
    for name in ("figure.gif", "figure", "figure.png.zip"):
        with pytest.raises(UsageError, match="not written as"):
            check_plot(tmp_path / name)
    with pytest.raises(UsageError, match="does not exist"):
        check_plot(tmp_path / "none" / "figure.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_plot(tmp_path / "folder.png")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError) as caught:
        check_plot(tmp_path / "figure.png")
    assert "pip install 'shufflectl[plot]'" in caught.value.hint
