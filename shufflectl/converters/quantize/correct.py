"""Takes out of the biases what rounding adds to the result of a layer on average.

1. Weights that are rounded differ by some dW from what they were, and a layer's mean result by that of dW on
   the same input: a constant for each output channel, which goes into the bias (M. Nagel et al., ICCV 2019,
   section 4.2). It is observed in floating point, borders included.
2. What is left, of codes that end at a ReLU and of the layers before, is measured for the last layers: the
   mean result of the graph in codes against that of the floats, one layer after the other, since what one
   is off by reaches those behind it. Several at once would correct the same error again and again (four at
   a time take MobileNet V1 x0.25 from 29 dB to 4), and a deep network one by one would take as many runs as
   it has layers.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.operators import hold, weighted
from shufflectl.converters.quantize.scales import Scale, weight_codes
from shufflectl.errors import DataError

__all__ = ["Means", "biased", "measured_shifts", "probe", "shifted"]

Means = Callable[[Graph, list[str]], Mapping[str, NDArray[np.float64]]]
"""Returns the mean of each channel of what the named nodes' first outputs are before they are rounded. It is
given a graph in floating point with the biases to try."""

_LAST = 4
"""Layers that are measured."""


def biased(graph: Graph) -> list[str]:
    """Return the tensors that weights and a bias make, in the order of the graph."""
    made = [(node, weighted(node)) for node in graph.nodes]
    return [str(node.outputs[0].name) for node, found in made if found is not None and found.bias is not None]


def shifted(graph: Graph, shifts: Mapping[str, NDArray[np.floating]]) -> Graph:
    """Return a graph to whose biases something is added.

    Args:
        graph: A captured graph.
        shifts: One number an output channel, by the tensor that is made.

    Raises:
        DataError: There are more or fewer numbers than channels.
    """
    copy = graph.clone()
    for node in copy.nodes:
        found, name = weighted(node), str(node.outputs[0].name)
        if found is not None and found.bias is not None and name in shifts:
            if shifts[name].shape != found.bias.shape:
                raise DataError(
                    f"the calibration corrects {shifts[name].size} channels of {name!r}, which has "
                    f"{found.bias.size}",
                    hint="calibrate again",
                )
            hold(copy, node, 2, found.bias.astype(np.float64) + shifts[name])
    return copy


def probe(graph: Graph, scales: Mapping[str, Scale]) -> tuple[Graph, dict[str, str]]:
    """Return the graph with every layer a second time, with what rounding adds to its weights in their place.

    Args:
        graph: A captured graph.
        scales: By tensor.

    Returns:
        The graph, and the tensors that the second layers make: by their names the first one's.
    """
    copy = graph.clone()
    made: dict[str, str] = {}
    for node in copy.nodes:
        layer = weighted(node)
        if layer is None or layer.bias is None or str(layer.data.name) not in scales:
            continue
        codes = weight_codes(layer.weights, layer.axis, scales[str(layer.data.name)], layer.bias)
        rounded = codes.codes * layer.along_rows(codes.scales.astype(np.float64))
        name = str(node.outputs[0].name)
        tensor = ir.tensor((rounded - layer.weights).astype(np.float32), name=f"{name}::error.weight")
        weights = ir.Value(
            name=tensor.name,
            shape=ir.Shape(rounded.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        copy.model.graph.register_initializer(weights)
        output = ir.Value(
            name=f"{name}::error", shape=node.outputs[0].shape, type=ir.TensorType(ir.DataType.FLOAT)
        )
        copy.model.graph.insert_after(
            node,
            ir.Node(
                node.domain,
                node.op_type,
                [layer.data, weights],
                node.attributes.values(),
                outputs=[output],
                name=str(output.name),
            ),
        )
        made[str(output.name)] = name
    return copy, made


def measured_shifts(
    graph: Graph, wanted: Mapping[str, NDArray[np.floating]], means: Means
) -> dict[str, NDArray[np.float64]]:
    """Return shifts after which the means of the last layers in codes are those wanted (case 2).

    Args:
        graph: A captured graph, in which case 1 is done.
        wanted: The mean of each channel in floating point, by tensor.
        means: Measures them in codes.
    """
    found: dict[str, NDArray[np.float64]] = {}
    for name in [name for name in biased(graph) if name in wanted][-_LAST:]:
        found[name] = wanted[name].astype(np.float64) - means(shifted(graph, found), [name])[name]
    return found
