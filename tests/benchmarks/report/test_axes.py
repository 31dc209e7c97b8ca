import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shufflectl.benchmarks.report.axes import Axis, duration

TIMES = st.floats(0, 1e18)
RATIOS = st.floats(0, 1e18)


@given(TIMES, TIMES)
@example(1 / 3, 1 / 3)  # its last tick is its end, in exact arithmetic
def test_a_linear_axis_holds_both_ends_and_keeps_the_order(one: float, other: float) -> None:
    low, high = sorted((one, other))
    axis = Axis.linear(low, high)
    assert axis.low < axis.high
    assert 0 <= axis.at(low) <= axis.at((low + high) / 2) <= axis.at(high) <= 100
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert 1 <= len(axis.ticks) <= 9


@given(st.lists(RATIOS, max_size=6))
def test_an_axis_of_ratios_holds_one_and_all_of_them(ratios: list[float]) -> None:
    axis = Axis.ratios(ratios)
    assert 0 < axis.at(1.0) < 100
    places = [axis.at(ratio) for ratio in sorted(ratios)]
    assert sorted(places) == places
    assert 1 <= len(axis.ticks) <= 12
    assert all(axis.low * 0.999 <= tick <= axis.high * 1.001 for tick in axis.ticks)


def test_equal_factors_are_equally_long_on_an_axis_of_ratios() -> None:
    axis = Axis.ratios([0.5, 2.0])
    assert axis.at(1.0) - axis.at(0.5) == pytest.approx(axis.at(2.0) - axis.at(1.0), abs=0.01)


def test_what_lies_beyond_an_end_is_at_that_end() -> None:
    axis = Axis.linear(10, 20)
    assert (0.0, 100.0) == (axis.at(1), axis.at(100))


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (None, ""),
        (0, "0 ns"),
        (12, "12.00 ns"),
        (1234, "1.234 µs"),
        (3.2144e6, "3.214 ms"),
        (12.3456e6, "12.35 ms"),
        (999_960_000, "1000.0 ms"),
        (2e9, "2.000 s"),
        (1e18, "1000000000 s"),
    ],
)
def test_a_duration_has_four_digits_and_its_unit(nanoseconds: float | None, text: str) -> None:
    assert text == duration(nanoseconds).replace("\N{NO-BREAK SPACE}", " ")


@given(st.floats(1, 1e15))
def test_a_duration_is_near_what_it_stands_for(nanoseconds: float) -> None:
    number, unit = duration(nanoseconds).split("\N{NO-BREAK SPACE}")
    size = {"ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9}[unit]
    assert math.isclose(float(number) * size, nanoseconds, rel_tol=1e-3)
