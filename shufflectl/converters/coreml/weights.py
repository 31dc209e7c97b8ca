"""How a program holds the weights of its convolutions and matrices: as numbers, as codes, or as a palette.

Codes and palettes are operations of their own in MIL (``constexpr_...``), which Core ML evaluates when it
loads a model or inside a kernel; to operators they are constants.

- ``int8``: the codes that every other format has; biases are the numbers that the int32 codes of other
  formats stand for.
- ``int8-weights``: codes, one scale a row; biases as they are.
- ``palette8``, ``palette6``, ``palette4``: places in a table of 256, 64 or 16 numbers. Small tensors and
  biases as they are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.coreml.palette import SMALLEST, Palette, palettised
from shufflectl.converters.graph import Quantization
from shufflectl.converters.quantize.operators import weighted
from shufflectl.converters.quantize.scales import WeightCodes, bias_codes, weight_codes
from shufflectl.converters.targets import PALETTES, Precision
from shufflectl.errors import GraphError

__all__ = ["Codes", "HeldWeights", "hold", "operand"]

_HALF = np.finfo(np.float16)


@dataclass(frozen=True)
class Codes:
    """Weights as codes; the number of a code is ``code * scale`` of its row.

    Attributes:
        codes: int8, the shape of the weights.
        scales: float32 numbers that fp16 holds, one a row.
        axis: The axis of rows.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int

    def transposed(self) -> "Codes":
        """Return a matrix with rows for columns."""
        return Codes(np.ascontiguousarray(self.codes.T), self.scales, 1 - self.axis)


@dataclass(frozen=True)
class HeldWeights:
    """An operator's constants as its file holds them.

    Attributes:
        weights: Codes or a palette.
        bias: float32, one number an output channel; None where the operator has none.
    """

    weights: Codes | Palette
    bias: NDArray[np.float32] | None


def hold(node: ir.Node, precision: Precision, quantization: Quantization | None) -> HeldWeights | None:
    """Return how a file of that precision holds a node's weights; None where it holds them as numbers.

    Raises:
        GraphError: A weight is not finite, or too large for fp16.
    """
    found = weighted(node)
    if found is None:
        return None
    if precision == "int8" and quantization is not None:
        source = quantization.scales.get(str(found.data.name))
        if source is None or str(node.name) in quantization.floats:
            return None
        codes = weight_codes(found.weights, found.axis, source, found.bias)
        bias = found.bias
        if bias is not None:
            steps = np.float64(source.scale) * codes.scales.astype(np.float64)
            bias = (bias_codes(bias, source, codes) * steps).astype(np.float32)
        return HeldWeights(_in_half(node, codes), bias)
    if precision == "int8-weights":
        return HeldWeights(_in_half(node, weight_codes(found.weights, found.axis)), found.bias)
    if precision in PALETTES and found.weights.size > SMALLEST:
        largest = float(np.abs(found.weights).max())
        if not largest <= float(_HALF.max):
            raise GraphError(
                f"node {node.name!r} has weights up to {largest:g}, and fp16 ends at {float(_HALF.max):g}",
                hint="check the checkpoint, or export in fp32",
            )
        return HeldWeights(palettised(found.weights, PALETTES[precision]), found.bias)
    return None


def _in_half(node: ir.Node, found: WeightCodes) -> Codes:
    """Return codes with scales that fp16 holds.

    All but the tiniest are so already. A row with such a scale gets the next larger one that fp16 has, and
    the codes that come closest to its numbers.
    """
    largest = float(found.scales.max(initial=0.0))
    if largest > float(_HALF.max):
        raise GraphError(
            f"node {node.name!r} has weights in steps of {largest:g}, and fp16 ends at {float(_HALF.max):g}",
            hint="check the checkpoint, or export in fp32",
        )
    half = found.scales.astype(np.float16)
    half = np.where(half < found.scales, np.nextafter(half, np.float16(np.inf)), half)
    scales = half.astype(np.float32)
    shape = [-1 if axis == found.axis else 1 for axis in range(found.codes.ndim)]
    codes = np.rint(found.codes * (found.scales / scales).reshape(shape)).astype(np.int8)
    return Codes(codes, scales, found.axis)


def operand(mb: Any, types: Any, held: Codes | Palette, name: str, *, dense: bool) -> Any:
    """Append the operation that stands for weights in a program.

    Args:
        mb: The MIL builder.
        types: MIL's types.
        held: The weights.
        name: The operation's name.
        dense: Whether the operator set is that of iOS 18, in which the places of a palette have a type of
            their width; before, they are packed into bytes.
    """
    if isinstance(held, Codes):
        return mb.constexpr_affine_dequantize(
            quantized_data=held.codes,
            zero_point=np.zeros(held.scales.shape, np.int8),
            scale=held.scales,
            axis=np.int32(held.axis),
            name=name,
        )
    if dense:
        kind = types.nptype_from_builtin(types.string_to_builtin(f"uint{held.bits}"))
        table = held.table.reshape(*[1] * held.places.ndim, -1, 1)
        return mb.constexpr_lut_to_dense(indices=held.places.astype(kind), lut=table, name=name)
    return mb.constexpr_lut_to_dense(
        indices=held.packed(), lut=held.table, shape=np.asarray(held.places.shape, np.uint32), name=name
    )
