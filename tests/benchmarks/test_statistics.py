"""Figures against tables that were computed by hand, or that books print."""

import math
import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shufflectl.benchmarks.statistics import (
    MIN_FOR_INTERVAL,
    coefficient_of_variation,
    median,
    median_interval,
    percentile,
    ratio_of_samples,
)

FIGURES = st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=30)


def test_medians_of_odd_and_even_counts() -> None:
    assert 3.0 == median([5, 1, 3])
    assert 2.5 == median([4, 1, 2, 3])
    with pytest.raises(ValueError, match="nothing"):
        median([])


@pytest.mark.parametrize(("share", "expected"), [(0.0, 10), (0.25, 20), (0.9, 46), (1.0, 50)])
def test_percentiles_are_interpolated(share: float, expected: float) -> None:
    assert expected == pytest.approx(percentile([50, 10, 40, 20, 30], share))


def test_coefficient_of_variation_divides_by_one_less() -> None:
    assert math.sqrt(2.5) / 3 == pytest.approx(coefficient_of_variation([1, 2, 3, 4, 5]))
    assert coefficient_of_variation([1]) is None


@pytest.mark.parametrize(
    ("count", "k"),  # H. A. David and H. N. Nagaraja: the sign test's table at 5 %; then scipy's binom
    [
        *((5, 0), (6, 1), (7, 1), (8, 1), (9, 2), (10, 2), (11, 2), (12, 3), (15, 4), (20, 6), (25, 8)),
        *((1025, 481), (10_000, 4902)),
    ],
)
def test_the_interval_of_a_median_is_between_the_kth_values(count: int, k: int) -> None:
    values = [float(v) for v in range(1, count + 1)]
    random.Random(0).shuffle(values)
    expected = (float(k), float(count + 1 - k)) if k else None
    assert expected == median_interval(values)
    assert (count >= MIN_FOR_INTERVAL) == (expected is not None)


@pytest.mark.parametrize(
    ("first", "second", "critical"),  # the Mann-Whitney table at 5 %, two-sided
    [
        (4, 4, 0),
        (5, 5, 2),
        (6, 6, 5),
        (7, 7, 8),
        (8, 8, 13),
        (9, 9, 17),
        (10, 10, 23),
        (5, 10, 8),
        (10, 5, 8),
    ],
)
def test_the_interval_of_a_shift_belongs_to_the_rank_test(first: int, second: int, critical: int) -> None:
    base = [math.exp(i * i * 0.37 + i) for i in range(first)]
    new = [math.exp(j * 1.91 + 0.2) for j in range(second)]
    ratios = sorted(n / b for b in base for n in new)
    assert (ratios[critical], ratios[-critical - 1]) == ratio_of_samples(base, new)[1]


def test_three_against_three_tell_nothing() -> None:
    assert (1.0, None) == ratio_of_samples([1, 1, 1], [1, 1, 1])


def test_the_rank_distribution_is_that_of_all_draws() -> None:
    counts = [0] * 13
    for ranks in combinations(range(7), 3):
        counts[sum(ranks) - 3] += 1
    below, k = 0, 0
    while below + counts[k] <= 0.05 * 35:
        below += counts[k]
        k += 1
    ratios = sorted(c / b for b in (2.0, 3.0, 5.0) for c in (7.0, 11.0, 13.0, 17.0))
    assert (ratios[k - 1], ratios[-k]) == ratio_of_samples((2.0, 3.0, 5.0), (7.0, 11.0, 13.0, 17.0), 0.9)[1]


def test_large_samples_agree_with_small_ones_where_the_method_changes() -> None:
    draw = random.Random(1)
    base, new = ([draw.gauss(100, 5) for _ in range(120)] for _ in range(2))
    exact = ratio_of_samples(base[:100], new[:100])[1]
    normal = ratio_of_samples(base, new)[1]
    assert exact is not None
    assert normal is not None
    assert normal == pytest.approx(exact, abs=0.02)


def test_ratios_of_nothing_or_of_zero_are_refused() -> None:
    for base, new in (([], [1.0]), ([1.0], []), ([0.0], [1.0]), ([1.0], [-1.0])):
        with pytest.raises(ValueError, match="positive"):
            ratio_of_samples(base, new)


@given(FIGURES, FIGURES)
def test_exchanging_the_sides_inverts_the_interval(base: list[float], new: list[float]) -> None:
    forward, backward = ratio_of_samples(base, new)[1], ratio_of_samples(new, base)[1]
    assert (forward is None) == (backward is None)
    if forward is not None and backward is not None:
        assert forward == pytest.approx((1 / backward[1], 1 / backward[0]))


@given(FIGURES)
def test_an_interval_holds_the_sample_median(values: list[float]) -> None:
    interval = median_interval(values)
    assert interval is None or interval[0] <= median(values) <= interval[1]


def test_equal_things_are_called_different_in_the_promised_share_of_cases() -> None:
    """Ten processes, whose medians vary by 1.9 % (absolute), or ratios by 1 % (paired)."""
    draw = random.Random(20260131)
    paired = unpaired = 0
    for _ in range(2000):
        interval = median_interval([math.exp(draw.gauss(0, 0.01)) for _ in range(10)])
        assert interval is not None
        paired += not interval[0] <= 1 <= interval[1]
        sides = [[math.exp(draw.gauss(0, 0.019)) for _ in range(10)] for _ in range(2)]
        interval = ratio_of_samples(sides[0], sides[1])[1]
        assert interval is not None
        unpaired += not interval[0] <= 1 <= interval[1]
    assert 0.012 < paired / 2000 < 0.035  # 2.1 %
    assert 0.03 < unpaired / 2000 < 0.058  # 4.3 %
