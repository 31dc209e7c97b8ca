"""The figures of a benchmark from its rounds, and warnings about what makes them worth less."""

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from shufflectl.benchmarks.results import Config, Flag, Round, Snapshot, Summary
from shufflectl.benchmarks.samples import as_array
from shufflectl.benchmarks.selection import HELD, percentile_of_many
from shufflectl.benchmarks.statistics import (
    MIN_FOR_INTERVAL,
    coefficient_of_variation,
    median,
    median_interval,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["MIN_FOR_P90", "MIN_FOR_P99", "summarise"]

MIN_FOR_P90: Final = 100
MIN_FOR_P99: Final = 1000
"""Ten samples lie above the percentile."""

_DRIFT: Final = 0.02
_SPREAD_WITHIN: Final = 0.10
_SPREAD_BETWEEN: Final = 0.05
_STOLEN: Final = 0.02
_WAITED: Final = 0.02
_OTHERS: Final = 0.15
_FEW: Final = 50
_OUTLIER: Final = 14.826
"""In median absolute deviations: ten standard deviations of a normal distribution."""
_OUTLIERS: Final = 0.01
_MODES: Final = 4.0
"""Ashman's D of the best split in two. A normal distribution has 2.7, a uniform one 3.5."""
_MODES_APART: Final = 0.03
_SMALLER_MODE: Final = 0.1
_LOOKED_AT: Final = 20_000


def summarise(rounds: Sequence[Round], config: Config) -> Summary | None:
    """Return the figures of the rounds that count; None where none does."""
    counted = [entry for entry in rounds if entry.valid and entry.median_ns is not None]
    if not counted:
        return None
    medians = [entry.median_ns for entry in counted if entry.median_ns is not None]
    samples = sum(len(entry.samples_ns) for entry in counted)

    def runs() -> "Iterator[npt.NDArray[np.float64]]":
        return _chunks(counted)

    return Summary(
        median_ns=median(medians),
        interval_ns=median_interval(medians),
        p90_ns=percentile_of_many(runs, samples, 0.90) if samples >= MIN_FOR_P90 else None,
        p99_ns=percentile_of_many(runs, samples, 0.99) if samples >= MIN_FOR_P99 else None,
        between_round_cv=coefficient_of_variation(medians),
        init_ns=_median_of([entry.init_ns for entry in counted]),
        first_ns=_median_of([entry.first_ns for entry in counted]),
        peak_rss_bytes=_median_of([entry.peak_rss_bytes for entry in counted]),
        rounds=len(counted),
        samples=samples,
        flags=tuple(flag for check in _CHECKS for flag in check(counted, config)),
    )


def _chunks(rounds: Sequence[Round]) -> "Iterator[npt.NDArray[np.float64]]":
    """Yield the runs of rounds, those of a few rounds at a time."""
    import numpy as np

    parts: list[npt.NDArray[np.int64]] = []
    for entry in rounds:
        parts.append(as_array(entry.samples_ns))
        if sum(map(len, parts)) >= HELD:
            yield np.concatenate(parts).astype(np.float64)
            parts = []
    if parts:
        yield np.concatenate(parts).astype(np.float64)


def _median_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _few_samples(rounds: Sequence[Round], _: Config) -> list[Flag]:
    found = []
    if len(rounds) < MIN_FOR_INTERVAL:
        text = f"{len(rounds)} rounds count, and an interval takes {MIN_FOR_INTERVAL}"
        found.append(Flag("few rounds", text, "measure with --rounds 10"))
    fewest = min(len(entry.samples_ns) for entry in rounds)
    if 0 < fewest < _FEW:
        text = f"a round has {fewest} timed runs"
        found.append(Flag("few samples", text, "measure longer with --min-seconds"))
    return found


def _not_steady(rounds: Sequence[Round], config: Config) -> list[Flag]:
    count = sum(entry.steady is False for entry in rounds)
    if not count:
        return []
    text = f"in {count} of {len(rounds)} rounds runs were not steady after {config.warmup.max_seconds:g} s"
    advice = "let the machine do nothing else, or give it longer with --max-warmup"
    return [Flag("not steady", text, advice)]


def _drift(rounds: Sequence[Round], _: Config) -> list[Flag]:
    found = []
    ordered = sorted(rounds, key=lambda entry: entry.order)
    medians = [entry.median_ns or 0.0 for entry in ordered]
    if len(medians) >= 8:
        half = len(medians) // 2
        change = median(medians[-half:]) / median(medians[:half]) - 1
        if abs(_rank_correlation(medians)) > 0.6 and abs(change) > _DRIFT:
            text = f"later rounds take {change:+.1%}"
            advice = "let the machine cool down or come to rest, and measure again"
            found.append(Flag("drift", text, advice))
    changes = []
    for entry in rounds:
        half = len(entry.samples_ns) // 2
        if half >= 20:
            changes.append(median(entry.samples_ns[-half:]) / median(entry.samples_ns[:half]) - 1)
    if len(changes) >= 4:
        middle = median(changes)
        agreeing = sum((change > 0) == (middle > 0) for change in changes)
        if abs(middle) > _DRIFT and agreeing >= 0.8 * len(changes):
            text = f"within a round, the second half of the runs takes {middle:+.1%}"
            advice = "warm up for longer with --min-warmup; a phone may be heating up"
            found.append(Flag("drift within rounds", text, advice))
    return found


def _rank_correlation(values: Sequence[float]) -> float:
    """Return Kendall's tau of values with their order: 1 where they only rise, -1 where they only fall."""
    agreement = 0
    earlier: list[float] = []
    for value in values:
        agreement += bisect.bisect_left(earlier, value) - (len(earlier) - bisect.bisect_right(earlier, value))
        bisect.insort(earlier, value)
    return agreement / math.comb(len(values), 2)


def _spread(rounds: Sequence[Round], _: Config) -> list[Flag]:
    found = []
    within, outliers, total = [], 0, 0
    for entry in rounds:
        if len(entry.samples_ns) < 10 or not entry.median_ns:
            continue
        middle = median(entry.samples_ns)
        deviation = median([abs(value - middle) for value in entry.samples_ns])
        within.append(1.4826 * deviation / middle)
        total += len(entry.samples_ns)
        if deviation:
            outliers += sum(abs(value - middle) > _OUTLIER * deviation for value in entry.samples_ns)
    if within and median(within) > _SPREAD_WITHIN:
        text = f"runs within a round spread by {median(within):.0%} (MAD)"
        advice = "let the machine do nothing else, pin the process with --affinity, and fix the clock"
        found.append(Flag("wide spread", text, advice))
    between = coefficient_of_variation([entry.median_ns or 0.0 for entry in rounds])
    if between is not None and between > _SPREAD_BETWEEN:
        text = f"the rounds' medians spread by {between:.0%}"
        advice = "let the machine do nothing else, and measure more rounds; compare with --baseline, in pairs"
        found.append(Flag("wide spread between rounds", text, advice))
    if total and outliers / total > _OUTLIERS:
        text = f"{outliers / total:.1%} of the runs are more than ten deviations off"
        found.append(Flag("outliers", text, "something else runs now and then: see what, or use the median"))
    return found


def _modes(rounds: Sequence[Round], _: Config) -> list[Flag]:
    values: list[float] = []
    for entry in rounds:
        if entry.median_ns:
            step = max(1, len(entry.samples_ns) * len(rounds) // _LOOKED_AT)
            values += [value / entry.median_ns for value in entry.samples_ns[::step]]
    if len(values) < 100:
        return []
    values.sort()
    values = values[len(values) // 100 : len(values) - len(values) // 100]
    sums = list(itertools.accumulate(values, initial=0.0))
    squares = list(itertools.accumulate((value * value for value in values), initial=0.0))
    count = len(values)

    def part(start: int, end: int) -> tuple[float, float]:
        mean = (sums[end] - sums[start]) / (end - start)
        return mean, max((squares[end] - squares[start]) / (end - start) - mean * mean, 0.0)

    def within(split: int) -> float:
        return part(0, split)[1] * split + part(split, count)[1] * (count - split)

    smallest = max(1, int(count * _SMALLER_MODE))
    split = min(range(smallest, count - smallest + 1), key=within)
    (low, low_variance), (high, high_variance) = part(0, split), part(split, count)
    apart = (high - low) * 2**0.5
    if high - low < _MODES_APART or apart <= _MODES * (low_variance + high_variance) ** 0.5:
        return []
    text = f"runs take one of two times, {high / low - 1:.0%} apart ({1 - split / count:.0%} the longer)"
    advice = "a core or clock changes in between: pin the process with --affinity, and fix the clock"
    return [Flag("bimodal", text, advice)]


def _noise(rounds: Sequence[Round], _: Config) -> list[Flag]:
    found = []
    for share, limit, text, advice in (
        (
            "stolen",
            _STOLEN,
            "a hypervisor gave {:.0%} of the CPU time to others",
            "use a machine of your own",
        ),
        ("waited", _WAITED, "the process waited for a core in {:.0%} of the time", "end what else runs"),
        ("others", _OTHERS, "other programs took {:.0%} of the CPU time", "end what else runs"),
    ):
        seen = _median_of([getattr(entry.after, share) for entry in rounds if entry.after is not None])
        if seen is not None and seen > limit:
            found.append(Flag("noisy machine", text.format(seen), f"{advice}, and measure again"))
    return found


def _clock(rounds: Sequence[Round], _: Config) -> list[Flag]:
    found = []
    states = [entry.before for entry in rounds if entry.before is not None]
    governors = sorted({state.governor for state in states} - {"", "performance"})
    if governors and all(not state.temperatures for state in states):  # a phone's governor is not ours
        advice = "fix the clock, for example with: cpupower frequency-set --governor performance"
        found.append(Flag("clock", f"the clock's governor is {', '.join(governors)}", advice))
    capped = sum(_capped(entry.before, entry.after) for entry in rounds)
    if capped:
        text = f"the highest clock was lowered during {capped} of {len(rounds)} rounds"
        found.append(Flag("throttled", text, "let the device cool down, and measure again"))
    return found


def _capped(before: Snapshot | None, after: Snapshot | None) -> bool:
    if before is None or after is None:
        return False
    return any(after.limits_khz.get(cpu, limit) < limit for cpu, limit in before.limits_khz.items())


def _delegates(rounds: Sequence[Round], _: Config) -> list[Flag]:
    for entry in rounds:
        took = entry.delegation
        if took is None or took.replaced is None or took.total is None or took.replaced >= took.total:
            continue
        text = f"{took.accelerator} takes {took.replaced} of {took.total} operators"
        advice = "see which are left and why with: shufflectl inspect FILE"
        return [Flag("partial delegation", text, advice)]
    return []


_CHECKS: Final[tuple[Callable[[Sequence[Round], Config], list[Flag]], ...]] = (
    _few_samples,
    _not_steady,
    _drift,
    _spread,
    _modes,
    _noise,
    _clock,
    _delegates,
)
