"""Medians, their intervals, percentiles and warnings.

The process is the statistical unit: runs within one process resemble each other more than runs of another
process, so an interval over runs would be far too narrow. Everything here therefore takes one figure a
process, and intervals come from the order of those figures (order statistics), which assumes no distribution:

- The median of n figures lies between the k-th smallest and the k-th largest with a probability that follows
  from the binomial distribution alone; k is the largest with 95 % or more. With ten figures these are the
  second and the ninth, at 97.9 %. (H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed., section 7.1.)
- The shift between two samples of separate processes is the median of all differences, and its interval the
  one that the Mann-Whitney test belongs to. (J. L. Hodges and E. L. Lehmann, 1963.)

Why no bootstrap: with ten figures the percentile bootstrap of the median leaves out the truth in over 6 % of
cases, and that of the mean in 10 %, so they call too many equal files different; docs/measuring.md compares.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from shufflectl.benchmarks.selection import percentile_of_many, ranked

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "LEVEL",
    "MIN_FOR_INTERVAL",
    "coefficient_of_variation",
    "median",
    "median_interval",
    "percentile",
    "ratio_of_samples",
]

LEVEL: Final = 0.95
"""The probability with which an interval holds the true value, at least."""

_RATIOS: Final = 1_000_000
"""More than so many are not held at once."""

MIN_FOR_INTERVAL: Final = 6
"""Fewer figures than these cannot give an interval at `LEVEL`: 1 - 2 / 2**5 is 0.9375."""


def median(values: Sequence[float]) -> float:
    """Return the median.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("the median of nothing")
    ordered = sorted(values)
    middle = len(ordered) // 2
    return float(ordered[middle]) if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values lies, interpolated between neighbours.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("a percentile of nothing")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (ordered[high] - ordered[low]) * (place - low))


def coefficient_of_variation(values: Sequence[float]) -> float | None:
    """Return the standard deviation (n - 1) over the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    if not mean:
        return None
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)) / mean


def median_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Return an interval that holds the median of what the values were drawn from.

    Args:
        values: Independent figures, one a process.
        level: The least probability.

    Returns:
        The k-th smallest and the k-th largest value; None where there are too few values.
    """
    k = _order(len(values), level)
    if not k:
        return None
    ordered = sorted(values)
    return float(ordered[k - 1]), float(ordered[-k])


@functools.cache
def _order(count: int, level: float) -> int:
    """Return the largest k for which the k-th from either end enclose the median; 0 where none does."""
    allowed = Fraction((1 - level) / 2) * 2**count  # more than a float holds from 1025 figures on
    below, k, ways = 0, 0, 1
    while k < count // 2 and below + ways <= allowed:
        below += ways
        ways = ways * (count - k) // (k + 1)
        k += 1
    return k


def ratio_of_samples(
    baseline: Sequence[float], candidate: Sequence[float], level: float = LEVEL
) -> tuple[float, tuple[float, float] | None]:
    """Return how the candidate's figures relate to the baseline's, where they are of separate processes.

    Args:
        baseline: Positive figures, one a process.
        candidate: Likewise.
        level: The least probability with which the interval holds the true ratio.

    Returns:
        The median of all ratios of a candidate's figure to a baseline's, and the interval; None where there
        are too few figures.

    Raises:
        ValueError: A side is empty, or a figure is not positive.
    """
    if not baseline or not candidate or min(*baseline, *candidate) <= 0:
        raise ValueError("ratios need positive figures on both sides")
    k = _rank_order(len(baseline), len(candidate), level)
    if len(baseline) * len(candidate) > _RATIOS:
        return _ratio_of_many(baseline, candidate, k)
    ratios = sorted(c / b for b in baseline for c in candidate)
    return median(ratios), (ratios[k - 1], ratios[-k]) if k else None


def _ratio_of_many(
    baseline: Sequence[float], candidate: Sequence[float], k: int
) -> tuple[float, tuple[float, float]]:
    """Return what `ratio_of_samples` does, without holding every ratio."""
    import numpy as np

    figures = np.array(candidate, np.float64)
    count = len(baseline) * len(candidate)

    def ratios() -> "Iterator[npt.NDArray[np.float64]]":
        return (figures / base for base in baseline)

    ends = ranked(ratios, k - 1), ranked(ratios, count - k)
    return percentile_of_many(ratios, count, 0.5), ends


@functools.cache
def _rank_order(first: int, second: int, level: float) -> int:
    """Return the largest k for which the k-th ratios from either end enclose the shift; 0 where none does.

    From the exact distribution of the Mann-Whitney statistic: the number of ways to draw ``first`` of the
    ranks so that the statistic has each value.
    """
    if first * second > 10_000:  # the table would take too long; the normal distribution is exact enough
        deviation = math.sqrt(first * second * (first + second + 1) / 12)
        return math.floor(first * second / 2 - _normal_quantile(1 - (1 - level) / 2) * deviation)
    ways = [1] + [0] * (first * second)
    for size in range(second + 1, first + second + 1):  # Gaussian binomial: multiply by 1 - q**size
        for value in range(first * second, size - 1, -1):
            ways[value] -= ways[value - size]
    for size in range(1, first + 1):  # and divide by 1 - q**size
        for value in range(size, first * second + 1):
            ways[value] += ways[value - size]
    allowed = (1 - level) / 2 * math.comb(first + second, first)
    below, k = 0, 0
    while 2 * k < first * second and below + ways[k] <= allowed:
        below += ways[k]
        k += 1
    return k


def _normal_quantile(share: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(share)
