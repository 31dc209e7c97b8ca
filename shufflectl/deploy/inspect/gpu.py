"""The TFLite GPU delegate (OpenCL, OpenGL ES, Metal), as of LiteRT's source tree in 2026.

What an operator must look like is in ``tflite/tools/versioning/gpu_compatibility.cc``
(`CheckGpuDelegateCompatibility`); the newest versions and the types and ranks of tensors are in
``tflite/delegates/gpu/common/model_builder.cc``: the parsers' `IsSupported`, `IsAllAllowedTensors` (a tensor
of rank 5 or more is refused) and `GetOpsToReplace` (the default is one partition, the largest).

Two facts go beyond yes and no. A grouped convolution runs as one kernel only where its groups' input and
output channels are multiples of 4; the delegate splits others into one convolution a group, with a split and
a concatenation around them (`Conv2DOperationParser::ResolveGroupedConvolution`). And LiteRT's newer GPU
accelerator (ML Drift) takes tensors of rank 5 in some operators, which this table does not count on.
"""

from typing import Final

from shufflectl.deploy.inspect import delegate_checks as ask
from shufflectl.deploy.inspect.delegates import Delegate, Support, table
from shufflectl.deploy.inspect.tflite_graph import Node

__all__ = ["GPU", "splits_groups"]

_SOURCE: Final = "tflite/tools/versioning/gpu_compatibility.cc, tflite/delegates/gpu/common/model_builder.cc"
_MOST_RANK: Final = 4
_FLOATS: Final = {"float32", "float16", "int8", "uint8"}
_FUSED: Final = ask.activation("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH")
_UNARY: Final = ask.all_of(ask.runtime_inputs(1), ask.inputs(1), ask.outputs(1))
_ONE: Final = ask.all_of(ask.runtime_inputs(1), ask.outputs(1))
_AXES: Final = ask.constant(1, "axes", {"int32"})
_MORE_INPUTS: Final = {
    "CAST": {"bool", "int32"},
    "GATHER": {"int32"},
}
_MORE_OUTPUTS: Final = {"CAST": {"bool", "int32"}}


def splits_groups(node: Node) -> bool:
    """Whether a grouped convolution becomes one convolution a group: channels not in multiples of 4."""
    image, kernel = node.input(0), node.input(1)
    if node.type != "CONV_2D" or image is None or kernel is None or kernel.rank != 4 or image.rank != 4:
        return False
    if not kernel.shape[3] or image.shape[3] == kernel.shape[3]:
        return False
    groups = image.shape[3] // kernel.shape[3]
    if kernel.shape[3] == 1 and node.outputs and node.outputs[0].shape[-1:] == image.shape[-1:]:
        return False  # it runs as a depthwise convolution
    return bool(groups) and (kernel.shape[3] % 4 != 0 or kernel.shape[0] // groups % 4 != 0)


def _tensors(node: Node) -> str:
    for tensor in (*node.given, *node.outputs):
        if tensor.rank > _MOST_RANK:
            return f"rank {tensor.rank} of {tensor.name!r}, and it takes up to {_MOST_RANK}"
    allowed = _FLOATS | _MORE_INPUTS.get(node.type, set())
    for tensor in node.runtime_inputs:
        if tensor.dtype not in allowed:
            return f"type {tensor.dtype} of {tensor.name!r}"
    allowed = _FLOATS | _MORE_OUTPUTS.get(node.type, set())
    for tensor in node.outputs:
        if tensor.dtype not in allowed:
            return f"type {tensor.dtype} of {tensor.name!r}"
    return ""


def _broadcast(node: Node) -> str:
    """Check two operands of different ranks (`CheckAddMulBroadcastCompatibility`)."""
    if len(node.given) != 2:
        return f"{len(node.given)} inputs, and it takes 2"
    small, large = sorted((t.shape for t in node.given), key=len)
    if len(small) < 2 or len(small) == len(large):
        return ""
    if len(large) == 4 and (
        (len(small) == 3 and large[0] == 1)
        or (small == (1, 1) and large[0] == 1)
        or (len(small) == 2 and (small[0], small[1]) == (large[0], large[3]))
    ):
        return ""
    return f"operands of shapes {list(small)} and {list(large)}"


def _two_operands(node: Node) -> str:
    constants, others = len(node.given) - len(node.runtime_inputs), len(node.runtime_inputs)
    fits = (others, constants) in ((2, 0), (1, 1)) and len(node.outputs) == 1
    return "" if fits else f"{others} inputs that are not constant and {constants} that are"


def _depthwise(node: Node) -> str:
    image, kernel = node.input(0), node.input(1)
    if image is None or kernel is None or not node.outputs:
        return "no image or no kernel"
    if any(t.rank != 4 for t in (image, kernel, node.outputs[0])):
        return "a tensor that is not of rank 4"
    depth = image.shape[3] * int(node.options.get("depthMultiplier", 0))
    return "" if depth == node.outputs[0].shape[3] == kernel.shape[3] else "channels that do not fit together"


def _pad(node: Node) -> str:
    sizes = node.input(1)
    fits = sizes is not None and sizes.shape in ((3, 2), (4, 2))
    return "" if fits else "paddings of another number of axes than 3 or 4"


def _gather(node: Node) -> str:
    indices = node.input(1)
    if indices is None or indices.rank != 1:
        return "indices that are not of rank 1"
    return "" if indices.dtype == "int32" else f"indices of type {indices.dtype}, and it takes int32"


def _keeps_dimensions(node: Node) -> str:
    image = node.input(0)
    if not node.options.get("keepNumDims", 0) or image is None or not node.outputs:
        return ""
    return "" if image.rank == node.outputs[0].rank else "keep_num_dims between different ranks"


_CONVOLUTION: Final = (ask.runtime_inputs(1, 2), ask.outputs(1))
_POOL: Final = Support(2, (_ONE, _FUSED))
_REDUCTION: Final = (_ONE, _AXES)
_SAMPLING: Final = Support(
    3,
    (
        _ONE,
        lambda node: (
            "align_corners together with half_pixel_centers"
            if node.type == "RESIZE_BILINEAR"
            and node.options.get("alignCorners", 0)
            and node.options.get("halfPixelCenters", 0)
            else ""
        ),
    ),
)
_MASKS: Final = ask.no_options("ellipsisMask", "newAxisMask", "shrinkAxisMask")
_SLICED: Final = ask.rank(least=3, most=4, input=0)

GPU: Final = Delegate(
    name="gpu",
    title="GPU delegate",
    source=_SOURCE,
    most_partitions=1,
    checks=(_tensors,),
    operators=table(
        {
            "CONV_2D": Support(6, (*_CONVOLUTION, _FUSED)),
            "DEPTHWISE_CONV_2D": Support(6, (*_CONVOLUTION, _FUSED, _depthwise)),
            "TRANSPOSE_CONV": Support(3, _CONVOLUTION),
            "FULLY_CONNECTED": Support(
                9,
                (
                    ask.no_options("weightsFormat"),
                    ask.runtime_inputs(1, 2),
                    _keeps_dimensions,
                ),
            ),
            "BATCH_MATMUL": Support(None, (ask.inputs(2), ask.outputs(1))),
            "AVERAGE_POOL_2D MAX_POOL_2D": _POOL,
            "MEAN": Support(None, _REDUCTION),
            "SUM REDUCE_MAX REDUCE_MIN REDUCE_PROD": Support(None, _REDUCTION),
            "ADD": Support(2, (_broadcast,)),
            "ADD_N": Support(2, (ask.inputs(2),)),
            "MUL": Support(3, (_broadcast, _FUSED)),
            "DIV FLOOR_DIV FLOOR_MOD MAXIMUM MINIMUM POW SQUARED_DIFFERENCE SUB": Support(
                2, (_two_operands, _FUSED)
            ),
            "ABS COS ELU EXP FLOOR GELU LOG LOGISTIC NEG RSQRT SIGN SIN SQRT SQUARE TANH": Support(
                2, (_UNARY,)
            ),
            "HARD_SWISH": Support(None, (_ONE,)),
            "RELU RELU6 RELU_N1_TO_1 RELU_0_TO_1 LEAKY_RELU": Support(2),
            "PRELU": Support(1),
            "SOFTMAX": Support(2, (ask.option("beta", lambda beta: beta == 1, "a beta other than 1"),)),
            "CONCATENATION": Support(2),
            "RESHAPE": Support(1, (_ONE,)),
            "TRANSPOSE": Support(4, (_ONE,)),
            "SPLIT SPLIT_V PACK UNPACK": Support(),
            "SLICE": Support(2, (ask.inputs(3), _SLICED)),
            "STRIDED_SLICE": Support(4, (_MASKS, ask.inputs(4), _SLICED)),
            "GATHER": Support(1, (_two_operands, _gather)),
            "PAD PADV2": Support(2, (_ONE, _pad)),
            "MIRROR_PAD": Support(2, (ask.no_options("mode"), _ONE, _pad)),
            "TILE": Support(None, (_ONE,)),
            "RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR": _SAMPLING,
            "DEPTH_TO_SPACE": Support(None, (_ONE,)),
            "SPACE_TO_DEPTH": Support(2, (_ONE,)),
            "QUANTIZE": Support(2, (_ONE,)),
            "DEQUANTIZE": Support(3, (ask.dtype({"int8", "uint8", "float16", "float32"}, input=0),)),
            "CAST": Support(None, (_ONE,)),
        }
    ),
)
"""Operators that need a look at their neighbours (comparisons before CAST or SELECT, LSTM) are left out."""
