"""Takes out of the biases what rounding the weights adds to them on average.

Weights that are rounded differ by some dW from what they were, and a convolution's mean result by dW·E[x]: a
constant for each output channel, which goes into the bias (M. Nagel et al., ICCV 2019, section 4.2). E[x] is
the mean of each input channel as observed in floating point; at a border, where padding stands for pixels, it
is a little less than that.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.operators import hold, weighted
from shufflectl.converters.quantize.scales import Scale, weight_codes

__all__ = ["corrected"]


def corrected(graph: Graph, means: Mapping[str, NDArray[np.float32]], scales: Mapping[str, Scale]) -> Graph:
    """Return a graph with corrected biases.

    Args:
        graph: A captured graph.
        means: The mean of each channel of the tensors that weights multiply, as observed on this graph; what
            is missing is left alone.
        scales: By tensor.
    """
    copy = graph.clone()
    for node in copy.nodes:
        found = weighted(node)
        name = "" if found is None else str(found.data.name)
        if found is None or found.bias is None or name not in means or name not in scales:
            continue
        codes = weight_codes(found.weights, found.axis, scales[name], found.bias)
        rounded = codes.codes * found.along_rows(codes.scales.astype(np.float64))
        others = tuple(axis for axis in range(rounded.ndim) if axis != found.axis)
        added = (rounded - found.weights) * found.along_columns(means[name].astype(np.float64))
        hold(copy, node, 2, found.bias - added.sum(axis=others))
    return copy
