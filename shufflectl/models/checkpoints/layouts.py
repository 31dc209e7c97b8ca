"""The layouts of checkpoints: one table, one module a layout.

A layout is one library's way to name the tensors. Its module says which variants it covers and how its
tensors are named here; shapes, types and values are checked after that, in one place (`fit`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from torch import Tensor

from shufflectl.models.checkpoints import native, torchvision
from shufflectl.models.zoo import Variant

__all__ = ["LAYOUTS", "Layout", "Recognise", "recognise"]


class Recognise(Protocol):
    """Says whether a file's names are those of a layout, as far as the first tensors tell."""

    def __call__(self, variant: Variant, tensors: Mapping[str, Tensor]) -> bool:
        """Return whether the file is of this layout and the layout covers the variant."""


class Rename(Protocol):
    """Maps a file's tensors to our names, and reorders their elements where the layouts differ in that."""

    def __call__(self, variant: Variant, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict under our names."""


@dataclass(frozen=True)
class Layout:
    """One library's way to name the tensors.

    Attributes:
        name: The library.
        recognise: Whether a file is of this layout.
        rename: The file's tensors under our names.
    """

    name: str
    recognise: Recognise
    rename: Rename


LAYOUTS: Final[tuple[Layout, ...]] = (
    Layout("torchvision", torchvision.recognise, torchvision.rename),
    Layout("shufflectl", native.recognise, native.rename),
)


def recognise(variant: Variant, tensors: Mapping[str, Tensor]) -> Layout | None:
    """Return the layout of a file for a variant, or None."""
    return next((layout for layout in LAYOUTS if layout.recognise(variant, tensors)), None)
