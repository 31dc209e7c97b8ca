"""Grids that do not depend on images: those of functions whose results have bounds, and of pixels.

TFLite computes a sigmoid, a softmax and a hyperbolic tangent in codes only where the result has one grid,
the same for every network (ai.google.dev/edge/litert/models/quantization_spec); XNNPACK asks for it as well.
It ends a step below 1, and what lies above gets the last code. Pixels are codes already, of a grid with steps
of 1.
"""

from collections.abc import Mapping
from typing import Final

import onnx_ir as ir

from shufflectl.converters.quantize.scales import Scale

__all__ = ["PIXELS", "SIGNED_UNIT", "UNIT", "holds", "prescribed"]

UNIT: Final = Scale(1 / 256, -128)
"""0 to 255/256."""

SIGNED_UNIT: Final = Scale(1 / 128, 0)
"""-1 to 127/128."""

PIXELS: Final = Scale(1.0, -128)
"""0 to 255."""

_FUNCTIONS: Final[Mapping[str, Scale]] = {"Sigmoid": UNIT, "Softmax": UNIT, "Tanh": SIGNED_UNIT}


def prescribed(value: ir.Value) -> Scale | None:
    """Return the grid that a tensor has whatever the images; None where they decide."""
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Cast":
        given = node.inputs[0]
        return PIXELS if given is not None and given.dtype == ir.DataType.UINT8 else None
    return _FUNCTIONS.get(node.op_type)


def holds(scale: Scale, low: float, high: float) -> bool:
    """Whether a grid has a code within a step of every number from ``low`` to ``high``."""
    first, last = scale.range
    return first - scale.scale <= low and high <= last + scale.scale
