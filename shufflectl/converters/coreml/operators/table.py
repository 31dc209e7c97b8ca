"""How each ONNX operator is spelled in MIL: one table, one function a spelling; each kind has a module.

A function reads the node's inputs from an `Emission`, appends MIL operations and binds the node's outputs.
To add an operator, write the function and its row in the module of its kind, and give the reference runtime
what MIL operation is new (docs/targets-coreml.md has the checklist). What MIL cannot express exactly is
refused with the reason.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import onnx_ir as ir

from shufflectl.converters.coreml.emission import Operator
from shufflectl.converters.coreml.operators import elementwise, movement, pooling, products
from shufflectl.converters.coreml.operators.resize import resize

__all__ = ["OPERATORS", "needed_inputs"]

OPERATORS: Final[Mapping[str, Operator]] = MappingProxyType(
    {
        **elementwise.OPERATORS,
        **movement.OPERATORS,
        **pooling.OPERATORS,
        **products.OPERATORS,
        "Resize": resize,
    }
)


def needed_inputs(node: ir.Node) -> list[ir.Value]:
    """Return the inputs whose values the emitted node reads at run time.

    A reshape reads its target from the inferred shape, so what a graph computes for it is not emitted.
    """
    inputs = node.inputs[:1] if node.op_type == "Reshape" else node.inputs
    return [value for value in inputs if value is not None]
