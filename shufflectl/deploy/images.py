"""The inputs that parity runs on: real images and random ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.trace import NHWC
from shufflectl.deploy.parity.feeds import Feeds
from shufflectl.models.data import digits_test
from shufflectl.models.preprocess import Preprocess

if TYPE_CHECKING:
    from shufflectl.deploy.options import ParityOptions

__all__ = ["Inputs", "gather", "gather_shapes"]


@dataclass(frozen=True)
class Inputs:
    """What every member of a comparison runs.

    Attributes:
        by_kind: All inputs, float32, as the network takes them, with the pixels of images; kinds are ``real``
            and ``random``.
        labels: By kind, ``[N]``, int64, where the model was trained on these classes.
    """

    by_kind: Mapping[str, Feeds]
    labels: dict[str, NDArray[np.int64]]


_DIGITS: Final = tuple("0123456789")


def gather(
    name: str, size: int, preprocess: Preprocess, labels: Sequence[str], options: "ParityOptions"
) -> Inputs:
    """Return real images (the held-out scans of handwritten digits in the package) and uniform noise.

    Real images are evenly spread over the test set. Noise makes every input value and channel take part.

    Args:
        name: The captured graph's name of the input.
        size: Its height and width, in pixels.
        preprocess: What the model was trained with.
        labels: The model's class names; the images' labels are given where these are the ten digits.
        options: How many of each, and the seed.
    """
    data = digits_test(size, options.images)
    rng = np.random.default_rng(options.seed)
    noise = rng.integers(0, 256, (options.random_images, size, size, 3), np.uint8)
    pixels = {"real": data.images, "random": noise}
    return Inputs(
        {kind: Feeds({name: preprocess.apply(p)}, {name: p}, preprocess) for kind, p in pixels.items()},
        {"real": data.labels} if tuple(labels) == _DIGITS else {},
    )


def gather_shapes(
    shapes: Mapping[str, Sequence[int | str | None]],
    preprocess: Preprocess,
    labels: Sequence[str],
    options: "ParityOptions",
) -> Inputs:
    """Return inputs for a model with any inputs: images where they can be, and uniform noise.

    An input of three channels, ``[N, 3, H, W]`` or ``[N, H, W, 3]``, gets images; they are enlarged to the
    longer side, and the middle of the shorter one is taken. Any other input gets noise between 0 and 1.

    Args:
        shapes: By the input's name; the first dimension is the batch, and the others are numbers.
        preprocess: What happens to the images.
        labels: See `gather`.
        options: How many of each, and the seed.
    """
    sizes = {name: tuple(int(d) for d in shape[1:] if d is not None) for name, shape in shapes.items()}
    if len(sizes) == 1:
        ((name, only),) = sizes.items()
        if len(only) == 3 and only[0] == 3 and only[1] == only[2]:
            return gather(name, only[1], preprocess, labels, options)
    images = {name: area for name, shape in sizes.items() if (area := _area(shape)) is not None}
    rng = np.random.default_rng(options.seed)
    by_kind: dict[str, Feeds] = {}
    answers: dict[str, NDArray[np.int64]] = {}
    if images:
        data = {name: digits_test(max(area), options.images) for name, area in images.items()}
        first = next(iter(data.values()))
        if tuple(labels) == _DIGITS:
            answers["real"] = first.labels
        count = len(first.images)
        scans = {name: _middle(data[name].images, area) for name, area in images.items()}
        by_kind["real"] = _feeds(sizes, scans, preprocess, rng, count)
    count = options.random_images
    noise = {name: rng.integers(0, 256, (count, *area, 3), np.uint8) for name, area in images.items()}
    by_kind["random"] = _feeds(sizes, noise, preprocess, rng, count)
    return Inputs(by_kind, answers)


def _feeds(
    sizes: Mapping[str, tuple[int, ...]],
    pixels: Mapping[str, NDArray[np.uint8]],
    preprocess: Preprocess,
    rng: np.random.Generator,
    count: int,
) -> Feeds:
    """Return images where there are pixels, and uniform noise for every other input."""
    arrays = {
        name: _laid_out(preprocess.apply(pixels[name]), shape)
        if name in pixels
        else rng.random((count, *shape), np.float32)
        for name, shape in sizes.items()
    }
    return Feeds(arrays, pixels, preprocess)


def _area(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return height and width of an image input; None where it is something else."""
    if len(shape) != 3 or (shape[0] != 3 and shape[2] != 3):
        return None
    return (shape[1], shape[2]) if shape[0] == 3 else (shape[0], shape[1])


def _laid_out(images: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return images ``[N, 3, H, W]`` in the layout that the input's shape has."""
    return images if shape[0] == 3 else np.ascontiguousarray(images.transpose(NHWC))


def _middle(images: NDArray[np.uint8], area: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the middle of square images ``[N, S, S, 3]``."""
    top, left = ((images.shape[axis] - size) // 2 for axis, size in zip((1, 2), area, strict=True))
    return images[:, top : top + area[0], left : left + area[1]]
