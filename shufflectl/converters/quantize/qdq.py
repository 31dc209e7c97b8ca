"""Writes the scales of a graph into it as QuantizeLinear and DequantizeLinear nodes (ONNX's Q/DQ form).

Given, with scales for ``x`` and ``z``::

    y = Conv(x, w, b)      # [N, C, H, W]
    z = Relu(y)

Result::

    y = Conv(DQ(Q(x)), DQ(w.codes), DQ(b.codes))
    z = Relu(y)
    ...  reads DQ(Q(z))

Every tensor with a scale is rounded once, where it is made, and every reader takes the rounded one, which has
the tensor's name; an input keeps its own, and the rounded one is called ``.rounded``. A runtime
that knows integer kernels replaces DQ, operator, Q by one of them; any other computes the same in floating
point. Activations are uint8 or int8, weights int8 with one scale a row, biases int32.
"""

from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.operators import Weighted, weighted
from shufflectl.converters.quantize.scales import Scale, bias_codes, weight_codes
from shufflectl.errors import GraphError

__all__ = ["ActivationType", "float_name", "rounded_name", "with_dequantized_weights", "with_qdq"]

ActivationType = Literal["uint8", "int8"]


def rounded_name(name: str) -> str:
    """Return what an input of that name is called after it is rounded."""
    return f"{name}.rounded"


def float_name(name: str) -> str:
    """Return what a tensor of that name is called before it is rounded."""
    return f"{name}.float"


def with_qdq(graph: Graph, activations: ActivationType = "uint8") -> Graph:
    """Return a graph with scales as a plain graph with Q/DQ nodes.

    Raises:
        GraphError: The graph has no scales, or a weight is not finite.
    """
    if graph.quantization is None:
        raise GraphError("the graph has no scales", hint="calibrate it first")
    copy = graph.clone()
    copy.quantization = None
    writer = _Writer(copy, graph.quantization.scales, activations)
    for value in [*copy.inputs, *(v for node in copy.nodes for v in node.outputs)]:
        if str(value.name) in graph.quantization.scales:
            writer.round(value)
    for node in copy.nodes:
        found = weighted(node)
        if found is not None and str(node.name) not in graph.quantization.floats:
            source = graph.quantization.scales.get(writer.origin(found.data))
            if source is not None:
                writer.weights(found, source)
    return copy


def with_dequantized_weights(graph: Graph) -> Graph:
    """Return a graph in floating point whose weights are held as int8 codes behind DequantizeLinear.

    Raises:
        GraphError: A weight is not finite.
    """
    copy = graph.clone()
    writer = _Writer(copy, {}, "int8")
    for node in copy.nodes:
        found = weighted(node)
        if found is not None:
            writer.weights(found)
    return copy


class _Writer:
    def __init__(self, graph: Graph, scales: Any, activations: ActivationType) -> None:
        self._graph = graph
        self._core = graph.model.graph
        self._scales = scales
        self._offset = 128 if activations == "uint8" else 0
        self._dtype = np.uint8 if activations == "uint8" else np.int8
        self._origins: dict[str, str] = {}
        self._grids: dict[Scale, tuple[ir.Value, ir.Value]] = {}
        self._zero_points: dict[tuple[tuple[int, ...], str], ir.Value] = {}

    def origin(self, value: ir.Value) -> str:
        """Return the name of the tensor that a rounded one is of."""
        name = str(value.name)
        return self._origins.get(name, name)

    def round(self, value: ir.Value) -> None:
        """Let every reader of a tensor, and the outside, take it rounded."""
        name, uses = str(value.name), tuple(value.uses())
        scale = self._scales[name]
        parameters = self._grid(scale)
        output, maker = value.is_graph_output(), value.producer()
        if maker is not None:
            value.name = float_name(name)
        codes = ir.Value(name=f"{name}.codes")
        rounded = ir.Value(
            name=name if maker is not None else rounded_name(name), shape=value.shape, type=value.type
        )
        self._origins[str(rounded.name)] = name
        nodes = [
            ir.Node("", "QuantizeLinear", [value, *parameters], outputs=[codes], name=str(codes.name)),
            ir.Node("", "DequantizeLinear", [codes, *parameters], outputs=[rounded], name=f"{name}.rounded"),
        ]
        if maker is None:
            self._core.insert_before(self._core[0], nodes)
        else:
            self._core.insert_after(maker, nodes)
        for use in uses:
            use.node.replace_input_with(use.idx, rounded)
        if output:
            for index, outer in enumerate(self._core.outputs):
                if outer is value:
                    self._core.outputs[index] = rounded

    def weights(self, found: Weighted, source: Scale | None = None) -> None:
        """Let a node read its weights as codes, and its bias where what it multiplies is codes too."""
        node, bias = found.node, found.bias
        codes = weight_codes(found.weights, found.axis, source, bias)
        base = str(node.inputs[1].name if node.inputs[1] is not None else node.name)
        self._constant_input(node, 1, base, codes.codes, codes.scales, codes.axis)
        if source is not None and bias is not None and node.inputs[2] is not None:
            scales = (np.float64(source.scale) * codes.scales.astype(np.float64)).astype(np.float32)
            self._constant_input(
                node, 2, f"{node.inputs[2].name}", bias_codes(bias, source, codes), scales, 0
            )

    def _constant_input(
        self,
        node: ir.Node,
        index: int,
        base: str,
        codes: NDArray[Any],
        scales: NDArray[np.float32],
        axis: int,
    ) -> None:
        name = f"{node.name}.{base}" if self._core.initializers.get(f"{base}.codes") is not None else base
        held = self._initializer(f"{name}.codes", codes)
        inputs = [held, self._initializer(f"{name}.scale", scales)]
        inputs.append(self._zeros(scales.shape, codes.dtype))
        value = ir.Value(name=f"{name}.rounded")  # its type and shape follow, and files are smaller without
        attributes = [ir.AttrInt64("axis", axis)] if scales.ndim else []
        made = ir.Node("", "DequantizeLinear", inputs, attributes, outputs=[value], name=str(value.name))
        self._core.insert_before(node, made)
        old = node.inputs[index]
        node.replace_input_with(index, value)
        if old is not None and not old.uses() and not old.is_graph_input():
            self._core.initializers.pop(str(old.name), None)

    def _grid(self, scale: Scale) -> tuple[ir.Value, ir.Value]:
        """Return step and zero point as constants, which tensors of one grid share."""
        if scale not in self._grids:
            base = f"grid{len(self._grids)}"
            step = self._initializer(f"{base}.scale", np.asarray(scale.scale, np.float32))
            zero = np.asarray(scale.zero_point + self._offset, self._dtype)
            self._grids[scale] = (step, self._initializer(f"{base}.zero", zero))
        return self._grids[scale]

    def _zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ir.Value:
        """Return zero points as a constant, which weights of as many rows share."""
        key = (shape, dtype.name)
        if key not in self._zero_points:
            name = ".".join(["zero", dtype.name, *map(str, shape)])
            self._zero_points[key] = self._initializer(name, np.zeros(shape, dtype))
        return self._zero_points[key]

    def _initializer(self, name: str, array: NDArray[Any]) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self._core.register_initializer(value)
        return value
