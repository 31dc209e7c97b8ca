"""One figure of a result, as a file: what every process measured, and what follows from it.

The upper panel has a row an artifact: a point is one process's median, a bar the headline median with its
interval, by order statistics as everywhere (`statistics`). Where artifacts were compared, the lower panel has
a row a comparison: the ratio with its interval, a point for each process that held both, and a line at 1.

The same result gives the same bytes, see `deploy.drawing`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shufflectl.benchmarks.compare import paired_ratios
from shufflectl.benchmarks.results import Benchmark, Comparison, Suite, threads_in_words
from shufflectl.deploy.drawing import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figure", "write_plot"]

_MAX_ROWS: Final = 60
"""Of a panel: more would make a picture that no program shows."""
_MAX_NAME: Final = 56
_WIDTH: Final = 11.0
_ROW: Final = 0.46
"""Inches."""
_FRAME: Final = 1.0
"""Inches of a panel beside its rows: title and axis."""
_FAR: Final = 4.0
"""Medians further apart than this factor get a logarithmic axis, or each row would be a single dot."""
_CAPTION: Final = (
    "A point is the median of one process, a bar the median of these with its 95 % interval; "
    "hollow points do not count."
)
_GOLDEN: Final = 0.6180339887
_POINT: Final = "#2f6db5"
_VOID: Final = "#9a9a9a"
_STRONG: Final = "#12324f"


def write_plot(suite: Suite, path: Path) -> None:
    """Draw a result and write it in the format that the file's name says; it appears whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    save(path, lambda: figure(suite))


def figure(suite: Suite) -> "Figure":
    """Return the figure of a result, with one panel or two."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [len(suite.benchmarks[:_MAX_ROWS])]
    panels += [len(suite.comparisons[:_MAX_ROWS])] if suite.comparisons else []
    heights = [_FRAME + _ROW * rows for rows in panels]
    found = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained", facecolor="white")
    FigureCanvasAgg(found)
    axes = found.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    found.supxlabel(_CAPTION, fontsize=8, color="#555555")
    _times(axes[0], suite.benchmarks)
    if suite.comparisons:
        _ratios(axes[1], suite)
    return found


def _times(axes: "Axes", benchmarks: Sequence[Benchmark]) -> None:
    """Draw a row an artifact: the medians of its processes, and their median with its interval."""
    shown = benchmarks[:_MAX_ROWS]
    labels = [
        f"{_short(entry.name)}\n{_short(entry.runner.name)}, {threads_in_words(entry.config.threads)}"
        for entry in shown
    ]
    for row, entry in enumerate(shown):
        for valid, colour in ((True, _POINT), (False, _VOID)):
            values = [e.median_ns / 1e6 for e in entry.rounds if e.valid is valid and e.median_ns is not None]
            _points(axes, values, row, colour, hollow=not valid)
        summary = entry.summary
        if summary is None:
            _figures(axes, row, "no round counts")
            continue
        interval = summary.interval_ns
        _bar(
            axes, row, summary.median_ns / 1e6, None if interval is None else [end / 1e6 for end in interval]
        )
        ends = "" if interval is None else " ({:.4g} to {:.4g})".format(*(end / 1e6 for end in interval))
        doubt = "" if entry.status == "ok" else f"\n{entry.status}"
        _figures(axes, row, f"{summary.median_ns / 1e6:.4g}{ends}{doubt}")
    _dress(axes, "Time of an inference", labels, len(benchmarks), "ms")


def _ratios(axes: "Axes", suite: Suite) -> None:
    """Draw a row a comparison: the ratios of processes that held both, and their median with its interval."""
    shown = suite.comparisons[:_MAX_ROWS]
    labels = []
    axes.axvline(1.0, color="#555555", linewidth=1.2, zorder=1)
    for row, entry in enumerate(shown):
        _points(axes, _ratios_of(entry, suite.benchmarks), row, _POINT)
        _bar(axes, row, entry.ratio, entry.interval)
        ends = "" if entry.interval is None else " ({:.3f} to {:.3f})".format(*entry.interval)
        _figures(axes, row, f"{entry.ratio:.3f}{ends}" + (f"\n{entry.verdict}" if entry.verdict else ""))
        apart = "" if entry.mode == "paired" else ", unpaired"
        labels.append(f"{_short(entry.candidate)}\nover {_short(entry.baseline)}{apart}")
    _dress(
        axes, "Time relative to the baseline", labels, len(suite.comparisons), "ratio; left of 1 is faster"
    )


def _ratios_of(comparison: Comparison, benchmarks: Sequence[Benchmark]) -> list[float]:
    """Return the ratio of each process that held both artifacts of a comparison; none where none did."""
    if comparison.mode != "paired":
        return []
    places = {
        entry.name: place
        for place, entry in enumerate(benchmarks)
        if (entry.runner.name, entry.config.threads) == (comparison.runner, comparison.threads)
    }
    if not {comparison.baseline, comparison.candidate} <= set(places):
        return []
    pair = places[comparison.baseline], places[comparison.candidate]
    return paired_ratios(benchmarks[pair[0]], benchmarks[pair[1]], pair)


def _points(axes: "Axes", values: Sequence[float], row: int, colour: str, *, hollow: bool = False) -> None:
    """Draw points of a row, strewn up and down so that equal ones are seen."""
    if values:
        heights = [row + ((index * _GOLDEN) % 1 - 0.5) * 0.5 for index in range(len(values))]
        face = "none" if hollow else colour
        axes.scatter(values, heights, s=16, facecolors=face, edgecolors=colour, alpha=0.6, zorder=3)


def _bar(axes: "Axes", row: int, middle: float, interval: Sequence[float] | None) -> None:
    if interval is not None:
        axes.plot(interval, [row, row], color=_STRONG, linewidth=2.2, solid_capstyle="butt", zorder=4)
    axes.plot([middle], [row], marker="|", color=_STRONG, markersize=15, markeredgewidth=2.2, zorder=5)


def _figures(axes: "Axes", row: int, text: str) -> None:
    """Write figures at the right end of a row."""
    place = axes.get_yaxis_transform()
    axes.text(1.015, row, text, transform=place, va="center", fontsize=8.5, parse_math=False)


def _dress(axes: "Axes", title: str, labels: Sequence[str], count: int, unit: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_title(title + (f"; the first {len(labels)} of {count}" if count > len(labels) else ""))
    axes.set_xlabel(unit)
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_ylim(len(labels) - 0.45, -0.55)  # the first at the top
    low, high = axes.dataLim.intervalx
    if low > 0 and high > _FAR * low:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.margins(x=0.04)


def _short(name: str) -> str:
    """Return a name that fits beside an axis, and steers nothing."""
    plain = "".join(char if char.isprintable() else "?" for char in name)
    half = _MAX_NAME // 2
    return plain if len(plain) <= _MAX_NAME else f"{plain[:half]}...{plain[-half + 3 :]}"
