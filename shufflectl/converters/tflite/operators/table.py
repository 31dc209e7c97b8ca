"""How each ONNX operator is written with TFLite's builtin operators: one table, a module for each kind.

Every function takes the emitter and the node. It asks for its inputs in the order of axes that the TFLite
operator wants (`Emitter.settle`), makes its outputs (`Emitter.result`) and appends operators. What it cannot
express exactly it refuses with a reason. ``docs/add-an-operator.md`` walks through an addition.
"""

from typing import Final

from shufflectl.converters.tflite.emitter import Handler
from shufflectl.converters.tflite.operators import elementwise, movement, padding, pooling, products
from shufflectl.converters.tflite.operators.resize import resize

__all__ = ["OPERATORS"]

OPERATORS: Final[dict[str, Handler]] = {
    **products.OPERATORS,
    **pooling.OPERATORS,
    **elementwise.OPERATORS,
    **movement.OPERATORS,
    **padding.OPERATORS,
    "Resize": resize,
}
"""The emit function of each operator of ONNX."""
