"""The versions of TFLite operators and the oldest runtime that has them.

A runtime refuses an operator of a version that it does not know, so a file states the lowest version
whose kernel does what the operator's options and types ask. The figures follow TensorFlow Lite's
``tools/versioning/op_version.cc`` and ``runtime_version.cc`` for the types that the emitter writes (float32,
float16 constants, uint8 images, int8 codes, int32, int64 and bool).
"""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from ai_edge_litert.schema_py_generated import BuiltinOperator as Op

__all__ = ["minimum_runtime", "operator_version"]


_CODES: Final[Mapping[int, int]] = MappingProxyType(
    {
        **dict.fromkeys((Op.ADD, Op.SUB, Op.MUL, Op.AVERAGE_POOL_2D, Op.CONCATENATION, Op.GATHER), 2),
        **dict.fromkeys((Op.LOGISTIC, Op.MAXIMUM, Op.MAX_POOL_2D, Op.MEAN, Op.MINIMUM, Op.MIRROR_PAD), 2),
        **dict.fromkeys((Op.PAD, Op.PADV2, Op.REDUCE_MAX, Op.REDUCE_MIN, Op.RELU, Op.RELU6), 2),
        **dict.fromkeys((Op.RESIZE_BILINEAR, Op.RESIZE_NEAREST_NEIGHBOR, Op.SLICE, Op.SOFTMAX), 2),
        **dict.fromkeys((Op.SPLIT, Op.STRIDED_SLICE, Op.TANH, Op.TRANSPOSE), 2),
        Op.TILE: 3,
    }
)
"""The version of operators over int8 codes, where no option asks for a later one."""


def operator_version(
    code: int,
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[Any],
    options: Any,
    *,
    rows: bool = False,
) -> int:
    """Return the version of an operator.

    Args:
        code: The builtin operator.
        shapes: The shapes of its inputs.
        dtypes: The numpy types of its inputs.
        options: Its options in the schema's object API; None where it has none.
        rows: Whether an input has a scale for each place of an axis.
    """
    data = dtypes[1 if code == Op.SPLIT else 0] if dtypes else None
    return max(
        _for_options(code, shapes, dtypes, options),
        _CODES.get(code, 1) if data == np.int8 else 1,
        _for_weights(code, dtypes, rows=rows),
    )


def _for_weights(code: int, dtypes: Sequence[Any], *, rows: bool) -> int:
    """Return the version that int8 weights ask for, over codes or over floats (hybrid kernels)."""
    if code == Op.DEQUANTIZE:
        return (5 if rows else 2) if dtypes[0] == np.int8 else 1
    if len(dtypes) < 2 or dtypes[1] != np.int8:
        return 1
    coded = dtypes[0] == np.int8
    match code:
        case Op.CONV_2D:
            return 3 if coded else 5
        case Op.DEPTHWISE_CONV_2D:
            return 3 if coded else 6
        case Op.FULLY_CONNECTED:
            return 4 if coded else 12
    return 1


def _for_options(code: int, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[Any], options: Any) -> int:
    """Return the version that options and other types ask for."""
    rank = max((len(shape) for shape in shapes), default=0)
    broadcast = len(shapes) > 1 and shapes[0] != shapes[1]
    match code:
        case Op.CONV_2D:
            return 6 if shapes[0][3] != shapes[1][3] else 1  # 6: grouped
        case Op.DEPTHWISE_CONV_2D:
            return 2 if (options.dilationHFactor, options.dilationWFactor) != (1, 1) else 1
        case Op.FULLY_CONNECTED:
            return 5 if options.keepNumDims else 1
        case Op.DEQUANTIZE:
            return 3 if dtypes[0] == np.float16 else 1
        case Op.TRANSPOSE:
            return 6 if rank > 5 else 4 if rank > 4 else 3 if dtypes[0] == np.bool_ else 1
        case Op.SLICE:
            return 5 if rank > 4 else 1
        case Op.STRIDED_SLICE | Op.PAD | Op.PADV2:
            return 4 if rank > 4 else 1
        case Op.MAXIMUM | Op.MINIMUM | Op.SUB:
            return 3 if broadcast and rank > 4 else 1
        case Op.DIV:
            return 2 if broadcast and rank > 4 else 1
        case Op.SPLIT:
            return 3 if dtypes[1] == np.int32 else 1
        case Op.RESIZE_BILINEAR:
            return 3 if options.halfPixelCenters else 1
        case Op.RESIZE_NEAREST_NEIGHBOR:
            return 3 if options.halfPixelCenters or options.alignCorners else 1
        case Op.GATHER:
            return 3 if dtypes[0] == np.bool_ else 1
    return 1


_RUNTIMES: Final = {
    (Op.ADD, 2): "1.14.0",
    (Op.AVERAGE_POOL_2D, 2): "1.14.0",
    (Op.CONCATENATION, 2): "1.14.0",
    (Op.CONV_2D, 3): "1.14.0",
    (Op.CONV_2D, 5): "2.4.0",
    (Op.DEPTHWISE_CONV_2D, 3): "1.14.0",
    (Op.DEPTHWISE_CONV_2D, 6): "2.3.0",
    (Op.DEQUANTIZE, 2): "1.14.0",
    (Op.DEQUANTIZE, 5): "2.7.0",
    (Op.FULLY_CONNECTED, 4): "1.14.0",
    (Op.FULLY_CONNECTED, 12): "2.17.0",
    (Op.GATHER, 2): "1.14.0",
    (Op.LOGISTIC, 2): "1.14.0",
    (Op.MAXIMUM, 2): "1.14.0",
    (Op.MAX_POOL_2D, 2): "1.14.0",
    (Op.MEAN, 2): "1.14.0",
    (Op.MINIMUM, 2): "1.14.0",
    (Op.MIRROR_PAD, 2): "2.3.0",
    (Op.MUL, 2): "1.14.0",
    (Op.PAD, 2): "1.14.0",
    (Op.PADV2, 2): "1.14.0",
    (Op.QUANTIZE, 1): "1.14.0",
    (Op.REDUCE_MAX, 2): "1.14.0",
    (Op.REDUCE_MIN, 2): "1.14.0",
    (Op.RELU, 2): "2.1.0",
    (Op.RELU6, 2): "1.14.0",
    (Op.RESIZE_BILINEAR, 2): "1.14.0",
    (Op.RESIZE_NEAREST_NEIGHBOR, 2): "1.14.0",
    (Op.SLICE, 2): "1.14.0",
    (Op.SOFTMAX, 2): "1.14.0",
    (Op.SPLIT, 2): "1.14.0",
    (Op.STRIDED_SLICE, 2): "1.14.0",
    (Op.SUB, 2): "1.14.0",
    (Op.TANH, 2): "1.14.0",
    (Op.TILE, 3): "2.8.0",
    (Op.TRANSPOSE, 2): "1.14.0",
    (Op.ADD, 1): "1.5.0",
    (Op.AVERAGE_POOL_2D, 1): "1.5.0",
    (Op.BATCH_MATMUL, 1): "2.3.0",
    (Op.CAST, 1): "1.5.0",
    (Op.CEIL, 1): "1.14.0",
    (Op.CONCATENATION, 1): "1.5.0",
    (Op.CONV_2D, 1): "1.5.0",
    (Op.CONV_2D, 6): "2.9.0",
    (Op.DEPTHWISE_CONV_2D, 1): "1.5.0",
    (Op.DEPTHWISE_CONV_2D, 2): "1.12.0",
    (Op.DEQUANTIZE, 1): "1.5.0",
    (Op.DEQUANTIZE, 3): "1.15.0",
    (Op.DIV, 1): "1.6.0",
    (Op.DIV, 2): "2.3.0",
    (Op.ELU, 1): "1.14.0",
    (Op.EXP, 1): "1.7.0",
    (Op.FLOOR, 1): "1.9.0",
    (Op.FULLY_CONNECTED, 1): "1.5.0",
    (Op.FULLY_CONNECTED, 5): "2.0.0",
    (Op.GATHER, 1): "1.6.0",
    (Op.GATHER, 3): "1.15.0",
    (Op.GELU, 1): "2.9.0",
    (Op.HARD_SWISH, 1): "1.15.0",
    (Op.LEAKY_RELU, 1): "1.13.1",
    (Op.LOG, 1): "1.14.0",
    (Op.LOG_SOFTMAX, 1): "1.14.0",
    (Op.LOGISTIC, 1): "1.14.0",
    (Op.MAXIMUM, 1): "1.14.0",
    (Op.MAXIMUM, 3): "2.3.0",
    (Op.MAX_POOL_2D, 1): "1.5.0",
    (Op.MEAN, 1): "1.6.0",
    (Op.MINIMUM, 1): "1.14.0",
    (Op.MINIMUM, 3): "2.3.0",
    (Op.MIRROR_PAD, 1): "1.13.1",
    (Op.MUL, 1): "1.5.0",
    (Op.PAD, 1): "1.5.0",
    (Op.PAD, 4): "2.6.0",
    (Op.PADV2, 1): "1.9.0",
    (Op.PADV2, 4): "2.6.0",
    (Op.POW, 1): "1.10.0",
    (Op.PRELU, 1): "1.8.0",
    (Op.REDUCE_MAX, 1): "1.11.0",
    (Op.REDUCE_MIN, 1): "1.11.0",
    (Op.RELU, 1): "1.5.0",
    (Op.RELU_N1_TO_1, 1): "1.5.0",
    (Op.RELU6, 1): "1.5.0",
    (Op.RESHAPE, 1): "1.5.0",
    (Op.RESIZE_BILINEAR, 1): "1.7.0",
    (Op.RESIZE_BILINEAR, 3): "2.2.0",
    (Op.RESIZE_NEAREST_NEIGHBOR, 1): "1.13.1",
    (Op.RESIZE_NEAREST_NEIGHBOR, 3): "2.3.0",
    (Op.SLICE, 1): "1.14.0",
    (Op.SLICE, 5): "2.5.0",
    (Op.SOFTMAX, 1): "1.5.0",
    (Op.SPLIT, 1): "1.5.0",
    (Op.SPLIT, 3): "1.14.0",
    (Op.SQRT, 1): "1.10.0",
    (Op.STRIDED_SLICE, 1): "1.6.0",
    (Op.STRIDED_SLICE, 4): "2.2.0",
    (Op.SUB, 1): "1.6.0",
    (Op.SUB, 3): "2.3.0",
    (Op.SUM, 1): "1.10.0",
    (Op.TANH, 1): "1.14.0",
    (Op.TILE, 1): "1.10.1",
    (Op.TRANSPOSE, 1): "1.6.0",
    (Op.TRANSPOSE, 3): "1.15.0",
    (Op.TRANSPOSE, 4): "2.3.0",
    (Op.TRANSPOSE, 6): "2.12.0",
    (Op.ABS, 1): "1.13.0",
    (Op.NEG, 1): "1.9.0",
}


_ROWS: Final = {Op.FULLY_CONNECTED: "2.14.0"}
"""The oldest runtime that was seen to read a scale for each row; see docs/targets-tflite.md."""


def minimum_runtime(operators: set[tuple[int, int]], *, rows: Collection[int] = ()) -> str:
    """Return the oldest TensorFlow Lite runtime that a file runs on.

    Args:
        operators: The file's (operator, version) pairs.
        rows: Operators whose weights have a scale for each row, which no version says.
    """
    known = ["1.5.0", *(_RUNTIMES.get(pair, "1.5.0") for pair in operators)]
    known += [_ROWS[code] for code in rows if code in _ROWS]
    return max(known, key=lambda version: tuple(int(part) for part in version.split(".")))
