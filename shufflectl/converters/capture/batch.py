"""A symbolic batch without arithmetic on it.

torch.onnx writes the sizes of a dynamic graph as it saw them: Shape, Gather, Mul and Concat compute the
second input of a Reshape from the batch. Runtimes for phones want that input constant. It can be: where the
batch is the only unknown, ONNX's -1 (Reshape), 1 (Expand, which broadcasts) and scales or axes (Resize)
say the same without it.
"""

import math

import numpy as np
import onnx_ir as ir

from shufflectl.converters.graph import Graph
from shufflectl.errors import GraphError

__all__ = ["check_batch_free", "make_batch_free"]


def _dims(value: ir.Value | None) -> tuple[int | str, ...] | None:
    return None if value is None or value.shape is None else Graph.shape(value)


def _constant(
    model: ir.Model, node: ir.Node, index: int, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> None:
    """Make a constant of ``array`` the node's input, in an initialiser of its own."""
    base = f"{node.outputs[0].name}.{('data', 'shape', 'scales', 'sizes')[index]}"
    name, count = base, 0
    while name in model.graph.initializers:
        count += 1
        name = f"{base}_{count}"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    node.replace_input_with(index, value)


def _reshape(model: ir.Model, node: ir.Node) -> bool:
    result = _dims(node.outputs[0])
    if result is None or sum(isinstance(d, str) for d in result) > 1 or 0 in result:
        return False
    # [batch, 116, 28, 28] -> [-1, 2, 58, 28, 28]; a wholly static result needs no -1.
    _constant(model, node, 1, np.asarray([-1 if isinstance(d, str) else d for d in result], np.int64))
    node.attributes.pop("allowzero", None)
    return True


def _expand(model: ir.Model, node: ir.Node) -> bool:
    source, result = _dims(node.inputs[0]), _dims(node.outputs[0])
    if source is None or result is None or len(source) != len(result):
        return False
    if any(isinstance(r, str) and r != s for s, r in zip(source, result, strict=True)):
        return False  # the batch itself is made by broadcasting
    _constant(model, node, 1, np.asarray([1 if isinstance(d, str) else d for d in result], np.int64))
    return True


def _resize(model: ir.Model, node: ir.Node) -> bool:
    source, result = _dims(node.inputs[0]), _dims(node.outputs[0])
    if len(node.inputs) < 4 or source is None or result is None or len(source) != len(result):
        return False
    if "axes" in node.attributes:
        return False
    scales = []
    for s, r in zip(source, result, strict=True):
        if isinstance(s, str) or isinstance(r, str):
            if s != r:
                return False
            scales.append(np.float32(1))
            continue
        scale = np.float32(r / s)
        if float(scale) * s != r or math.floor(float(scale) * s) != r:
            return _resize_axes(model, node, source, result)  # a rounded scale would move the sampling grid
        scales.append(scale)
    _constant(model, node, 2, np.asarray(scales, np.float32))
    node.replace_input_with(3, None)
    return True


def _resize_axes(
    model: ir.Model, node: ir.Node, source: tuple[int | str, ...], result: tuple[int | str, ...]
) -> bool:
    """Give a Resize the sizes of the axes that it changes only: ``axes=[2, 3]``, ``sizes=[14, 7]``."""
    sizes = [size for size in result[2:] if isinstance(size, int)]
    if source[:2] != result[:2] or len(sizes) != len(result) - 2:
        return False
    node.attributes["axes"] = ir.AttrInt64s("axes", list(range(2, len(result))))
    _constant(model, node, 3, np.asarray(sizes, np.int64))
    return True


_REWRITES = {"Reshape": (1, _reshape), "Expand": (1, _expand), "Resize": (3, _resize)}


def make_batch_free(model: ir.Model) -> bool:
    """Replace computed shapes in which only the batch is unknown by constants, in place.

    ::

        Given                                             Result
        x [batch, 116, 28, 28]                            x [batch, 116, 28, 28]
        s = Concat(Gather(Shape(x)), [2, 58, 28, 28])     s = [-1, 2, 58, 28, 28]
        y = Reshape(x, s)  [batch, 2, 58, 28, 28]         y = Reshape(x, s)

    Returns:
        Whether the graph changed.
    """
    changed = False
    for node in model.graph:
        if node.op_type not in _REWRITES or node.domain:
            continue
        index, rewrite = _REWRITES[node.op_type]
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and Graph.constant(value) is None:
            changed |= rewrite(model, node)
    return changed


def check_batch_free(model: ir.Model) -> None:
    """Refuse a graph that still computes with the batch size.

    Raises:
        GraphError: A Shape or Size node is left.
    """
    for node in model.graph:
        if node.op_type in ("Shape", "Size") and not node.domain:
            users = ", ".join(repr(use.node.name) for use in node.outputs[0].uses())
            raise GraphError(
                f"the model computes with the batch size (used by {users or 'an output'}), "
                "which targets for phones cannot express",
                hint="export with a static batch, or keep the batch size out of the model's arithmetic",
            )
