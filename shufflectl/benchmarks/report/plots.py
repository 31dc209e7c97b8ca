"""What the plots draw: the raw points of every round, and ratios with their intervals.

A plot is stretched to the width of the page, so its geometry is in thousandths of that width and in pixels of
height; lines and points keep their thickness (``vector-effect``), and words stand beside it as HTML.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from shufflectl.benchmarks.report.axes import Axis, duration, unit_of
from shufflectl.benchmarks.results import Benchmark, Comparison, Round

__all__ = ["Forest", "ForestRow", "Lane", "Strip", "Tick", "forest", "strip", "time_axis"]

_T = TypeVar("_T")

_POINTS: Final = 300
"""Points a round: more would lie on one another."""
_LANES: Final = 60
_GOLDEN: Final = 0.6180339887
_EDGES: Final = (0.005, 0.99)
"""Shares of all runs between which the axis reaches; single slow runs would squeeze all others together."""


@dataclass(frozen=True)
class Tick:
    """A value beside an axis: where, in per cent, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Lane:
    """One round of a strip plot.

    Attributes:
        valid: Whether the round counts.
        points: Its runs, an SVG path of dots; empty where the runner gives none.
        spread: A line from its reported 5th to 95th percentile, or least to most, in place of points.
        median: A short upright line at its median.
    """

    valid: bool
    points: str
    spread: str
    median: str


@dataclass(frozen=True)
class Strip:
    """The rounds of a benchmark, one below the other.

    Attributes:
        height: In pixels.
        lanes: From top to bottom.
        ticks: Of the axis.
        unit: Of the ticks.
        median: Where the median over rounds is, in per cent; None without a summary.
        band: Where its interval begins, and how wide it is, in per cent.
        notes: What is not drawn, a sentence each.
    """

    height: float
    lanes: tuple[Lane, ...]
    ticks: tuple[Tick, ...]
    unit: str
    median: float | None
    band: tuple[float, float] | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ForestRow:
    """One comparison of a forest plot; places are in per cent."""

    comparison: Comparison
    ratio: float
    interval: tuple[float, float] | None
    tolerance: float | None


@dataclass(frozen=True)
class Forest:
    """Ratios with intervals on one logarithmic axis, and where 1 is on it."""

    rows: tuple[ForestRow, ...]
    ticks: tuple[Tick, ...]
    one: float


def time_axis(benchmarks: Sequence[Benchmark]) -> Axis | None:
    """Return an axis of nanoseconds for the rounds of all benchmarks; None where there is nothing to draw."""
    rounds = [entry for benchmark in benchmarks for entry in benchmark.rounds]
    counted = [entry for entry in rounds if entry.valid] or rounds
    ends = [entry.median_ns for entry in counted if entry.median_ns is not None]
    for benchmark in benchmarks:
        if benchmark.summary is not None:
            ends += [benchmark.summary.median_ns, *(benchmark.summary.interval_ns or ())]
    runs = sorted(sample for entry in counted for sample in entry.samples_ns)
    if runs:
        ends += [float(runs[round(share * (len(runs) - 1))]) for share in _EDGES]
    if not ends:
        return None
    return Axis.linear(min(ends), max(ends))


def strip(benchmark: Benchmark, axis: Axis) -> Strip:
    """Return the plot of a benchmark's rounds."""
    notes = []
    rounds = benchmark.rounds
    if len(rounds) > _LANES:
        rounds = tuple(_evenly(rounds, _LANES))
        notes.append(f"{_LANES} of {len(benchmark.rounds)} rounds are drawn, evenly chosen")
    thick = min(14.0, max(5.0, 300 / max(1, len(rounds))))
    lanes = tuple(_lane(entry, axis, (place + 0.5) * thick, thick) for place, entry in enumerate(rounds))
    if any(len(entry.samples_ns) > _POINTS for entry in rounds):
        notes.append(f"{_POINTS} runs of each round are drawn, evenly chosen from the fastest to the slowest")
    samples = [sample for entry in rounds for sample in entry.samples_ns]
    beyond = sum(not axis.low <= sample <= axis.high for sample in samples)
    if beyond:
        notes.append(
            f"{beyond} of {len(samples)} runs lie beyond the ends of the axis, the slowest at "
            f"{duration(max(samples))}"
        )
    summary = benchmark.summary
    band = None
    if summary is not None and summary.interval_ns is not None:
        low, high = (axis.at(value) for value in summary.interval_ns)
        band = (low, max(high - low, 0.1))
    size, unit = unit_of(axis.high)
    return Strip(
        height=round(thick * max(1, len(rounds)), 1),
        lanes=lanes,
        ticks=tuple(Tick(axis.at(value), f"{value / size:.6g}") for value in axis.ticks),
        unit=unit,
        median=None if summary is None else axis.at(summary.median_ns),
        band=band,
        notes=tuple(notes),
    )


def forest(comparisons: Sequence[Comparison]) -> Forest:
    """Return the plot of ratios."""
    allowed = {entry: 1 + entry.tolerance for entry in comparisons if entry.tolerance is not None}
    values = [value for entry in comparisons for value in (entry.ratio, *(entry.interval or ()))]
    axis = Axis.ratios([*values, *allowed.values()])
    rows = []
    for entry in comparisons:
        interval = None
        if entry.interval is not None:
            low, high = (axis.at(value) for value in entry.interval)
            interval = (low, max(high - low, 0.1))
        rows.append(
            ForestRow(
                entry,
                axis.at(entry.ratio),
                interval,
                axis.at(allowed[entry]) if entry in allowed else None,
            )
        )
    return Forest(tuple(rows), tuple(Tick(axis.at(v), f"{v:.4g}") for v in axis.ticks), axis.at(1.0))


def _lane(entry: Round, axis: Axis, middle: float, thick: float) -> Lane:
    half = thick * 0.42
    median = ""
    if entry.median_ns is not None:
        x = axis.at(entry.median_ns) * 10
        median = f"M{x:.1f} {middle - half:.1f}V{middle + half:.1f}"
    return Lane(
        entry.valid, _dots(entry.samples_ns, axis, middle, thick), _spread(entry, axis, middle), median
    )


def _dots(samples: Sequence[int], axis: Axis, middle: float, thick: float) -> str:
    """Return dots as a path: a line of no length with round ends is one. They are strewn up and down."""
    ordered = sorted(samples)
    chosen = _evenly(ordered, _POINTS) if len(ordered) > _POINTS else ordered
    found = []
    for index, sample in enumerate(chosen):
        if axis.low <= sample <= axis.high:
            y = middle + ((index * _GOLDEN) % 1 - 0.5) * thick * 0.6
            found.append(f"M{axis.at(sample) * 10:.1f} {y:.1f}h0")
    return "".join(found)


def _spread(entry: Round, axis: Axis, middle: float) -> str:
    if entry.samples_ns:
        return ""
    for low, high in (("p5", "p95"), ("min", "max")):
        if low in entry.reported and high in entry.reported:
            ends = [axis.at(entry.reported[key]) * 10 for key in (low, high)]
            return f"M{ends[0]:.1f} {middle:.1f}H{ends[1]:.1f}"
    return ""


def _evenly(values: Sequence[_T], count: int) -> list[_T]:
    step = (len(values) - 1) / (count - 1)
    return [values[math.floor(index * step + 0.5)] for index in range(count)]
