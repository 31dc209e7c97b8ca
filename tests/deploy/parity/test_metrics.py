import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shufflectl.deploy.parity.figures import figure, round_down, round_up
from shufflectl.deploy.parity.limits import LIMITS, Limits, default_limits
from shufflectl.deploy.parity.metrics import Accumulator, Comparison, Top1, compare
from shufflectl.errors import ParityError, UsageError

LOOSE = Limits(max_rel=1.0, sqnr=0.0, top1=0.0)

# By hand: reference, candidate -> peak, max_abs, mean_abs, max_rel, rmse, sqnr, cosine.
TABLE = {
    "equal": ([3.0, -4.0], [3.0, -4.0], 4.0, 0.0, 0.0, 0.0, 0.0, math.inf, 1.0),
    # Δ = 0, 1: Σ reference² = 25, Σ Δ² = 1; cosine = (9 + 12) / (5 * sqrt(18)).
    "one off": (
        [3.0, -4.0],
        [3.0, -3.0],
        4.0,
        1.0,
        0.5,
        0.25,
        math.sqrt(0.5),
        10 * math.log10(25),
        21 / (5 * math.sqrt(18)),
    ),
    # Twice the reference: Δ = reference, so noise equals signal.
    "doubled": ([1.0, 2.0, 2.0], [2.0, 4.0, 4.0], 2.0, 2.0, 5 / 3, 1.0, math.sqrt(3), 0.0, 1.0),
    "negated": ([1.0, -1.0], [-1.0, 1.0], 1.0, 2.0, 2.0, 2.0, 2.0, 10 * math.log10(0.25), -1.0),
    "orthogonal": ([1.0, 0.0], [0.0, 1.0], 1.0, 1.0, 1.0, 1.0, 1.0, 10 * math.log10(0.5), 0.0),
    "both zero": ([0.0, 0.0], [0.0, 0.0], 0.0, 0.0, 0.0, 0.0, 0.0, math.inf, 1.0),
    "zero reference": ([0.0, 0.0], [0.0, 2.0], 0.0, 2.0, 1.0, math.inf, math.sqrt(2), -math.inf, 0.0),
    "zero candidate": ([0.0, 2.0], [0.0, 0.0], 2.0, 2.0, 1.0, 1.0, math.sqrt(2), 0.0, 0.0),
}


@pytest.mark.parametrize("case", TABLE)
def test_figures_are_those_of_the_hand_computed_table(case: str) -> None:
    reference, candidate, *expected = TABLE[case]
    c = compare(np.array(reference, np.float32), np.array(candidate, np.float32), LOOSE)
    assert pytest.approx(expected) == [c.peak, c.max_abs, c.mean_abs, c.max_rel, c.rmse, c.sqnr, c.cosine]


def test_values_are_cast_up_before_they_are_subtracted() -> None:
    c = compare(np.array([60000.0], np.float16), np.array([-60000.0], np.float16), LOOSE)
    assert (0, 2 * float(np.float16(60000))) == (c.nonfinite, c.max_abs)


def test_unsigned_integers_do_not_wrap() -> None:
    assert compare(np.array([1], np.uint8), np.array([2], np.uint8), LOOSE).max_abs == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["reference", "candidate", "both"])
def test_nonfinite_values_fail_and_are_counted(bad: float, side: str) -> None:
    good, spoilt = np.ones(5, np.float32), np.ones(5, np.float32)
    spoilt[[1, 3]] = bad
    pair = {"reference": (spoilt, good), "candidate": (good, spoilt), "both": (spoilt, spoilt)}[side]
    c = compare(*pair, Limits(math.inf, -math.inf, 0.0))
    assert (False, 2, 0.0, None) == (bool(c), c.nonfinite, c.max_abs, c.needed)
    assert c.failures == ("2 of 5 values are NaN or infinite",)


def test_all_nonfinite_gives_figures_and_fails() -> None:
    c = compare(np.full(3, np.nan), np.zeros(3))
    assert (False, 3, 3) == (bool(c), c.elements, c.nonfinite)


def test_empty_arrays_are_equal() -> None:
    assert compare(np.zeros((0, 4)), np.zeros((0, 4)))


def test_shapes_that_differ_are_named() -> None:
    with pytest.raises(ParityError, match=r"the output has shape \[2, 3\] where the reference has \[3, 2\]"):
        compare(np.zeros((3, 2)), np.zeros((2, 3)))


def test_a_shape_that_would_broadcast_is_refused() -> None:
    with pytest.raises(ParityError):
        compare(np.zeros((2, 3)), np.zeros((1, 3)))


class TestTop1:
    REFERENCE = np.array([[9.0, 1.0, 0.0], [5.0, 4.9, 0.0], [0.0, 1.0, 8.0], [2.0, 2.0, 0.0]])
    CANDIDATE = np.array([[9.0, 1.0, 0.0], [4.9, 5.0, 0.0], [8.0, 1.0, 0.0], [1.9, 2.0, 0.0]])

    def test_flips_are_counted_with_their_gaps(self) -> None:
        top1 = compare(self.REFERENCE, self.CANDIDATE, LOOSE).top1
        assert Top1(4, (0.0, pytest.approx(0.1), 8.0)) == top1

    @pytest.mark.parametrize(
        ("max_rel", "agreement", "ties"), [(1e-6, 2 / 4, 1), (0.02, 3 / 4, 2), (0.9, 1.0, 3)]
    )
    def test_a_flip_within_the_tolerance_is_a_tie(self, max_rel: float, agreement: float, ties: int) -> None:
        c = compare(self.REFERENCE, self.CANDIDATE, Limits(max_rel, 0.0, 0.0))
        assert (agreement, ties) == (c.agreement, c.ties)

    def test_a_row_that_is_not_finite_is_never_a_tie(self) -> None:
        candidate = self.REFERENCE.copy()
        candidate[0, 2] = np.nan
        c = compare(self.REFERENCE, candidate, Limits(10.0, 0.0, 0.0))
        assert (0.75, 0) == (c.agreement, c.ties)

    @pytest.mark.parametrize("shape", [(6,), (2, 3, 1), (6, 1)])
    def test_only_outputs_with_classes_have_it(self, shape: tuple[int, ...]) -> None:
        assert compare(np.ones(shape), np.ones(shape)).top1 is None


def test_the_verdict_needs_every_limit() -> None:
    reference, candidate = np.array([[3.0, -4.0]]), np.array([[3.0, -3.9]])
    verdicts = [
        bool(compare(reference, candidate, limits))
        for limits in (Limits(0.03, 30, 1.0), Limits(0.02, 30, 1.0), Limits(0.03, 40, 1.0))
    ]
    assert [True, False, False] == verdicts


def test_failures_say_figure_and_limit() -> None:
    failures = compare(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), Limits(0.1, 40, 1.0)).failures
    expected = (
        "max |Δ| is 1 of the largest reference value, limit 0.1",
        "SQNR is -3.0 dB, limit 40.0 dB",
        "top-1 agreement is 0, limit 1",
    )
    assert expected == failures


ARRAYS = hnp.arrays(np.float32, (6, 3), elements=st.floats(-100, 100, width=32))


@settings(max_examples=50, deadline=None)
@given(ARRAYS, ARRAYS)
def test_what_is_needed_passes_and_less_fails(reference: np.ndarray, candidate: np.ndarray) -> None:
    c = compare(reference, candidate)
    needed = c.needed
    assert needed is not None
    assert c.against(needed)
    if c.max_rel > 0 and math.isfinite(c.max_rel):
        assert not c.against(needed.override(max_rel=c.max_rel * 0.999))
        assert not c.against(needed.override(sqnr=c.sqnr + 0.1))


@settings(max_examples=50, deadline=None)
@given(ARRAYS, ARRAYS, st.integers(1, 5))
def test_batches_give_what_the_whole_gives(reference: np.ndarray, candidate: np.ndarray, cut: int) -> None:
    parts = Accumulator()
    for rows in (slice(0, cut), slice(cut, None)):
        parts.add(reference[rows], candidate[rows])
    whole, gathered = compare(reference, candidate), parts.result()
    assert (whole.max_abs, whole.peak, whole.top1) == (gathered.max_abs, gathered.peak, gathered.top1)
    assert pytest.approx([whole.rmse, whole.cosine], abs=1e-12) == [gathered.rmse, gathered.cosine]


def test_json_is_rounded_and_holds_no_infinity() -> None:
    equal = compare(np.array([[1.0, 2.0]]), np.array([[1.0, 2.0]])).to_json()
    off = compare(np.array([[1.0, 3.0]]), np.array([[1.0, 2.0]])).to_json()
    assert ("inf", 0.3333) == (equal["sqnr_db"], off["max_rel"])
    json.dumps([equal, off], allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e300, 1e300))
def test_rounding_goes_the_way_it_says(value: float) -> None:
    assert round_down(value) <= value <= round_up(value)
    assert pytest.approx(value, rel=2e-3, abs=1e-300) == figure(value)


def test_equal_comparisons_are_equal_objects() -> None:
    a, b = (compare(np.arange(6.0).reshape(2, 3), np.ones((2, 3))) for _ in range(2))
    assert a == b
    assert isinstance(a, Comparison)


class TestLimits:
    def test_defaults_exist_for_every_precision(self) -> None:
        from shufflectl.converters.targets import PRECISIONS

        assert set(PRECISIONS) <= set(LIMITS)

    def test_unknown_precision_suggests_the_nearest(self) -> None:
        with pytest.raises(UsageError) as caught:
            default_limits("fp61")
        assert caught.value.hint == "did you mean 'fp16'?"

    def test_override_changes_what_is_given_alone(self) -> None:
        assert Limits(0.5, 40.0, 0.99) == default_limits("fp16").override(max_rel=0.5)
        assert Limits(0.0, 40.0, 0.0) == default_limits("fp16").override(max_rel=0.0, top1=0.0)

    @pytest.mark.parametrize(
        "bad", [{"max_rel": -1.0}, {"max_rel": math.nan}, {"sqnr": math.nan}, {"top1": 1.5}]
    )
    def test_figures_out_of_range_are_refused(self, bad: dict[str, float]) -> None:
        with pytest.raises(UsageError):
            default_limits("fp32").override(**bad)

    def test_errors_of_a_pair_add_in_power(self) -> None:
        both = LIMITS["fp16"].between(LIMITS["fp16"])
        expected = (math.sqrt(2) * 0.02, 40 - 10 * math.log10(2), 0.98)
        assert pytest.approx(expected) == (both.max_rel, both.sqnr, both.top1)

    def test_an_exact_pair_stays_exact(self) -> None:
        exact = Limits(0.0, math.inf, 1.0)
        assert exact == exact.between(exact)
