"""Palettes: as close to the weights as coremltools', the same every time, packed as MIL has it."""

import numpy as np
import pytest
from coremltools.optimize import _utils as apple
from coremltools.optimize.coreml._quantization_passes import palettize_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shufflectl.converters.coreml.palette import Palette, palettised


def weights(kind: str) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    shape = (64, 58, 1, 1)
    found = {
        "normal": rng.standard_normal(shape),
        "heavy tails": rng.standard_t(3, shape),
        "uneven": rng.exponential(1, shape) - 0.1,
        "two heaps": rng.standard_normal(shape) * 0.02 + rng.choice([-1.0, 1.0], shape),
    }
    return found[kind].astype(np.float32) * 0.1


def error(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.square(found.astype(np.float64) - wanted).mean())


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "uneven", "two heaps"])
def test_a_palette_is_as_close_as_coremltools(kind: str, bits: int) -> None:
    given_weights = weights(kind)
    table, places = palettize_weights._get_lut_and_indices(given_weights, "KMEANS", bits, None)
    held = np.asarray(table).reshape(-1).astype(np.float16).astype(np.float32)
    theirs = error(held[places].reshape(given_weights.shape), given_weights)
    found = palettised(given_weights, bits)
    assert bits == found.bits
    assert error(found.table[found.places], given_weights) < 1.02 * theirs


def test_each_weight_has_the_nearest_entry() -> None:
    given_weights = weights("uneven").astype(np.float16).astype(np.float32)
    found = palettised(given_weights, 4)
    distance = np.abs(given_weights.reshape(-1, 1) - found.table)
    np.testing.assert_allclose(
        np.abs(given_weights - found.table[found.places]).reshape(-1), distance.min(axis=1)
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=60), st.sampled_from([4, 6, 8]))
def test_few_different_numbers_stay_exactly_as_they_are(numbers: list[float], bits: int) -> None:
    given_weights = np.asarray(numbers, np.float32)
    found = palettised(given_weights, bits)
    assert 1 << bits == len(found.table)
    np.testing.assert_array_equal(found.table, found.table.astype(np.float16))
    if len(np.unique(given_weights)) <= 1 << bits:
        np.testing.assert_array_equal(given_weights, found.table[found.places])


def test_padding_stays_zero() -> None:
    given_weights = weights("two heaps").copy()
    given_weights[40:] = 0
    found = palettised(given_weights, 4)
    assert not found.table[found.places[40:]].any()


@settings(deadline=None)
@given(st.data())
def test_places_are_packed_as_coremltools_unpacks_them(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from([4, 6, 8]))
    count = data.draw(st.integers(1, 30))
    places = np.random.default_rng(count).integers(0, 1 << bits, count, dtype=np.uint8)
    packed = Palette(places, np.zeros(1 << bits, np.float32)).packed()
    np.testing.assert_array_equal(places, apple.restore_elements_from_packed_bits(packed, bits, count))
