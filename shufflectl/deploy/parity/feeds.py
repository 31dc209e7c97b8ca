"""The inputs of a model that has several, handed around as one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shufflectl.errors import DataError

__all__ = ["Feeds"]


@dataclass(frozen=True)
class Feeds:
    """Inputs by name, each with the same number of images along its first axis.

    A slice takes the same images of every input.

    Raises:
        DataError: There is no input, or they differ in the number of images.
    """

    arrays: Mapping[str, NDArray[Any]]

    def __post_init__(self) -> None:
        counts = {len(array) for array in self.arrays.values()}
        if len(counts) != 1:
            raise DataError(f"the inputs {', '.join(self.arrays)} have different numbers of images")

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, part: slice) -> "Feeds":
        return Feeds({name: array[part] for name, array in self.arrays.items()})

    def filled(self, count: int) -> "Feeds":
        """Return as many images as are asked for: the last one is repeated."""
        missing = count - len(self)
        return Feeds(
            {
                name: np.pad(array, [(0, missing), *[(0, 0)] * (array.ndim - 1)], mode="edge")
                for name, array in self.arrays.items()
            }
        )

    @staticmethod
    def join(parts: "list[Feeds]") -> "Feeds":
        """Return the images of all parts, in their order."""
        return Feeds({name: np.concatenate([p.arrays[name] for p in parts]) for name in parts[0].arrays})
