"""Short ONNX text as graphs."""

from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper

from shufflectl.converters.graph import Graph


def graph_from_text(text: str, weights: Mapping[str, NDArray[Any]] | None = None) -> Graph:
    """Return the graph that ONNX's textual syntax describes, with initialisers and inferred shapes.

    ``text`` is the graph alone, as ``g (float[1,3,8,8] image) => (float[1,4,8,8] y) { y = Relu (image) }``.
    """
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]>\n' + text)
    for name, array in (weights or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type.lower()}_{index}"
    return Graph(ir.from_proto(model))
