"""How operators are spelled in MIL that take each element by itself; activations are among them."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx_ir as ir

from shufflectl.converters.coreml.emission import Emission, Operator

__all__ = ["OPERATORS"]


def _unary(e: Emission, node: ir.Node, *, operation: str) -> None:
    e.bind(node, getattr(e.mb, operation)(x=e.value(node), name=e.name(node)))


def _binary(e: Emission, node: ir.Node, *, operation: str) -> None:
    if operation == "real_div" and node.inputs[0] is not None:
        kind = node.inputs[0].dtype
        if kind is not None and not kind.is_floating_point():
            raise e.refuse(node, "integer division")
    e.bind(node, getattr(e.mb, operation)(x=e.value(node), y=e.value(node, 1), name=e.name(node)))


def _extremum(e: Emission, node: ir.Node, *, operation: str) -> None:
    result = e.value(node)
    if len(node.inputs) == 1:
        e.bind(node, result)
        return
    for index in range(1, len(node.inputs)):
        name = e.name(node) if index == len(node.inputs) - 1 else e.helper(node, f"term{index}")
        result = getattr(e.mb, operation)(x=result, y=e.value(node, index), name=name)
    e.bind(node, result)


def _sum(e: Emission, node: ir.Node) -> None:
    _extremum(e, node, operation="add")


def _reciprocal(e: Emission, node: ir.Node) -> None:
    # MIL's own `inverse` adds a figure to its input.
    e.bind(node, e.mb.real_div(x=np.float32(1), y=e.value(node), name=e.name(node)))


def _gelu(e: Emission, node: ir.Node) -> None:
    tanh = node.attributes.get_string("approximate", "none") == "tanh"
    mode = "TANH_APPROXIMATION" if tanh else "EXACT"
    e.bind(node, e.mb.gelu(x=e.value(node), mode=mode, name=e.name(node)))


def _mish(e: Emission, node: ir.Node) -> None:
    soft = e.mb.softplus(x=e.value(node), name=e.helper(node, "softplus"))
    gate = e.mb.tanh(x=soft, name=e.helper(node, "gate"))
    e.bind(node, e.mb.mul(x=e.value(node), y=gate, name=e.name(node)))


def _negate(e: Emission, node: ir.Node) -> None:
    e.bind(node, e.mb.mul(x=e.value(node), y=np.float32(-1), name=e.name(node)))


def _clip(e: Emission, node: ir.Node) -> None:
    low, high = (
        None if not e.has(node, i) else float(e.required(node, i, bound).reshape(()))
        for i, bound in ((1, "minimum"), (2, "maximum"))
    )
    # Operator sets before 11 hold the bounds as attributes.
    low = node.attributes.get_float("min", low)
    high = node.attributes.get_float("max", high)
    x, name = e.value(node), e.name(node)
    if low is not None and high is not None and low >= high:
        raise e.refuse(node, f"its minimum {low:g} is not below its maximum {high:g}")
    if (low, high) == (0.0, 6.0):
        result = e.mb.relu6(x=x, name=name)
    elif low is not None and high is not None:
        result = e.mb.clip(x=x, alpha=np.float32(low), beta=np.float32(high), name=name)
    elif low == 0.0:
        result = e.mb.relu(x=x, name=name)
    elif low is not None:
        result = e.mb.maximum(x=x, y=np.float32(low), name=name)
    elif high is not None:
        result = e.mb.minimum(x=x, y=np.float32(high), name=name)
    else:
        result = x
    e.bind(node, result)


def _leaky_relu(e: Emission, node: ir.Node) -> None:
    alpha = np.float32(node.attributes.get_float("alpha", 0.01))
    e.bind(node, e.mb.leaky_relu(x=e.value(node), alpha=alpha, name=e.name(node)))


def _elu(e: Emission, node: ir.Node) -> None:
    alpha = np.float32(node.attributes.get_float("alpha", 1.0))
    e.bind(node, e.mb.elu(x=e.value(node), alpha=alpha, name=e.name(node)))


def _prelu(e: Emission, node: ir.Node) -> None:
    slope = e.required(node, 1, "slope")
    shape = e.shape(node)
    rank, channels = len(shape), shape[1] if len(shape) > 1 else None
    # The slope is broadcast from the right: [C, 1, 1] has the channels on axis 1 of [N, C, H, W].
    aligned = (1,) * (rank - slope.ndim) + slope.shape
    by_channel = len(aligned) == rank and all(s == 1 for axis, s in enumerate(aligned) if axis != 1)
    if rank == 4 and isinstance(channels, int) and by_channel:
        alpha = np.broadcast_to(slope.reshape(-1), (channels,))
        e.bind(node, e.mb.prelu(x=e.value(node), alpha=e.literal(node, alpha), name=e.name(node)))
        return
    # MIL has slopes that differ by channel for images only: max(x, 0) + slope * min(x, 0)
    x, zero = e.value(node), np.float32(0)
    negative = e.mb.minimum(x=x, y=zero, name=e.helper(node, "negative"))
    scaled = e.mb.mul(x=negative, y=e.literal(node, slope), name=e.helper(node, "scaled"))
    positive = e.mb.relu(x=x, name=e.helper(node, "positive"))
    e.bind(node, e.mb.add(x=positive, y=scaled, name=e.name(node)))


def _hard_sigmoid(e: Emission, node: ir.Node) -> None:
    alpha = np.float32(node.attributes.get_float("alpha", 0.2))
    beta = np.float32(node.attributes.get_float("beta", 0.5))
    e.bind(node, e.mb.sigmoid_hard(x=e.value(node), alpha=alpha, beta=beta, name=e.name(node)))


def _hard_swish(e: Emission, node: ir.Node) -> None:
    gate = e.mb.sigmoid_hard(
        x=e.value(node), alpha=np.float32(1 / 6), beta=np.float32(0.5), name=e.helper(node, "gate")
    )
    e.bind(node, e.mb.mul(x=e.value(node), y=gate, name=e.name(node)))


def _softmax_axis(e: Emission, node: ir.Node) -> int:
    if e.graph.opset < 13:
        raise e.refuse(
            node, "before operator set 13 it flattens its input", "export with operator set 13 or later"
        )
    return e.axis(node, node.attributes.get_int("axis", -1))


def _softmax(e: Emission, node: ir.Node) -> None:
    e.bind(node, e.mb.softmax(x=e.value(node), axis=_softmax_axis(e, node), name=e.name(node)))


def _log_softmax(e: Emission, node: ir.Node) -> None:
    axis = _softmax_axis(e, node)
    x = e.value(node)
    # The largest is taken off first, so that no exponential overflows, in fp16 least of all.
    most = e.mb.reduce_max(x=x, axes=[axis], keep_dims=True, name=e.helper(node, "most"))
    below = e.mb.sub(x=x, y=most, name=e.helper(node, "below"))
    powers = e.mb.exp(x=below, name=e.helper(node, "powers"))
    total = e.mb.reduce_sum(x=powers, axes=[axis], keep_dims=True, name=e.helper(node, "total"))
    logarithm = e.mb.log(x=total, name=e.helper(node, "log"))
    e.bind(node, e.mb.sub(x=below, y=logarithm, name=e.name(node)))


_CASTS: Final = MappingProxyType(
    {
        ir.DataType.FLOAT: "fp32",
        ir.DataType.DOUBLE: "fp32",
        ir.DataType.FLOAT16: "fp16",
        ir.DataType.INT32: "int32",
        ir.DataType.INT64: "int32",
        ir.DataType.BOOL: "bool",
    }
)


def _cast(e: Emission, node: ir.Node) -> None:
    wanted = ir.DataType(node.attributes.get_int("to", 0))
    if wanted not in _CASTS:
        raise e.refuse(node, f"MIL has no tensors of type {wanted.name}")
    source = e.source(node).dtype
    if source == ir.DataType.UINT8 and wanted == ir.DataType.FLOAT:
        e.bind(node, e.value(node))  # an image: Core ML hands its pixels over as floating point
        return
    if source is not None and _CASTS.get(source) == _CASTS[wanted]:
        e.bind(node, e.value(node))
        return
    e.bind(node, e.mb.cast(x=e.value(node), dtype=_CASTS[wanted], name=e.name(node)))


def _identity(e: Emission, node: ir.Node) -> None:
    if node.op_type == "Dropout" and len(node.outputs) > 1 and node.outputs[1].uses():
        raise e.refuse(node, "its mask is used", "export the model in evaluation mode")
    training = e.constant(node, 2) if node.op_type == "Dropout" else None
    if training is not None and bool(training):
        raise e.refuse(node, "it is in training mode", "export the model in evaluation mode")
    e.bind(node, e.value(node))


OPERATORS: Final[Mapping[str, Operator]] = MappingProxyType(
    {
        "Abs": partial(_unary, operation="abs"),
        "Add": partial(_binary, operation="add"),
        "Cast": _cast,
        "Ceil": partial(_unary, operation="ceil"),
        "Clip": _clip,
        "Div": partial(_binary, operation="real_div"),
        "Dropout": _identity,
        "Elu": _elu,
        "Erf": partial(_unary, operation="erf"),
        "Exp": partial(_unary, operation="exp"),
        "Floor": partial(_unary, operation="floor"),
        "Gelu": _gelu,
        "HardSigmoid": _hard_sigmoid,
        "HardSwish": _hard_swish,
        "Identity": _identity,
        "LeakyRelu": _leaky_relu,
        "Log": partial(_unary, operation="log"),
        "LogSoftmax": _log_softmax,
        "Max": partial(_extremum, operation="maximum"),
        "Min": partial(_extremum, operation="minimum"),
        "Mish": _mish,
        "Mul": partial(_binary, operation="mul"),
        "Neg": _negate,
        "PRelu": _prelu,
        "Pow": partial(_binary, operation="pow"),
        "Reciprocal": _reciprocal,
        "Relu": partial(_unary, operation="relu"),
        "Sigmoid": partial(_unary, operation="sigmoid"),
        "Softmax": _softmax,
        "Softplus": partial(_unary, operation="softplus"),
        "Sqrt": partial(_unary, operation="sqrt"),
        "Sub": partial(_binary, operation="sub"),
        "Sum": _sum,
        "Tanh": partial(_unary, operation="tanh"),
    }
)
