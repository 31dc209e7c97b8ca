"""ONNX's arithmetic on arrays of numbers and of sizes (`sizes`), bounded in what it may make."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.capture.sizes import equal, quotient
from shufflectl.converters.rewrite.movement import MAX_ELEMENTS, CannotExecuteError

__all__ = ["ARITHMETIC", "Values", "is_symbolic"]

Values = NDArray[Any]  # of numbers, or of dtype object: Python's integers and Affine


def is_symbolic(array: Values) -> bool:
    """Whether an array holds sizes, of which some may depend on the batch."""
    return array.dtype == object


def _room(*arrays: Values) -> None:
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    if np.prod(shape, dtype=object) > MAX_ELEMENTS:
        raise CannotExecuteError("its result is too large to compute")


def _divide(a: Values, b: Values) -> Values:
    _room(a, b)
    if is_symbolic(a) or is_symbolic(b) or np.issubdtype(a.dtype, np.integer):
        return np.asarray(np.frompyfunc(quotient, 2, 1)(a.astype(object), b.astype(object)), object)
    return np.asarray(np.divide(a, b))


def _compare(a: Values, b: Values) -> Values:
    _room(a, b)
    if is_symbolic(a) or is_symbolic(b):
        return np.asarray(np.frompyfunc(equal, 2, 1)(a.astype(object), b.astype(object)), bool)
    return np.asarray(np.equal(a, b))


def _where(condition: Values, a: Values, b: Values) -> Values:
    _room(condition, a, b)
    if is_symbolic(a) != is_symbolic(b):
        a, b = a.astype(object), b.astype(object)
    return np.asarray(np.where(condition, a, b))


def _binary(function: Callable[[Values, Values], Any]) -> Callable[[Values, Values], Values]:
    def compute(a: Values, b: Values) -> Values:
        _room(a, b)
        if is_symbolic(a) != is_symbolic(b):
            a, b = a.astype(object), b.astype(object)
        return np.asarray(function(a, b))

    return compute


ARITHMETIC: Final[dict[str, Callable[..., Values]]] = {
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _divide,
    "Equal": _compare,
    "Neg": np.negative,
    "Sqrt": np.sqrt,
    "Where": _where,
}
"""What computes each operator's result, by its type."""
