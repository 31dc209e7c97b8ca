"""What each MIL operation computes: one table, one builder an operation; each kind has a module.

A builder reads an `Operation` once, when the program is loaded, and returns a closure over tensors and its
operands. Floats are held in fp32 whatever the program's type, and a closure computes in fp32; the session
rounds each result that the program declares as fp16 (`runtime`). Operations in `EXACT` give values that
their inputs already have.

What the definition of an operation leaves open on devices is refused, not guessed.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from shufflectl.deploy.runtimes.coreml_reference.operations import (
    codes,
    elementwise,
    movement,
    pooling,
    products,
    resizing,
)
from shufflectl.deploy.runtimes.coreml_reference.operations.builder import Builder

__all__ = ["EXACT", "OPERATIONS"]

OPERATIONS: Final[Mapping[str, Builder]] = MappingProxyType(
    {
        **codes.OPERATIONS,
        **elementwise.OPERATIONS,
        **movement.OPERATIONS,
        **pooling.OPERATIONS,
        **products.OPERATIONS,
        **resizing.OPERATIONS,
    }
)

EXACT: Final = frozenset(
    {
        "abs",
        "concat",
        "expand_dims",
        "flatten2d",
        "gather",
        "identity",
        "max_pool",
        "maximum",
        "minimum",
        "pixel_shuffle",
        "reduce_max",
        "reduce_min",
        "relu",
        "reshape",
        "resize_nearest_neighbor",
        "select",
        "slice_by_index",
        "slice_by_size",
        "split",
        "squeeze",
        "stack",
        "tile",
        "transpose",
        "upsample_nearest_neighbor",
    }
)
"""Operations whose results are among their inputs' values: rounding to fp16 would change nothing."""
