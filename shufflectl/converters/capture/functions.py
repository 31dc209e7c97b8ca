"""The functions of an ONNX model, written out into its graph."""

from typing import Any, Final

import onnx_ir as ir
from onnx_ir.passes import common

from shufflectl.errors import GraphError

__all__ = ["write_out_functions"]

_MAX_NODES: Final = 200_000
"""The most nodes that a graph may have once its functions are written out."""


def write_out_functions(model: ir.Model) -> int:
    """Replace calls of the model's functions by their nodes; return how many functions there were.

    Raises:
        GraphError: They call one another in a circle, or make too many nodes.
    """
    functions = dict(model.functions)
    if not functions:
        return 0
    counts: dict[Any, int] = {}
    pending: set[Any] = set()

    def count(key: Any) -> int:
        if key in pending:
            raise GraphError(
                f"the function {key[1]!r} of the file calls itself", hint="export the model again"
            )
        if key not in counts:
            pending.add(key)
            counts[key] = total(functions[key])
            pending.discard(key)
        return counts[key]

    def total(nodes: Any) -> int:
        found = sum(count(n.op_identifier()) if n.op_identifier() in functions else 1 for n in nodes)
        if found > _MAX_NODES:
            raise GraphError(f"the file's functions stand for more than {_MAX_NODES} nodes")
        return found

    total(model.graph)
    common.InlinePass()(model)
    return len(functions)
