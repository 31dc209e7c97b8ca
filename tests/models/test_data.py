"""The bundled images and the resizing of images."""

import hashlib
from importlib import resources

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from shufflectl.models.data import digits_test, resize, scans_to_rgb


def test_scans_are_those_of_scikit_learn_at_the_stated_indices() -> None:
    file = resources.files("shufflectl.models") / "weights" / "digits_test.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        images, labels, indices = arrays["images"], arrays["labels"], arrays["indices"]
    digits = load_digits()
    assert np.array_equal(digits.images[indices], images)
    assert np.array_equal(digits.target[indices], labels)
    assert 360 == len(set(indices.tolist()))


def test_every_class_is_held_out() -> None:
    assert list(range(10)) == np.unique(digits_test(8).labels).tolist()


def test_images_are_rgb_bytes_of_the_size_asked_for() -> None:
    data = digits_test(32)
    assert ((360, 32, 32, 3), np.uint8) == (data.images.shape, data.images.dtype)
    assert ((360,), np.int64) == (data.labels.shape, data.labels.dtype)
    assert (0, 255) == (data.images.min(), data.images.max())


def test_images_are_the_same_bytes_on_every_machine() -> None:
    assert (
        "f5e631937c057b0b8698f8f976c16df5e714dae421a707ac955608c0843707b7"
        == hashlib.sha256(digits_test(32).images.tobytes()).hexdigest()
    )


def test_the_lightest_and_darkest_grey_reach_the_ends() -> None:
    scans = np.array([[[0, 8, 16]]], np.uint8)
    assert [0, 128, 255] == scans_to_rgb(scans)[0, 0, :, 1].tolist()


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), size=st.integers(1, 40), seed=st.integers(0, 99))
def test_resizing_is_bilinear_to_the_nearest_byte(height: int, width: int, size: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).double()
    exact = torch.nn.functional.interpolate(planes, (size, size), mode="bilinear", align_corners=False)
    found = torch.from_numpy(resize(images, size)).permute(0, 3, 1, 2).double()
    assert 0.5 + 1e-6 >= (exact - found).abs().max().item()


@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_resizing_keeps_a_uniform_image(value: int) -> None:
    images = np.full((1, 5, 5, 3), value, np.uint8)
    assert np.array_equal(np.full((1, 13, 13, 3), value, np.uint8), resize(images, 13))


def test_resizing_to_the_same_size_changes_nothing() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), dtype=np.uint8)
    assert np.array_equal(images, resize(images, 9))


def test_a_number_of_digits_is_evenly_spread_over_all_of_them() -> None:
    everything, some = digits_test(16), digits_test(16, 5)
    chosen = [0, 90, 180, 269, 359]
    assert (everything.images[chosen] == some.images).all()
    assert (everything.labels[chosen] == some.labels).all()


def test_no_more_digits_come_than_there_are() -> None:
    assert 360 == len(digits_test(8, 1000).images)
