"""The layouts of checkpoints: one table, one module a library."""

from collections.abc import Iterable
from typing import Final

from shufflectl.models.checkpoints import megvii, mmpretrain, native, pytorchcv, torchvision
from shufflectl.models.checkpoints.layout import Layout

__all__ = ["LAYOUTS", "names", "recognise"]

LAYOUTS: Final[tuple[Layout, ...]] = (
    *torchvision.LAYOUTS,
    *native.LAYOUTS,
    *megvii.LAYOUTS,
    *mmpretrain.LAYOUTS,
    *pytorchcv.LAYOUTS,
)


def recognise(tensors: Iterable[str], family: str | None = None) -> list[tuple[Layout, str]]:
    """Return the layouts that mark a file, with what stands before their names in it.

    Args:
        tensors: The file's names.
        family: Only layouts of this family.
    """
    held = list(tensors)
    return [
        (layout, prefix)
        for layout in LAYOUTS
        if family in (None, layout.family)
        for prefix in layout.prefixes(held)
    ]


def names(family: str) -> tuple[str, ...]:
    """Return the libraries whose layouts of a family are known."""
    return tuple(dict.fromkeys(layout.name for layout in LAYOUTS if layout.family == family))
