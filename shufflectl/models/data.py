"""The bundled images: scans of handwritten digits.

They are of the 1,797 images that scikit-learn carries (``sklearn.datasets.load_digits``), which are the test
part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, doi:10.24432/C50P49, CC BY 4.0: 360 that no bundled network was trained on, and 256 of the
others, on which networks are calibrated. ``scripts/train_digits.py`` makes the files.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

__all__ = ["LabelledImages", "digits_calibration", "digits_test", "resize", "scans_to_rgb"]


@dataclass(frozen=True)
class LabelledImages:
    """Images and what they show.

    Attributes:
        images: ``[N, size, size, 3]``, uint8, RGB.
        labels: ``[N]``, int64: indices of classes.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def digits_test(size: int, count: int | None = None) -> LabelledImages:
    """Return bundled held-out digits, the same bytes on every machine.

    Args:
        size: Height and width in pixels.
        count: How many, evenly spread over the 360; None for all.
    """
    scans, labels = _scans()
    total = len(scans)
    wanted = total if count is None else min(count, total)
    chosen = np.linspace(0, total - 1, wanted).round().astype(np.intp)
    return LabelledImages(_sized(scans[chosen], size), labels[chosen].astype(np.int64))


def digits_calibration(size: int) -> NDArray[np.uint8]:
    """Return bundled digits for calibration, ``[256, size, size, 3]``, uint8, RGB; none is a held-out one."""
    with _open("digits_calibration.npz") as arrays:
        return _sized(arrays["images"], size)


def _sized(scans: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    # One channel is resized and then repeated: the three are equal.
    return np.repeat(resize(scans_to_rgb(scans)[..., :1], size), 3, axis=3)


def scans_to_rgb(scans: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return grey scans of 0 to 16, ``[N, H, W]``, as RGB images of 0 to 255, ``[N, H, W, 3]``."""
    grey = (scans.astype(np.uint16) * 255 + 8) // 16
    return np.repeat(grey.astype(np.uint8)[..., np.newaxis], 3, axis=3)


def resize(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize images bilinearly, with pixel centres at half integers and edges repeated.

    The arithmetic is in integers, so the result does not depend on the machine. There is no low-pass filter:
    it is meant for enlarging.

    Args:
        images: ``[N, H, W, C]``, uint8.
        size: Height and width of the result.

    Returns:
        ``[N, size, size, C]``, uint8.
    """
    rows = _interpolate(images.astype(np.int64), 1, size)
    both = _interpolate(rows, 2, size)
    unit = (2 * size) ** 2
    return ((both + unit // 2) // unit).astype(np.uint8)


def _interpolate(array: NDArray[np.int64], axis: int, size: int) -> NDArray[np.int64]:
    """Interpolate along one axis; the result is ``2 * size`` times as large as the values."""
    length = array.shape[axis]
    # The centre of output pixel i lies at (i + 1/2) * length / size - 1/2, in units of 1 / (2 * size):
    position = (2 * np.arange(size, dtype=np.int64) + 1) * length - size
    position = np.clip(position, 0, (length - 1) * 2 * size)
    low = position // (2 * size)
    share = (position - low * 2 * size).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    high = np.minimum(low + 1, length - 1)
    below, above = np.take(array, low, axis), np.take(array, high, axis)
    result: NDArray[np.int64] = below * (2 * size - share) + above * share
    return result


@cache
def _scans() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the bundled scans, ``[N, 8, 8]`` in 0 to 16, and their labels, ``[N]``."""
    with _open("digits_test.npz") as arrays:
        return arrays["images"], arrays["labels"]


@contextmanager
def _open(name: str) -> Iterator[Mapping[str, NDArray[np.uint8]]]:
    file = resources.files("shufflectl.models") / "weights" / name
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        yield arrays
