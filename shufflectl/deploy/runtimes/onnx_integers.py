"""What the integers in an ONNX file of Q/DQ form stand for."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from shufflectl.converters.quantize.scales import Scale
from shufflectl.deploy.runtimes.base import Integers, bias_flaw

__all__ = ["onnx_integers"]

_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})


def onnx_integers(proto: onnx.ModelProto) -> Integers:
    """Return the grid of every tensor that is rounded or the result of that, and biases with wrong scales.

    What makes no sense, and what a file keeps elsewhere, has no grid: the runtime says whether it can run.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    makers = {name: node for node in proto.graph.node for name in node.output if name}

    def array(name: str) -> NDArray[np.float64] | None:
        tensor = constants.get(name)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        try:
            found = np.asarray(numpy_helper.to_array(tensor))
        except (KeyError, TypeError, ValueError):  # of a type, or with bytes, that are none
            return None
        return found if found.dtype.kind in "fiu" and found.size else None

    def parameters(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        node = makers.get(name)
        if node is None or node.op_type != "DequantizeLinear" or len(node.input) < 2:
            return None
        scale = array(node.input[1])
        if len(node.input) > 2 and node.input[2]:
            zero = array(node.input[2])
        else:  # constants without a zero point have 0
            codes = array(node.input[0])
            zero = None if codes is None or scale is None else np.zeros(scale.shape, codes.dtype)
        return None if scale is None or zero is None else (scale, zero)

    def grid(name: str) -> Scale | None:
        found = parameters(name)
        if found is None or not found[0].size == found[1].size == 1:
            return None
        if found[1].dtype not in (np.uint8, np.int8) or not np.isfinite(found[0]).all():
            return None
        zero = int(found[1].reshape(())) - (128 if found[1].dtype == np.uint8 else 0)
        return Scale(float(found[0].reshape(())), zero)

    given = {value.name for value in proto.graph.input}
    grids = {name: scale for name in makers if (scale := grid(name)) is not None}
    for name in list(grids):
        rounding = makers.get(makers[name].input[0])
        if rounding is not None and rounding.op_type == "QuantizeLinear" and rounding.input:
            grids.setdefault(rounding.input[0], grids[name])
        elif makers[name].input[0] in given:  # codes that the caller gives
            grids.setdefault(makers[name].input[0], grids[name])
    flaws = {}
    for node in proto.graph.node:
        if node.op_type not in _WEIGHTED or len(node.input) < 3 or not node.output:
            continue
        source, weights, bias = grids.get(node.input[0]), parameters(node.input[1]), parameters(node.input[2])
        if source is not None and weights is not None and bias is not None:
            flaw = bias_flaw(
                source, weights[0].astype(np.float32).reshape(-1), bias[0].astype(np.float32).reshape(-1)
            )
            if flaw:
                flaws[_rounded(node.output[0], proto)] = flaw
    return Integers(grids, flaws)


def _rounded(name: str, proto: onnx.ModelProto) -> str:
    """Return the tensor that rounding, behind at most one activation, makes of a layer's result."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for given in node.input:
            readers.setdefault(given, []).append(node)
    for _ in range(3):
        following = readers.get(name, [])
        if len(following) != 1 or not following[0].output:
            break
        name = following[0].output[0]
        if following[0].op_type == "DequantizeLinear":
            break
    return name
