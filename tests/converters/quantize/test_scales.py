"""The grid of eight bits: where 0 lies, what is cut off, what a row of weights becomes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shufflectl.converters.quantize.scales import Scale, bias_codes, from_range, weight_codes
from shufflectl.errors import GraphError

ends = st.floats(-1e6, 1e6, width=32)


@given(ends, ends)
def test_zero_has_a_code_and_both_ends_do(a: float, b: float) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    if 0 < high - low < 1e-30:
        return
    scale = from_range(low, high)
    assert -128 <= scale.zero_point <= 127
    assert 0 == scale.values(np.asarray([scale.zero_point], np.int8))[0]
    for end in (low, high):
        found = scale.values(scale.codes(np.asarray([end], np.float32)))[0]
        assert abs(found - end) <= scale.scale * 1.001


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 255 / 128, Scale(1 / 128, -128)),
        (-255 / 128, 0.0, Scale(1 / 128, 127)),
        (-1.0, 127 / 128, Scale(1 / 128, 0)),
        (1.0, 255 / 128, Scale(1 / 128, -128)),
        (0.0, 2.55, Scale(0.01000213623046875, -128)),
        (0.0, 0.0, Scale(0.0039215087890625 + 2**-18, -128)),
    ],
)
def test_grids_by_hand(low: float, high: float, expected: Scale) -> None:
    assert expected == from_range(low, high)


@given(st.floats(2**-13, 6e4 * 255, width=32))
def test_fp16_holds_every_scale_that_it_can(high: float) -> None:
    found = from_range(0.0, high).scale
    assert high / 255 <= found * (1 + 1e-6)
    assert found <= high / 255 * (1 + 2**-9)
    if high / 255 >= float(np.finfo(np.float16).tiny):
        assert found == float(np.float16(found))


@pytest.mark.parametrize(
    ("low", "high"), [(float("nan"), 1.0), (0.0, float("inf")), (2.0, 1.0), (0.0, 1e-40)]
)
def test_a_range_without_a_grid_is_refused_by_name(low: float, high: float) -> None:
    with pytest.raises(GraphError, match="'conv1'"):
        from_range(low, high, "conv1")


def test_codes_round_half_to_even_and_end() -> None:
    scale = Scale(1.0, 0)
    values = np.asarray([0.5, 1.5, -0.5, 200.0, -200.0], np.float32)
    assert [0, 2, 0, 127, -128] == scale.codes(values).tolist()


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 9))
def test_no_weight_is_off_by_more_than_half_a_step(seed: int, rows: int, columns: int) -> None:
    weights = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    found = weight_codes(weights, 0, Scale(0.1, 0))
    back = found.codes * found.scales[:, None]
    assert (np.abs(back - weights) <= found.scales[:, None] * 0.5001).all()
    assert (np.abs(found.codes).max(axis=1) == 127).all()


def test_a_row_of_zeros_takes_a_typical_scale() -> None:
    weights = np.asarray([[1.27, 0], [0, 0], [0, 1.27]], np.float32)
    found = weight_codes(weights, 0, Scale(0.1, 0), np.asarray([0, 5, 0], np.float32))
    assert [0, 0] == found.codes[1].tolist()
    assert found.scales[1] == pytest.approx(0.01, rel=1e-3)
    assert 5000 == pytest.approx(
        bias_codes(np.asarray([0, 5, 0], np.float32), Scale(0.1, 0), found)[1], rel=1e-3
    )


def test_a_bias_that_would_not_fit_widens_its_row() -> None:
    weights = np.asarray([[1e-9], [1.0]], np.float32)
    bias = np.asarray([100.0, 1.0], np.float32)
    source = Scale(1e-3, 0)
    found = weight_codes(weights, 0, source, bias)
    back = bias_codes(bias, source, found) * found.scales.astype(np.float64) * source.scale
    assert bias == pytest.approx(back, rel=1e-5)


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(GraphError, match="NaN"):
        weight_codes(np.asarray([[np.nan]], np.float32), 0, Scale(1.0, 0))
