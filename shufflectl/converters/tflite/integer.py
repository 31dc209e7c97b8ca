"""Turns the operators of a float TFLite file into integer operators, by the scales of the graph.

Given, with scales for ``x`` and ``z``::

    CONV_2D [x float, weights float, bias float] -> z float

Result::

    CONV_2D [x int8, weights int8 (a scale a row), bias int32] -> z int8

Every tensor with a scale is one of int8 codes. An operator computes in codes where its kernel rounds once, as
a Q/DQ pair behind the float operator does (`converters.quantize.qdq`); any other computes in floats, between
a DEQUANTIZE of what it reads and a QUANTIZE of what it makes, which is what such a pair says literally.

Cases, for each operator:

1. Weights and a bias, over codes: weights with one scale a row, an int32 bias.
2. Data movement and pooling: all its tensors have one scale, and constants among them become codes of it.
3. Arithmetic on two tensors of codes, and means: each tensor has its own scale.
4. LOGISTIC, TANH and SOFTMAX: only with the result's scale that TFLite prescribes.
5. DEQUANTIZE of an image's bytes: QUANTIZE, from the bytes' grid to that of the tensor.
6. Anything else, and what the graph holds in floating point: floats. XNNPACK takes no MAXIMUM or MINIMUM of
   codes, and one that it leaves out would cut the graph in two.

Sources: the quantisation specification (ai.google.dev/edge/litert/models/quantization_spec) for cases 1 to 4;
XNNPACK's delegate asks for the same scales.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import BuiltinOperator as Op

from shufflectl.converters.quantize.prescribed import SIGNED_UNIT, UNIT
from shufflectl.converters.quantize.scales import Scale, bias_codes, weight_codes
from shufflectl.converters.targets import IO
from shufflectl.converters.tflite.flatbuffer import Grid, ModelWriter, Operator, Tensor

__all__ = ["to_integers", "with_int8_weights"]

_ROWS: Final[Mapping[int, int]] = {Op.CONV_2D: 0, Op.DEPTHWISE_CONV_2D: 3, Op.FULLY_CONNECTED: 0}
"""Operators with weights (input 1) and a bias (input 2), and the axis of output channels."""
_MOVES: Final = frozenset(
    {
        *(Op.CONCATENATION, Op.GATHER, Op.MIRROR_PAD, Op.PAD, Op.PADV2, Op.RESHAPE, Op.SLICE, Op.SPLIT),
        *(Op.STRIDED_SLICE, Op.TILE, Op.TRANSPOSE),
    }
)
_ONE_GRID: Final = frozenset(
    {
        *_MOVES,
        *(Op.AVERAGE_POOL_2D, Op.MAX_POOL_2D, Op.REDUCE_MAX, Op.REDUCE_MIN),
        *(Op.RELU, Op.RELU6, Op.RELU_N1_TO_1, Op.RESIZE_BILINEAR, Op.RESIZE_NEAREST_NEIGHBOR),
    }
)
_OWN_GRIDS: Final = frozenset({Op.ADD, Op.LEAKY_RELU, Op.MEAN, Op.MUL, Op.SUB})
_PRESCRIBED: Final[Mapping[int, Scale]] = {
    Op.LOGISTIC: UNIT,
    Op.SOFTMAX: UNIT,
    Op.TANH: SIGNED_UNIT,
}


def to_integers(
    file: ModelWriter, inputs: dict[str, Tensor], outputs: dict[str, Tensor], io: IO = "float"
) -> dict[Tensor, Tensor]:
    """Rewrite a file's operators in place.

    Args:
        file: The writer; tensors with a `Tensor.scale` get codes.
        inputs: The tensors that the caller fills, by name; replaced where their type changes.
        outputs: The tensors that the caller reads, likewise.
        io: What images and results are held as at the border.

    Returns:
        The codes of each inner tensor that has them.
    """
    return _Rewriter(file).run(inputs, outputs, io)


def with_int8_weights(file: ModelWriter, *, dynamic: bool) -> None:
    """Let operators read their weights as int8 codes; everything else stays in floats.

    Args:
        file: The writer.
        dynamic: Whether the operators take the codes themselves, and round what they multiply as its range
            on each image says (TFLite's dynamic range); otherwise a DEQUANTIZE of the weights comes first.
    """
    found = []
    for op in file.operators:
        axis = _ROWS.get(op.code)
        kernel = op.inputs[1] if axis is not None else None
        if axis is None or kernel is None or kernel.data is None or kernel.dtype != np.float32:
            found.append(op)
            continue
        codes = weight_codes(kernel.data, axis)
        grid = Grid(codes.scales, np.zeros(len(codes.scales), np.int64), axis)
        held = file.constant(codes.codes, kernel.name if dynamic else f"{kernel.name}/codes", grid)
        if not dynamic:
            full = file.tensor(kernel.name, kernel.dims, np.float32)
            found.append(Operator(Op.DEQUANTIZE, (held,), (full,), schema.DequantizeOptionsT()))
            held = full
        found.append(Operator(op.code, (op.inputs[0], held, *op.inputs[2:]), op.outputs, op.options))
    file.operators = found


class _Rewriter:
    """One rewrite: the codes and the floats of each tensor, made where they are needed."""

    def __init__(self, file: ModelWriter) -> None:
        self._file = file
        self._codes: dict[Tensor, Tensor] = {}
        self._floats: dict[Tensor, Tensor] = {}

    def run(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor], io: IO) -> dict[Tensor, Tensor]:
        given, self._file.operators = self._file.operators, []
        _hand_on(given)
        entered = set(inputs.values())
        for name, tensor in list(inputs.items()):
            inputs[name] = self._enter(name, tensor, io)
        for op in given:
            self._rewrite(op)
        for name, tensor in list(outputs.items()):
            outputs[name] = self._leave(name, tensor, io)
        return {tensor: held for tensor, held in self._codes.items() if tensor not in entered}

    # The border.

    def _enter(self, name: str, tensor: Tensor, io: IO) -> Tensor:
        if tensor.scale is None or tensor.dtype != np.float32:
            return tensor
        codes = self._file.tensor(f"{name}/codes", tensor.dims, np.int8)
        codes.scale, codes.grid = tensor.scale, Grid.of(tensor.scale)
        self._codes[tensor] = given = codes
        if io == "uint8":
            given = self._file.tensor(f"{name}/unsigned", tensor.dims, np.uint8)
            given.grid = Grid.of(tensor.scale, unsigned=True)
        elif io == "float":
            given = tensor
        if given is not codes:
            self._append(Op.QUANTIZE, [given], [codes], schema.QuantizeOptionsT())
        if given is not tensor:
            given.name, tensor.name = tensor.name, given.name
        return given

    def _leave(self, name: str, tensor: Tensor, io: IO) -> Tensor:
        if tensor.scale is None or tensor.dtype != np.float32:
            return tensor
        if io == "float":
            made = self._float(tensor)
        elif io == "int8":
            made = self._coded(tensor)
        else:
            codes = self._coded(tensor)
            made = self._file.tensor(f"{name}/unsigned", tensor.dims, np.uint8)
            made.grid = Grid.of(tensor.scale, unsigned=True)
            self._append(Op.QUANTIZE, [codes], [made], schema.QuantizeOptionsT())
        self._file.rename(made, name)
        return made

    # Operators.

    def _rewrite(self, op: Operator) -> None:
        if op.code == Op.DEQUANTIZE and op.outputs[0].scale is not None:  # case 5
            self._append(Op.QUANTIZE, op.inputs, [self._coded(op.outputs[0])], schema.QuantizeOptionsT())
        elif op.floating or not self._computes_in_codes(op):
            self._in_floats(op)
        elif op.code in _ROWS:
            self._weighted(op)
        else:
            scale = op.outputs[0].scale
            inputs = [self._operand(t, scale) for t in op.inputs]
            self._append(op.code, inputs, [self._coded(t) for t in op.outputs], op.options)

    @staticmethod
    def _computes_in_codes(op: Operator) -> bool:
        """Whether a kernel does the same in codes, rounding once."""
        read = [t for t in op.inputs if t.data is None and t.dtype == np.float32]
        constants = [t for t in op.inputs if t.data is not None and t.dtype == np.float32]
        scales = [t.scale for t in (*read, *op.outputs)]
        if not read or any(scale is None for scale in scales):
            return False
        if op.code in _ROWS:  # case 1
            return len(read) == 1 and len(constants) == 2
        if op.code in _ONE_GRID:  # case 2
            return len(set(scales)) == 1
        if op.code in _OWN_GRIDS:  # case 3
            return not constants
        return not constants and op.outputs[0].scale == _PRESCRIBED.get(op.code)  # case 4

    def _weighted(self, op: Operator) -> None:
        source, kernel, bias = op.inputs
        if source.scale is None or kernel.data is None or bias.data is None:
            raise RuntimeError(f"operator {op.code} has no weights")
        codes = weight_codes(kernel.data, _ROWS[op.code], source.scale, bias.data)
        zeros = np.zeros(len(codes.scales), np.int64)
        products = (np.float64(source.scale.scale) * codes.scales.astype(np.float64)).astype(np.float32)
        held = [
            self._file.constant(codes.codes, kernel.name, Grid(codes.scales, zeros, codes.axis)),
            self._file.constant(
                bias_codes(bias.data, source.scale, codes), bias.name, Grid(products, zeros, 0)
            ),
        ]
        targets = [self._coded(t) for t in op.outputs]
        self._append(op.code, [self._coded(source), *held], targets, op.options)

    def _in_floats(self, op: Operator) -> None:
        """Case 6."""
        inputs = [self._float(t) if t.data is None else t for t in op.inputs]
        outputs = []
        for tensor in op.outputs:
            if tensor.scale is None:
                outputs.append(tensor)
                continue
            made = self._file.tensor(f"{tensor.name}/float", tensor.dims, np.float32)
            outputs.append(made)
        self._append(op.code, inputs, outputs, op.options)
        for tensor, made in zip(op.outputs, outputs, strict=True):
            if made is not tensor:
                self._append(Op.QUANTIZE, [made], [self._coded(tensor)], schema.QuantizeOptionsT())

    # Tensors.

    def _operand(self, tensor: Tensor, scale: Scale | None) -> Tensor:
        if tensor.dtype != np.float32 or scale is None:
            return tensor
        if tensor.data is None:
            return self._coded(tensor)
        return self._file.constant(scale.codes(tensor.data), tensor.name, Grid.of(scale))

    def _coded(self, tensor: Tensor) -> Tensor:
        """Return a tensor's codes, which have its name."""
        if tensor not in self._codes:
            if tensor.scale is None:
                raise RuntimeError(f"tensor {tensor.name!r} has no scale")
            codes = self._file.tensor(f"{tensor.name}/codes", tensor.dims, np.int8)
            codes.scale, codes.grid = tensor.scale, Grid.of(tensor.scale)
            tensor.name, codes.name = codes.name, tensor.name
            self._codes[tensor] = codes
        return self._codes[tensor]

    def _float(self, tensor: Tensor) -> Tensor:
        """Return a tensor as floats that its codes stand for."""
        if tensor.scale is None or tensor.dtype != np.float32:
            return tensor
        if tensor not in self._floats:
            made = self._file.tensor(f"{self._coded(tensor).name}/float", tensor.dims, np.float32)
            self._append(Op.DEQUANTIZE, [self._coded(tensor)], [made], schema.DequantizeOptionsT())
            self._floats[tensor] = made
        return self._floats[tensor]

    def _append(
        self, code: int, inputs: Sequence[Tensor], outputs: Sequence[Tensor], options: object
    ) -> None:
        self._file.operator(code, inputs, outputs, options)


def _hand_on(operators: Sequence[Operator]) -> None:
    """Give what an operator only moves the scale of what it moves."""
    for op in operators:
        if op.code not in _MOVES:
            continue
        scales = {t.scale for t in op.inputs if t.data is None and t.dtype == np.float32}
        if len(scales) == 1:
            for tensor in op.outputs:
                tensor.scale = tensor.scale or next(iter(scales))
