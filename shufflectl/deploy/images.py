"""The inputs that parity runs on: real images and random ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from shufflectl.models.data import digits_test
from shufflectl.models.preprocess import Preprocess

if TYPE_CHECKING:
    from shufflectl.deploy.options import ParityOptions

__all__ = ["Inputs", "gather"]


@dataclass(frozen=True)
class Inputs:
    """What every member of a comparison runs.

    Attributes:
        by_kind: ``[N, 3, H, W]``, float32, as the model takes them; kinds are ``real`` and ``random``.
        labels: By kind, ``[N]``, int64, where the model was trained on these classes.
    """

    by_kind: dict[str, NDArray[np.float32]]
    labels: dict[str, NDArray[np.int64]]


_DIGITS: Final = tuple("0123456789")


def gather(size: int, preprocess: Preprocess, labels: Sequence[str], options: "ParityOptions") -> Inputs:
    """Return real images (the held-out scans of handwritten digits in the package) and uniform noise.

    Real images are evenly spread over the test set. Noise makes every input value and channel take part.

    Args:
        size: Height and width of the model's input, in pixels.
        preprocess: What the model was trained with.
        labels: The model's class names; the images' labels are given where these are the ten digits.
        options: How many of each, and the seed.
    """
    data = digits_test(size, options.images)
    rng = np.random.default_rng(options.seed)
    noise = rng.integers(0, 256, (options.random_images, size, size, 3), np.uint8)
    return Inputs(
        {"real": preprocess.apply(data.images), "random": preprocess.apply(noise)},
        {"real": data.labels} if tuple(labels) == _DIGITS else {},
    )
