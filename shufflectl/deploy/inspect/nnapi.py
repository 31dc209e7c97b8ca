"""NNAPI through its delegate, as of LiteRT's source tree in 2026.

The rules are those of `NNAPIDelegateKernel::Validate` in ``tflite/delegates/nnapi/nnapi_delegate.cc``: the
newest version of each operator, the types and ranks, and the Android API level from which an operator is
there (27: NNAPI 1.0, 28: 1.1, 29: 1.2, 30: 1.3). Three partitions are taken by default
(``nnapi_delegate.h``, `max_number_delegated_partitions`); of a file with fp16 weights, all or nothing where a
device refuses an operator. NNAPI itself is deprecated since Android 15.

Of note for ShuffleNets: CONV_2D is taken up to version 5, and a grouped convolution is of version 6
(``tools/versioning/op_version.cc``), so no grouped convolution that states its version runs on NNAPI,
although the code behind the check could map it from API level 29 on. RESHAPE, CONCATENATION, ADD and others
take ranks up to 4; TRANSPOSE of rank 5 is of version 4, and up to 2 is taken.
"""

from typing import Final

from shufflectl.deploy.inspect import delegate_checks as ask
from shufflectl.deploy.inspect.delegates import Check, Delegate, Support, table
from shufflectl.deploy.inspect.tflite_graph import Node

__all__ = ["API_LEVELS", "nnapi"]

API_LEVELS: Final = (27, 28, 29, 30)
_LEVELS: Final = {27: "1.0", 28: "1.1", 29: "1.2", 30: "1.3"}

_FLOAT: Final = {"float32", "float16"}
_QUANT: Final = {"int8", "uint8"}
_NO_ACTIVATION: Final = ask.activation("NONE")


def nnapi(api: int = 30) -> Delegate:
    """Return the delegate's rules for an Android API level.

    Args:
        api: One of `API_LEVELS`.
    """
    float_quant = ask.dtype(_FLOAT | _QUANT, input=0)
    ranks = ask.all_of(ask.rank(most=4, input=0), ask.rank(most=4, input=1))
    # Before 1.2 types of inputs were narrower: float32 or uint8, int8 not at all.
    convolved = ask.dtype(_FLOAT | (_QUANT if api >= 29 else {"uint8"}), input=0)
    arithmetic = ask.dtype(_FLOAT | _QUANT | ({"int32"} if api >= 30 else set()), input=0)
    unary = Support(1, (_since(29, api), ask.dtype(_FLOAT, input=0)))
    activated = Support(2, (float_quant,))
    compared = ask.dtype({"float32", "int32", *_QUANT}, input=0)
    not_scalar = ask.rank(least=1, output=0)
    sampled = ask.no_options(*(("alignCorners", "halfPixelCenters") if api <= 29 else ()))
    axis = ask.constant(0, "an axis", {"int32"})
    rows = {
        "CONV_2D": Support(
            5, (convolved, ask.inputs(3), *(() if api >= 29 else (_no_dilation, _no_groups, _per_tensor)))
        ),
        "DEPTHWISE_CONV_2D": Support(3, (convolved, *(() if api >= 29 else (_no_dilation,)))),
        "TRANSPOSE_CONV": Support(
            4, (_since(29, api), ask.constant(0, "a shape"), ask.constant(1, "a kernel"))
        ),
        "FULLY_CONNECTED": Support(
            5, (convolved, _unless(api >= 30, ask.no_options("keepNumDims")), _not_int16)
        ),
        "ADD": Support(2, (arithmetic, _activated_int32, ranks)),
        "MUL": Support(2, (arithmetic, _activated_int32, ranks)),
        "SUB": Support(3, (_since(28, api), arithmetic, _activated_int32, ranks)),
        "DIV": Support(1, (_since(28, api), ask.dtype({"float32"}, input=0), ranks)),
        "MAXIMUM MINIMUM": Support(3, (_since(29, api), compared)),
        "SQUARED_DIFFERENCE": Support(2, (_since(28, api), arithmetic, ranks)),
        "AVERAGE_POOL_2D MAX_POOL_2D": Support(2, (float_quant,)),
        "RELU RELU_N1_TO_1 RELU6 LOGISTIC": activated,
        "TANH": Support(2, (ask.dtype(_FLOAT | (_QUANT if api >= 29 else set()), input=0),)),
        "HARD_SWISH": Support(None, (float_quant,)),
        "LEAKY_RELU PRELU": Support(1, (_since(29, api), ask.dtype({"float32", *_QUANT}, input=0))),
        "ELU": Support(1, (_since(30, api), ask.dtype({"float32"}, input=0))),
        "FLOOR": Support(1),
        "ABS EXP LOG POW SIN SQRT": unary,
        "RSQRT": Support(2, (_since(29, api), ask.dtype(_FLOAT, input=0))),
        "NEG": Support(2, (_since(29, api), ask.dtype({"float32", "int32"}, input=0))),
        "SOFTMAX": Support(2, (float_quant, ask.rank(most=4, input=0), _unless(api >= 29, _even_rank))),
        "LOG_SOFTMAX": Support(1, (_since(29, api), ask.dtype({"float32"}, input=0))),
        "RESHAPE": Support(
            1,
            (
                float_quant,
                ask.rank(most=4, input=0),
                ask.rank(most=4, output=0),
                _constant_shape,
            ),
        ),
        "CONCATENATION": Support(
            2,
            (
                _NO_ACTIVATION,
                ask.rank(most=4, input=0),
                ask.dtype(_FLOAT | _QUANT, input=0),
            ),
        ),
        "TRANSPOSE": Support(2, (_since(28, api), ask.constant(1, "a permutation"))),
        "SPLIT": Support(
            3,
            (
                _since(29, api),
                ask.dtype({"float32", "uint8", "int32", *(("int8",) if api >= 30 else ())}, input=1),
                axis,
            ),
        ),
        "SPLIT_V": Support(
            2,
            (
                _since(30, api),
                ask.dtype({"float32", "int32", *_QUANT}, input=0),
                ask.constant(1, "sizes", {"int32"}),
                ask.constant(2, "an axis", {"int32"}),
            ),
        ),
        "SLICE": Support(
            2,
            (
                _since(29, api),
                ask.dtype({"float32", "int32", *_QUANT}, input=0),
                ask.dtype({"int32"}, input=1),
                ask.dtype({"int32"}, input=2),
            ),
        ),
        "STRIDED_SLICE": Support(2, (float_quant, _since(28, api))),
        "GATHER": Support(
            2,
            (
                _since(29, api),
                ask.dtype(_FLOAT | _QUANT | {"int32"}, input=0),
                ask.dtype({"int32"}, input=1),
                ask.rank(least=1, input=1),
            ),
        ),
        "PACK": Support(2, (_since(30, api), ask.dtype({"float32", "int8"}, input=0), _not_last_axis)),
        "UNPACK": Support(
            2,
            (
                _since(30, api),
                ask.dtype({"float32", *_QUANT}, input=0),
                ask.rank(least=2, most=4, input=0),
                _not_last_axis,
            ),
        ),
        "PAD": Support(2, (float_quant, _since(28, api))),
        "PADV2": Support(2, (float_quant, _since(29, api))),
        "TILE": Support(1, (_since(29, api), ask.dtype({"float32", "int32", *_QUANT}, input=0))),
        "EXPAND_DIMS": Support(1, (_since(29, api), ask.constant(1, "an axis", {"int32"}))),
        "SQUEEZE": Support(1, (_since(28, api),)),
        "MEAN": Support(
            2,
            (
                _since(28, api),
                ask.dtype({"float32", *(_QUANT if api >= 29 else ())}, input=0),
                not_scalar,
                ask.rank(most=4, input=0),
            ),
        ),
        "REDUCE_MAX REDUCE_MIN": Support(2, (_since(29, api), ask.dtype({"float32", *_QUANT}, input=0))),
        "REDUCE_PROD SUM": Support(1, (_since(29, api), not_scalar, ask.dtype({"float32"}, input=0))),
        "RESIZE_BILINEAR": Support(
            3, (ask.rank(least=4, most=4, input=0), float_quant, ask.constant(1, "a size"), sampled)
        ),
        "RESIZE_NEAREST_NEIGHBOR": Support(
            3, (_since(29, api), float_quant, ask.constant(1, "a size"), sampled)
        ),
        "DEPTH_TO_SPACE": Support(None, (ask.dtype({"float32", *_QUANT}, input=0),)),
        "SPACE_TO_DEPTH": Support(2, (ask.dtype({"float32", *_QUANT}, input=0),)),
        "CAST": Support(
            1,
            (
                _since(29, api),
                ask.dtype({"float32", "int32", "uint8", *(("int8",) if api >= 30 else ())}, input=0),
                ask.dtype({"float32", "int32", "uint8", *(("int8",) if api >= 30 else ())}, output=0),
            ),
        ),
        "QUANTIZE": Support(
            2, (_since(29, api), ask.dtype({"uint8", *(("int8",) if api >= 30 else ())}, output=0))
        ),
        "DEQUANTIZE": Support(2, (ask.dtype(_QUANT if api >= 29 else {"uint8"}, input=0),)),
    }
    return Delegate(
        name="nnapi",
        title=f"NNAPI {_LEVELS[api]} (API level {api})",
        source="tflite/delegates/nnapi/nnapi_delegate.cc",
        operators=table(rows),
        most_partitions=3,
    )


def _since(level: int, api: int) -> Check:
    """Ask for an API level."""
    return lambda _node: "" if api >= level else f"from API level {level} on"


def _unless(condition: bool, check: Check) -> Check:
    return (lambda _node: "") if condition else check


def _no_dilation(node: Node) -> str:
    factors = {int(node.options.get(key, 1)) for key in ("dilationHFactor", "dilationWFactor")}
    return "" if factors == {1} else "dilation from API level 29 on"


def _no_groups(node: Node) -> str:
    image, kernel = node.input(0), node.input(1)
    grouped = image is not None and kernel is not None and image.shape[-1:] != kernel.shape[-1:]
    return "grouped convolution from API level 29 on" if grouped else ""


def _per_tensor(node: Node) -> str:
    kernel = node.input(1)
    several = kernel is not None and kernel.scales > 1
    return "scales for each channel from API level 29 on" if several else ""


def _not_int16(node: Node) -> str:
    return "an output of type int16" if node.outputs and node.outputs[0].dtype == "int16" else ""


def _activated_int32(node: Node) -> str:
    first = node.input(0)
    return _NO_ACTIVATION(node) if first is not None and first.dtype == "int32" else ""


def _even_rank(node: Node) -> str:
    first = node.input(0)
    return "" if first is not None and first.rank in (2, 4) else "rank 2 or 4 before API level 29"


def _constant_shape(node: Node) -> str:
    shape = node.input(1)
    return "a shape that is not constant" if shape is not None and not shape.constant else ""


def _not_last_axis(node: Node) -> str:
    axis, first = int(node.options.get("axis", 0)), node.input(0)
    last = first.rank - (node.type == "UNPACK") if first is not None else 0
    return "the last axis" if axis in (-1, last) else ""
