import re
from dataclasses import replace

from shufflectl.benchmarks.report.plots import forest, strip, time_axis
from support.results import benchmark, suite


def dots(path: str) -> list[float]:
    return [float(x) for x in re.findall(r"M([\d.]+) [\d.]+h0", path)]


def test_each_round_is_a_lane_with_its_runs_and_its_median() -> None:
    entry = benchmark("a.onnx", 4e6, rounds=6, runs=50)
    axis = time_axis([entry])
    assert axis is not None
    plot = strip(entry, axis)
    assert 6 == len(plot.lanes)
    assert [r.valid for r in entry.rounds] == [lane.valid for lane in plot.lanes]
    for lane, taken in zip(plot.lanes, entry.rounds, strict=True):
        within = [s for s in taken.samples_ns if axis.low <= s <= axis.high]
        expected = sorted(round(axis.at(s) * 10, 1) for s in within)
        assert expected == sorted(dots(lane.points))
        assert taken.median_ns is not None
        assert lane.median.startswith(f"M{axis.at(taken.median_ns) * 10:.1f} ")


def test_runs_beyond_the_axis_are_counted_not_drawn() -> None:
    entry = benchmark("a.onnx", 4e6, rounds=1, runs=99)
    slow = replace(entry.rounds[0], samples_ns=(*entry.rounds[0].samples_ns, 10**9))
    entry = replace(entry, rounds=(slow,))
    axis = time_axis([entry])
    assert axis is not None
    assert axis.high < 1e9
    plot = strip(entry, axis)
    assert any("of 100 runs lie beyond" in note and "1.000\N{NO-BREAK SPACE}s" in note for note in plot.notes)
    assert 1000.0 not in dots(plot.lanes[0].points)


def test_many_runs_are_thinned_evenly_with_both_ends() -> None:
    entry = benchmark("a.onnx", 4e6, rounds=1)
    samples = tuple(range(4_000_000, 4_010_000))
    entry = replace(
        entry,
        summary=None,
        rounds=(replace(entry.rounds[0], samples_ns=samples, median_ns=4_005_000.0),),
    )
    axis = time_axis([entry])
    assert axis is not None
    plot = strip(entry, axis)
    assert 250 <= len(dots(plot.lanes[0].points)) <= 300
    assert any("300 runs of each round" in note for note in plot.notes)


def test_a_runner_without_samples_has_a_line_in_their_place() -> None:
    entry = benchmark("a.onnx", 4e6, runs=0)
    axis = time_axis([entry])
    assert axis is not None
    assert all(lane.spread and not lane.points for lane in strip(entry, axis).lanes)


def test_many_rounds_are_thinned_and_the_page_says_so() -> None:
    entry = benchmark("a.onnx", 4e6, rounds=200, runs=5)
    axis = time_axis([entry])
    assert axis is not None
    plot = strip(entry, axis)
    assert 60 == len(plot.lanes)
    assert any("60 of 200 rounds" in note for note in plot.notes)


def test_there_is_no_axis_where_nothing_was_measured() -> None:
    assert time_axis([benchmark("a.onnx", 4e6, status="failed")]) is None


def test_a_forest_has_the_order_of_ratios_and_one() -> None:
    plot = forest(suite().comparisons)
    first, second, third = plot.rows
    assert first.ratio < second.ratio < plot.one < third.ratio
    assert first.interval is not None
    assert sum(first.interval) < plot.one  # faster: the bar ends left of 1
    assert second.interval is not None
    assert second.interval[0] < plot.one < sum(second.interval)
    assert third.interval is None
    assert first.tolerance is not None
    assert first.tolerance > plot.one
