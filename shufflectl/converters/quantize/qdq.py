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

Codes of weights have the weights' name. Everything else that is added has a letter and a number, because in a
small network names are a tenth of the file: ``f7`` is what tensor 7 is before it is rounded and ``q7`` its
codes, ``b`` are biases in codes, ``w`` what weights and biases are after their codes, ``s`` scales and ``z``
zero points. The nodes that round have no names. A bias has no zero point: its operator takes none.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.operators import Weighted, weighted
from shufflectl.converters.quantize.scales import Scale, bias_codes, weight_codes
from shufflectl.errors import GraphError

__all__ = ["ActivationType", "before_rounding", "rounded_name", "with_dequantized_weights", "with_qdq"]

ActivationType = Literal["uint8", "int8"]


def rounded_name(name: str) -> str:
    """Return what an input of that name is called after it is rounded."""
    return f"{name}.rounded"


def before_rounding(graph: Graph) -> dict[str, str]:
    """Return what each tensor that a node's result was rounded to is called before, by its name."""
    found = {}
    for node in graph.nodes:
        source = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        maker = source.producer() if source is not None else None
        given = maker.inputs[0] if maker is not None else None
        if given is not None and given.producer() is not None:
            found[str(node.outputs[0].name)] = str(given.name)
    return found


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
        self._zero_points: dict[tuple[int, ...], ir.Value] = {}
        self._numbers = Counter[str]()
        self._taken = {
            str(v.name) for node in self._core for v in (*node.outputs, *node.inputs) if v is not None
        }
        self._taken |= {str(v.name) for v in (*graph.inputs, *graph.outputs)} | set(self._core.initializers)

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
            value.name = self._new("f")
        codes = ir.Value(name=self._new("q"))
        rounded = ir.Value(
            name=name if maker is not None else rounded_name(name), shape=value.shape, type=value.type
        )
        self._origins[str(rounded.name)] = name
        nodes = [
            ir.Node("", "QuantizeLinear", [value, *parameters], outputs=[codes]),
            ir.Node("", "DequantizeLinear", [codes, *parameters], outputs=[rounded]),
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
        zeros = self._zeros(codes.scales.shape)
        self._constant_input(
            node,
            1,
            str(node.inputs[1].name if node.inputs[1] is not None else node.name),
            codes.codes,
            codes.scales,
            codes.axis,
            [zeros],
        )
        if source is not None and bias is not None and node.inputs[2] is not None:
            scales = (np.float64(source.scale) * codes.scales.astype(np.float64)).astype(np.float32)
            self._constant_input(node, 2, self._new("b"), bias_codes(bias, source, codes), scales, 0)

    def _constant_input(
        self,
        node: ir.Node,
        index: int,
        name: str,
        codes: NDArray[Any],
        scales: NDArray[np.float32],
        axis: int,
        zeros: Sequence[ir.Value] = (),
    ) -> None:
        old = node.inputs[index]
        value = ir.Value(name=self._new("w"))
        node.replace_input_with(index, value)
        if old is not None and not old.uses() and not old.is_graph_input():
            self._core.initializers.pop(str(old.name), None)
        while name in self._core.initializers:
            name += ".codes"
        inputs = [self._initializer(name, codes), self._initializer(self._new("s"), scales), *zeros]
        attributes = [ir.AttrInt64("axis", axis)] if scales.ndim else []
        self._core.insert_before(node, ir.Node("", "DequantizeLinear", inputs, attributes, outputs=[value]))

    def _grid(self, scale: Scale) -> tuple[ir.Value, ir.Value]:
        """Return step and zero point as constants, which tensors of one grid share."""
        if scale not in self._grids:
            step = self._initializer(self._new("s"), np.asarray(scale.scale, np.float32))
            zero = np.asarray(scale.zero_point + self._offset, self._dtype)
            self._grids[scale] = (step, self._initializer(self._new("z"), zero))
        return self._grids[scale]

    def _zeros(self, shape: tuple[int, ...]) -> ir.Value:
        """Return zero points of weights as a constant, which weights of as many rows share."""
        if shape not in self._zero_points:
            self._zero_points[shape] = self._initializer(self._new("z"), np.zeros(shape, np.int8))
        return self._zero_points[shape]

    def _new(self, letter: str) -> str:
        """Return the next name of that letter and a number that nothing has."""
        while True:
            name = f"{letter}{self._numbers[letter]}"
            self._numbers[letter] += 1
            if name not in self._taken:
                return name

    def _initializer(self, name: str, array: NDArray[Any]) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self._core.register_initializer(value)
        return value
