"""What an ONNX file need not say, or need not say twice.

A graph with codes has three tensors and three nodes for each of the network's, so what a file says about them
all counts where the network is small: types and shapes alone are a twelfth of ``shufflenet_v2_x0_5``.

- Types and shapes of tensors between nodes follow from those of the inputs (shape inference), and a constant
  has its own.
- A node's name that its result has too, or that a node got for rounding; attributes of convolutions that have
  the operator's default value.
- Constants of the same bytes. Given::

      a = Slice(x, a.starts, a.ends, a.axes)      # [0], [12], [1]
      b = Slice(y, b.starts, b.ends, b.axes)      # [0], [12], [1]

  Result::

      a = Slice(x, a.starts, a.ends, a.axes)
      b = Slice(y, a.starts, a.ends, a.axes)
"""

from typing import Final

import onnx
import onnx_ir as ir

__all__ = ["drop_implied", "drop_shapes", "share_constants"]

_ONES: Final = frozenset({"dilations", "strides"})
"""Attributes of a convolution that are ones where they are not given."""

_ROUNDING: Final = frozenset({"DequantizeLinear", "QuantizeLinear"})


def share_constants(graph: ir.Graph) -> bool:
    """Let nodes read one constant in place of others of the same type, shape and bytes; whether any did.

    The first of them stays. One that is an input or an output of the graph is left alone.
    """
    kept: dict[tuple[object, ...], ir.Value] = {}
    changed = False
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        first = kept.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if first is value:
            continue
        for use in tuple(value.uses()):
            use.node.replace_input_with(use.idx, first)
        del graph.initializers[name]
        changed = True
    return changed


def drop_shapes(graph: onnx.GraphProto, *, inner: bool) -> None:
    """Leave out the types and shapes of constants and, with ``inner``, those of all other tensors inside."""
    kept = []
    if not inner:
        constants = {tensor.name for tensor in graph.initializer}
        kept = [value for value in graph.value_info if value.name not in constants]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def drop_implied(graph: onnx.GraphProto) -> None:
    """Leave out names that say nothing more than results' do, and attributes that are defaults."""
    for node in graph.node:
        if node.op_type in _ROUNDING or (node.output and node.name == node.output[0]):
            node.ClearField("name")
        if node.op_type == "Conv" and node.domain == "":
            kept = [attribute for attribute in node.attribute if not _default(attribute)]
            del node.attribute[:]
            node.attribute.extend(kept)


def _default(attribute: onnx.AttributeProto) -> bool:
    if attribute.name == "group":
        return bool(attribute.i == 1)
    if attribute.name == "pads":
        return not any(attribute.ints)
    return attribute.name in _ONES and set(attribute.ints) == {1}
