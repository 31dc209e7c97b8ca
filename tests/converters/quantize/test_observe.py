"""Ranges of tensors whose distribution is known."""

import numpy as np
import pytest

from shufflectl.converters.quantize.observe import ChannelObserver, Observer
from shufflectl.converters.quantize.recipe import METHODS, Method
from shufflectl.errors import DataError


def observed(method: Method, *batches: np.ndarray) -> tuple[float, float]:
    observer = Observer(method)
    for batch in batches:
        observer.look({"x": batch})
    if observer.again:
        for batch in batches:
            observer.look({"x": batch})
    return observer.ranges()["x"]


NORMAL = np.random.default_rng(0).standard_normal((4, 100_000)).astype(np.float32)


def test_minmax_is_the_ends_of_all_batches() -> None:
    assert (-2.0, 5.0) == observed("minmax", np.asarray([1.0, -2.0]), np.asarray([5.0]))


@pytest.mark.parametrize("method", [m for m in METHODS if m != "minmax"])
def test_an_outlier_is_cut_off(method: Method) -> None:
    _, high = observed(method, *NORMAL, np.asarray([100.0], np.float32))
    assert 2 < high < 80


@pytest.mark.parametrize("method", METHODS)
def test_what_is_never_negative_begins_at_zero(method: Method) -> None:
    low, high = observed(method, np.maximum(NORMAL[0], 0))
    assert 0 == low
    assert 1.5 < high <= NORMAL[0].max()


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_has_a_range(method: Method) -> None:
    low, high = observed(method, np.zeros(10, np.float32))
    assert (0, 0) == (low, high)


def test_mse_has_less_error_than_minmax() -> None:
    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        x = NORMAL.ravel()
        return float(np.square(np.clip(np.rint(x / step) * step, low, high) - x).mean())

    assert error(*observed("mse", *NORMAL)) < 0.9 * error(*observed("minmax", *NORMAL))


def test_percentile_leaves_out_a_hundred_thousandth() -> None:
    low, high = observed("percentile", *NORMAL)
    outside = np.mean((low > NORMAL) | (high < NORMAL))
    assert outside <= 1e-5
    assert high < NORMAL.max()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_name(value: float) -> None:
    with pytest.raises(DataError, match="'x'"):
        observed("minmax", np.asarray([1.0, value]))


def test_channels_are_told_apart() -> None:
    observer = ChannelObserver()
    observer.look({"x": np.asarray([[[[1.0, -3.0]], [[0.5, 0.5]]]], np.float32), "flat": np.ones(3)})
    observer.look({"x": np.asarray([[[[2.0, 0.0]], [[0.5, 0.5]]]], np.float32)})
    assert [3.0, 0.5] == observer.magnitudes["x"].tolist()
    assert [0.0, 0.5] == observer.means["x"].tolist()
    assert "flat" not in observer.magnitudes
