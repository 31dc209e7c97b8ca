"""The inputs of a model, handed around as one: what the network takes, and the pixels that it was made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.trace import NHWC
from shufflectl.errors import DataError
from shufflectl.models.preprocess import Preprocess

__all__ = ["Feeds"]

_COLOURS = 3


@dataclass(frozen=True)
class Feeds:
    """Inputs by name, each with the same number of images along its first axis.

    A slice takes the same images of every input.

    Attributes:
        arrays: What the network takes, by the captured graph's names.
        pixels: Of inputs that are images, ``[N, H, W, 3]``, uint8, RGB: what others may make theirs of.
        preprocess: What the arrays of those inputs were made with.

    Raises:
        DataError: There is no input, or they differ in the number of images.
    """

    arrays: Mapping[str, NDArray[Any]]
    pixels: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    preprocess: Preprocess | None = None

    def __post_init__(self) -> None:
        counts = {len(array) for array in (*self.arrays.values(), *self.pixels.values())}
        if len(counts) != 1:
            raise DataError(f"the inputs {', '.join(self.arrays)} have different numbers of images")

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, part: slice) -> "Feeds":
        return self._each(lambda array: array[part])

    def filled(self, count: int) -> "Feeds":
        """Return as many images as are asked for: the last one is repeated."""
        missing = count - len(self)
        return self._each(lambda a: np.pad(a, [(0, missing), *[(0, 0)] * (a.ndim - 1)], mode="edge"))

    def taken(self, index: NDArray[np.intp]) -> "Feeds":
        """Return the images of these places."""
        return self._each(lambda array: array[index])

    def _each(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> "Feeds":
        return Feeds(
            {name: change(array) for name, array in self.arrays.items()},
            {name: change(array) for name, array in self.pixels.items()},
            self.preprocess,
        )

    def fed(self, name: str, expects: Preprocess | None) -> NDArray[Any]:
        """Return an input for a file that wants images prepared in a way of its own.

        Args:
            name: The captured graph's name of the input.
            expects: What the file wants; None for what the network takes.

        Returns:
            The image in the layout that the captured graph has it in; what the network takes where there are
            no pixels to prepare.
        """
        array = self.arrays[name]
        own = self.preprocess
        if expects is None or name not in self.pixels or (own and own.values == expects.values):
            return array
        made = expects.apply(self.pixels[name])
        return made if array.shape[1] == _COLOURS else np.ascontiguousarray(made.transpose(NHWC))

    @staticmethod
    def join(parts: "list[Feeds]") -> "Feeds":
        """Return the images of all parts, in their order."""
        first = parts[0]
        return Feeds(
            {name: np.concatenate([p.arrays[name] for p in parts]) for name in first.arrays},
            {
                name: np.concatenate([p.pixels[name] for p in parts])
                for name in first.pixels
                if all(name in p.pixels for p in parts)
            },
            first.preprocess,
        )
