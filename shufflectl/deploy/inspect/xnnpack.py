"""The XNNPACK delegate, which TFLite and LiteRT apply on the CPU by default, as of LiteRT's source in 2026.

The rules are those of ``tflite/delegates/xnnpack/xnnpack_delegate.cc``: `VisitNode` and the functions that it
calls, in their order. There is no GATHER, no SPLIT_V, no PACK; concatenations take 2 to 5 inputs, even splits
2 to 4 outputs, strided slices steps of 1; tensors have up to 6 axes. EXPAND_DIMS is named and always refused.
LOG is newer than the rest: LiteRT 2.3 takes it. Whether the rules hold for the runtime at hand is measured
(`measure`).
"""

from typing import Final

from shufflectl.deploy.inspect import delegate_checks as ask
from shufflectl.deploy.inspect.delegates import Check, Delegate, Support, table
from shufflectl.deploy.inspect.tflite_graph import Node, Tensor

__all__ = ["XNNPACK"]

_MOST_RANK: Final = 6
"""XNN_MAX_TENSOR_DIMS."""

_FLOAT: Final = ("float32",)
_FLOATS: Final = ("float32", "float16")
_QUANTISED: Final = ("float32", "int8", "uint8")
_DYNAMIC: Final = {("float32", "int8")}
"""Activations and weights of dynamic range: the delegate rounds the former by their range on each image."""
_FUSED: Final = ask.activation("NONE", "RELU", "RELU_N1_TO_1", "RELU6")


def _whole(tensor: Tensor) -> str:
    """Check that an 8-bit tensor has one scale for all of it."""
    if tensor.dtype in ("int8", "uint8") and (tensor.scales != 1 or tensor.axis != 0):
        return f"{tensor.dtype} tensor {tensor.name!r} without one scale for all of it"
    return ""


def _typed(types: tuple[str, ...], first: int = 0) -> Check:
    """Ask for the types of the input at ``first`` and of all outputs."""

    def check(node: Node) -> str:
        image = node.input(first)
        for tensor in (*(() if image is None else (image,)), *node.outputs):
            if tensor.dtype not in types:
                return f"type {tensor.dtype} of {tensor.name!r}, and it takes {', '.join(types)}"
            if why := _whole(tensor):
                return why
        return ""

    return check


def _all_typed(node: Node) -> str:
    for tensor in node.given:
        if tensor.dtype not in _QUANTISED:
            return f"type {tensor.dtype} of {tensor.name!r}, and it takes {', '.join(_QUANTISED)}"
        if why := _whole(tensor):
            return why
    return ""


def _requantised(node: Node) -> str:
    """Check codes that become other codes: of the same type, at most so many steps to one."""
    image, made = node.input(0), next(iter(node.outputs), None)
    if image is None or made is None or image.dtype not in ("int8", "uint8"):
        return ""
    if image.dtype != made.dtype:
        return f"from {image.dtype} to {made.dtype}, and it takes codes of one type"
    ratio = image.scale / made.scale if made.scale else 0.0
    return "" if 1 / 256 <= ratio <= 128 else f"scales {ratio:.3g} times apart, and it takes 1/256 to 128"


def _ranks(most: int = _MOST_RANK, least: int = 0) -> Check:
    return ask.all_of(
        ask.rank(least=least, most=most, input=0), ask.rank(least=least, most=most, output=0), _sized
    )


def _sized(node: Node) -> str:
    empty = [t.name for t in (*node.given[:1], *node.outputs) if 0 in t.shape]
    return f"no elements in {empty[0]!r}" if empty else ""


def _same_types(node: Node) -> str:
    types = {t.dtype for t in (*node.given[:2], *node.outputs)}
    return f"mixed types {', '.join(sorted(types))}" if len(types) > 1 else ""


def _convolution(axis: int) -> Check:
    """Ask for a constant kernel and bias; ``axis`` is the kernel's axis of output channels."""

    def check(node: Node) -> str:
        image, kernel, bias = node.input(0), node.input(1), node.input(2)
        if image is None or kernel is None or bias is None:
            return "no bias"
        if any(t.rank != 4 for t in (image, kernel, *node.outputs)) or bias.rank != 1:
            return "an image or a kernel that is not of rank 4"
        if not kernel.constant or not bias.constant:
            return "a kernel or a bias that is not constant"
        if kernel.dtype not in (*_QUANTISED, "float16"):
            return f"a kernel of type {kernel.dtype}"
        if kernel.scales > 1 and kernel.axis != axis:
            return f"scales along axis {kernel.axis} of the kernel, and it takes {axis}"
        if node.type == "CONV_2D" and image.shape[3] < kernel.shape[3]:
            return "fewer channels than the kernel reads"
        unpacked = {("float32", "float16")} | (_DYNAMIC if node.type == "CONV_2D" else set())
        if image.dtype != kernel.dtype and (image.dtype, kernel.dtype) not in unpacked:
            return f"mixed types {image.dtype} and {kernel.dtype}"
        return ""

    return check


def _dense(node: Node) -> str:
    image, kernel = node.input(0), node.input(1)
    if image is None or kernel is None or kernel.rank != 2:
        return "a kernel that is not of rank 2"
    if node.version == 8:
        return "version 8 (sparse weights)"
    if kernel.dtype != "float32" and not kernel.constant:
        return "a kernel that is not constant"
    mixed = {(image.dtype, kernel.dtype)} - {("float32", "float16"), ("int8", "int4")} - _DYNAMIC
    if image.dtype != kernel.dtype and mixed:
        return f"mixed types {image.dtype} and {kernel.dtype}"
    return ""


def _transposed(node: Node) -> str:
    kernel = node.input(1)
    if kernel is None or not kernel.constant:
        return "a kernel that is not constant"
    return "" if node.outputs and node.outputs[0].rank == 4 else "a tensor that is not of rank 4"


def _kept_scale(node: Node) -> str:
    image = node.input(0)
    if image is None or not node.outputs or image.dtype not in ("int8", "uint8"):
        return ""
    same = (image.scale, image.zero_point) == (node.outputs[0].scale, node.outputs[0].zero_point)
    return "" if same else "another scale or zero point on the output than on the input"


def _same_scales(node: Node) -> str:
    """Check the scales of a concatenation, which uint8 asks to be the same."""
    if not node.outputs or node.outputs[0].dtype != "uint8":
        return ""
    scales = {(t.scale, t.zero_point) for t in (*node.given, node.outputs[0])}
    return "" if len(scales) == 1 else "several scales or zero points"


def _steps(node: Node) -> str:
    steps = node.input(3)
    if steps is None or not steps.constant:
        return "steps that are not constant"
    if steps.values is not None and any(step != 1 for step in steps.values):
        return f"steps {list(steps.values)}, and it takes steps of 1"
    return ""


def _sizes(node: Node) -> str:
    sizes = node.input(2)
    if sizes is not None and sizes.values is not None and any(size <= 0 for size in sizes.values):
        return "sizes that are not positive"
    return ""


def _paddings(node: Node) -> str:
    sizes, image = node.input(1), node.input(0)
    if sizes is None or image is None or sizes.shape != (image.rank, 2):
        return "paddings that do not fit the input"
    if sizes.values is not None and any(size < 0 for size in sizes.values):
        return "negative paddings"
    return ""


def _unit_window(node: Node) -> str:
    one = node.options.get("filterHeight", 0) == node.options.get("filterWidth", 0) == 1
    strided = max(node.options.get("strideH", 1), node.options.get("strideW", 1)) > 1
    return "a window of 1x1 with a stride" if one and strided else ""


def _slope(node: Node) -> str:
    return "" if node.options.get("alpha", 0) else "a slope of 0"


def _blocks(node: Node) -> str:
    size, image = int(node.options.get("blockSize", 0)), node.input(0)
    if size <= 1:
        return f"blocks of {size}"
    if node.type == "SPACE_TO_DEPTH" and image is not None and image.rank == 4:
        height, width = image.shape[1:3]
        return "" if height % size == width % size == 0 else f"a size that is no multiple of {size}"
    return ""


_BIASED: Final = (ask.inputs(3), ask.outputs(1), _typed(_QUANTISED))
_POOL: Final = (ask.inputs(1), ask.outputs(1), ask.window, _unit_window, _FUSED)
_TWO: Final = (ask.inputs(2), ask.outputs(1))
_SHAPE: Final = ask.constant(1, "a shape", {"int32"})


def _given_shape(node: Node) -> str:
    return _SHAPE(node) if len(node.inputs) == 2 else ""


_REDUCTION: Final = Support(
    None, (*_TWO, _typed(_QUANTISED), ask.constant(1, "axes", {"int32"}), ask.rank(most=1, input=1))
)

XNNPACK: Final = Delegate(
    name="xnnpack",
    title="XNNPACK",
    source="tflite/delegates/xnnpack/xnnpack_delegate.cc",
    unpacks=True,
    operators=table(
        {
            "ABS CEIL COS EXP FLOOR GELU HARD_SWISH LOG NEG RELU_N1_TO_1 RELU RELU6 ROUND RSQRT SIN SQRT "
            "SQUARE": Support(None, (ask.inputs(1), ask.outputs(1), _ranks(), _typed(_FLOATS))),
            "ELU LOGISTIC TANH": Support(None, (ask.inputs(1), ask.outputs(1), _ranks(), _typed(_QUANTISED))),
            "LEAKY_RELU": Support(None, (ask.inputs(1), _ranks(), _typed(_QUANTISED), _slope)),
            "QUANTIZE": Support(
                None,
                (
                    ask.inputs(1),
                    _ranks(),
                    _typed(_QUANTISED),
                    ask.dtype({"int8", "uint8"}, output=0),
                    _requantised,
                ),
            ),
            "DEQUANTIZE": Support(
                None,
                (
                    ask.inputs(1),
                    _ranks(),
                    ask.dtype({"int8", "uint8"}, input=0),
                    ask.dtype({"float32"}, output=0),
                ),
            ),
            "ADD MUL SUB": Support(
                None, (*_TWO, _ranks(), ask.rank(most=_MOST_RANK, input=1), _all_typed, _same_types, _FUSED)
            ),
            "DIV": Support(None, (*_TWO, _ranks(), ask.dtype(_FLOAT, input=1), _typed(_FLOAT), _FUSED)),
            "MAXIMUM MINIMUM SQUARED_DIFFERENCE": Support(
                None, (*_TWO, _ranks(), ask.dtype(_FLOAT, input=1), _typed(_FLOAT))
            ),
            "PRELU": Support(None, (*_TWO, _ranks(), _typed(_FLOAT), ask.constant(1, "a slope"))),
            "CONV_2D": Support(None, (*_BIASED, _convolution(0), _FUSED)),
            "DEPTHWISE_CONV_2D": Support(None, (*_BIASED, _convolution(3), _FUSED)),
            "TRANSPOSE_CONV": Support(None, (ask.inputs(3, 4), _typed(_QUANTISED, first=2), _transposed)),
            "FULLY_CONNECTED": Support(
                None,
                (
                    ask.no_options("weightsFormat"),
                    ask.inputs(2, 3),
                    _typed(_QUANTISED),
                    _dense,
                    _FUSED,
                ),
            ),
            "BATCH_MATMUL": Support(
                None, (ask.rank(least=2, input=0), ask.rank(least=2, input=1), _typed(_FLOAT))
            ),
            "AVERAGE_POOL_2D": Support(None, (*_POOL, _typed(_FLOAT))),
            "MAX_POOL_2D": Support(None, (*_POOL, _typed(_QUANTISED))),
            "MEAN SUM REDUCE_MAX REDUCE_MIN": _REDUCTION,
            "CONCATENATION": Support(
                None, (ask.inputs(2, 5), ask.outputs(1), _typed(_QUANTISED), _all_typed, _same_scales)
            ),
            "SPLIT": Support(
                None,
                (
                    ask.inputs(2),
                    ask.outputs(2, 4),
                    ask.constant(0, "an axis", {"int32"}),
                    _typed(_QUANTISED, first=1),
                ),
            ),
            "RESHAPE": Support(
                None, (ask.inputs(1, 2), _typed(_QUANTISED), _ranks(), _kept_scale, _given_shape)
            ),
            "TRANSPOSE": Support(
                None, (*_TWO, _typed(_QUANTISED), ask.constant(1, "a permutation"), _ranks())
            ),
            "SLICE": Support(
                None,
                (
                    ask.constant(1, "a start", {"int32", "int64"}),
                    ask.constant(2, "sizes", {"int32", "int64"}),
                    _typed(_QUANTISED),
                    _sizes,
                    _ranks(),
                ),
            ),
            "STRIDED_SLICE": Support(
                None,
                (
                    ask.no_options("ellipsisMask", "newAxisMask", "shrinkAxisMask"),
                    _steps,
                    ask.constant(1, "a start", {"int32"}),
                    ask.constant(2, "an end", {"int32"}),
                    _typed(_QUANTISED),
                    _ranks(),
                ),
            ),
            "PAD": Support(
                None,
                (
                    *_TWO,
                    _typed(_QUANTISED),
                    _ranks(least=1),
                    ask.constant(1, "paddings", {"int32"}),
                    _paddings,
                ),
            ),
            "RESIZE_BILINEAR": Support(None, (*_TWO, _typed(_QUANTISED), _SHAPE, _ranks(4, 4))),
            "SOFTMAX": Support(
                None,
                (
                    ask.option("beta", lambda beta: beta == 1, "a beta other than 1"),
                    ask.inputs(1),
                    _typed(_FLOAT),
                ),
            ),
            "DEPTH_TO_SPACE SPACE_TO_DEPTH": Support(None, (ask.inputs(1), _typed(_QUANTISED), _blocks)),
        }
    ),
)
