"""The page: what the template is given, and how it is filled in.

Results may come from anywhere, and so may every word in them. The template escapes all of them, what would
steer a terminal or turn the reading direction becomes a replacement character, and a content security policy
in the page allows neither scripts nor requests.
"""

import functools
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from shufflectl.benchmarks.report.axes import Axis, duration
from shufflectl.benchmarks.report.conditions import Conditions, conditions
from shufflectl.benchmarks.report.plots import Forest, Strip, forest, strip, time_axis
from shufflectl.benchmarks.results import Benchmark, Suite
from shufflectl.errors import UsageError

if TYPE_CHECKING:
    import jinja2

__all__ = ["render"]

_MAX_ROUNDS: Final = 5000
_MAX_BENCHMARKS: Final = 200
_NO_BREAK: Final = "\N{NO-BREAK SPACE}"
_ALIKE: Final = 4.0
"""Medians within this factor share an axis; beyond it the fastest would be a dot at the edge."""


@dataclass(frozen=True)
class _Section:
    source: str
    suite: Suite
    strips: tuple[Strip | None, ...]
    shared: bool
    tails: tuple[str, ...]
    forest: Forest | None
    conditions: tuple[Conditions, ...]


def render(results: Sequence[tuple[str, Suite]]) -> str:
    """Return one HTML page about results.

    Args:
        results: Each with the name to call it by, usually its file's.

    Raises:
        UsageError: There are none, or more than a page can show.
    """
    if not results:
        raise UsageError("there is no result to report", hint="name a file that bench wrote")
    benchmarks = [entry for _, suite in results for entry in suite.benchmarks]
    rounds = sum(len(entry.rounds) for entry in benchmarks)
    if rounds > _MAX_ROUNDS or len(benchmarks) > _MAX_BENCHMARKS:
        raise UsageError(
            f"{len(benchmarks)} benchmarks of {rounds} rounds are more than a page can show",
            hint=f"report at most {_MAX_BENCHMARKS} benchmarks and {_MAX_ROUNDS} rounds at a time",
        )
    names = list(dict.fromkeys(entry.name for entry in benchmarks))
    title = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    sections = [_section(source, suite) for source, suite in results]
    return str(_template().render(title=title or "nothing measured", sections=sections))


def _section(source: str, suite: Suite) -> _Section:
    medians = [entry.summary.median_ns for entry in suite.benchmarks if entry.summary is not None]
    shared = len(medians) < 2 or max(medians) <= _ALIKE * min(medians)
    common = time_axis(suite.benchmarks)
    strips = tuple(_strip(entry, common if shared else time_axis([entry])) for entry in suite.benchmarks)
    return _Section(
        source,
        suite,
        strips,
        shared,
        tuple(
            tail
            for tail in ("p90", "p99")
            if any(getattr(entry.summary, f"{tail}_ns", None) is not None for entry in suite.benchmarks)
        ),
        forest(suite.comparisons) if suite.comparisons else None,
        conditions(suite.benchmarks),
    )


def _strip(benchmark: Benchmark, axis: Axis | None) -> Strip | None:
    drawn = any(entry.median_ns is not None for entry in benchmark.rounds)
    return None if axis is None or not drawn else strip(benchmark, axis)


def _megabytes(count: float | None) -> str:
    return "" if count is None else f"{count / 1e6:.2f}\N{NO-BREAK SPACE}MB"


def _interval(ends: tuple[float, float] | None, form: str = "duration") -> str:
    if ends is None:
        return "too few rounds"
    low, high = (duration(end) if form == "duration" else f"{end:.3f}" for end in ends)
    return f"{low} to {high}"


def _plain(value: Any) -> Any:
    """Replace what is not printable (control characters, directional marks) in whatever is put out."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return "".join(
            char if char.isprintable() or char == _NO_BREAK else "\N{REPLACEMENT CHARACTER}" for char in value
        )
    return "" if value is None else value


@functools.cache
def _template() -> "jinja2.Template":
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(duration=duration, interval=_interval, megabytes=_megabytes)
    folder = importlib.resources.files("shufflectl.benchmarks.report")
    return environment.from_string(folder.joinpath("page.html.j2").read_text("utf-8"))
