"""How each ONNX operator is spelled in MIL: one table, one function a spelling.

A function reads the node's inputs from an `Emission`, appends MIL operations and binds the node's outputs.
To add an operator, write the function and its row in `OPERATORS`, and give the reference runtime what MIL
operation is new (docs/targets-coreml.md has the checklist). What MIL cannot express exactly is refused with
the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.coreml.emission import Emission, spatial_pads
from shufflectl.converters.coreml.resize import resize

__all__ = ["OPERATORS", "Operator", "needed_inputs"]

Operator = Callable[[Emission, ir.Node], None]


def _interleaved(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Return ONNX's padding (all begins, all ends) in MIL's order (begin and end of each dimension)."""
    return [p for pair in zip(begin, end, strict=True) for p in pair]


# --- convolution and matrices -------------------------------------------------------------------


def _conv(e: Emission, node: ir.Node) -> None:
    weight = e.required(node, 1, "weight")
    rank = len(e.spatial(node))
    strides = list(node.attributes.get_ints("strides", [1] * rank))
    dilations = list(node.attributes.get_ints("dilations", [1] * rank))
    begin, end = spatial_pads(e, node, weight.shape[2:], strides, dilations)
    held = e.held(node)
    vector = held.bias if held is not None else e.required(node, 2, "bias") if e.has(node, 2) else None
    bias = {} if vector is None else {"bias": e.literal(node, vector)}
    e.bind(
        node,
        e.mb.conv(
            x=e.value(node),
            weight=e.weights(node, weight if held is None else held.weights),
            strides=strides,
            pad_type="custom",
            pad=_interleaved(begin, end),
            dilations=dilations,
            groups=node.attributes.get_int("group", 1),
            name=e.name(node),
            **bias,
        ),
    )


_LINEAR_RANK: Final = 3


def _gemm(e: Emission, node: ir.Node) -> None:
    alpha = np.float32(node.attributes.get_float("alpha", 1.0))
    beta = np.float32(node.attributes.get_float("beta", 1.0))
    transpose_a = bool(node.attributes.get_int("transA", 0))
    transpose_b = bool(node.attributes.get_int("transB", 0))
    weight, bias = e.constant(node, 1), e.constant(node, 2)
    held = e.held(node)
    if held is not None:
        stored = held.weights if transpose_b else held.weights.transposed()
        extra = {} if held.bias is None else {"bias": e.literal(node, held.bias)}
        weights = e.weights(node, stored)
        e.bind(node, e.mb.linear(x=e.value(node), weight=weights, name=e.name(node), **extra))
        return
    if weight is not None and not transpose_a and (bias is not None or not e.has(node, 2)):
        rows = weight if transpose_b else weight.T
        if alpha != 1:
            rows = rows * alpha
        features = rows.shape[0]
        if bias is None:
            bias = np.zeros(features, rows.dtype)
        if bias.size in (1, features) and all(d == 1 for d in bias.shape[:-1]):
            # [1], [1, 1], [out] or [1, out] -> [out]
            vector = np.broadcast_to((bias if beta == 1 else bias * beta).reshape(-1), (features,))
            linear = e.mb.linear(
                x=e.value(node), weight=e.literal(node, rows), bias=e.literal(node, vector), name=e.name(node)
            )
            e.bind(node, linear)
            return
    plain = alpha == 1 and not e.has(node, 2)
    product = e.mb.matmul(
        x=e.value(node),
        y=e.value(node, 1),
        transpose_x=transpose_a,
        transpose_y=transpose_b,
        name=e.name(node) if plain else e.helper(node, "product"),
    )
    if alpha != 1:
        name = e.helper(node, "alpha") if e.has(node, 2) else e.name(node)
        product = e.mb.mul(x=product, y=alpha, name=name)
    if e.has(node, 2):
        term = e.value(node, 2)
        if beta != 1:
            term = e.mb.mul(x=term, y=beta, name=e.helper(node, "beta"))
        product = e.mb.add(x=product, y=term, name=e.name(node))
    e.bind(node, product)


def _matmul(e: Emission, node: ir.Node) -> None:
    if min(len(e.shape(node, 0)), len(e.shape(node, 1))) < 2:
        raise e.refuse(node, "an operand is a vector", "give both operands two dimensions or more")
    held = e.held(node)
    if held is not None and len(e.shape(node)) <= _LINEAR_RANK:
        weight = e.weights(node, held.weights.transposed())
        e.bind(node, e.mb.linear(x=e.value(node), weight=weight, name=e.name(node)))
        return
    if held is not None:
        y = e.weights(node, held.weights)
        e.bind(node, e.mb.matmul(x=e.value(node), y=y, name=e.name(node)))
        return
    e.bind(node, e.mb.matmul(x=e.value(node), y=e.value(node, 1), name=e.name(node)))


def _batch_norm(e: Emission, node: ir.Node) -> None:
    if node.attributes.get_int("training_mode", 0):
        raise e.refuse(node, "it is in training mode", "export the model in evaluation mode")
    gamma, beta, mean, variance = (
        e.required(node, i, what) for i, what in enumerate(("scale", "bias", "mean", "variance"), 1)
    )
    norm = e.mb.batch_norm(
        x=e.value(node),
        mean=e.literal(node, mean),
        variance=e.literal(node, variance),
        gamma=e.literal(node, gamma),
        beta=e.literal(node, beta),
        epsilon=np.float32(node.attributes.get_float("epsilon", 1e-5)),
        name=e.name(node),
    )
    e.bind(node, norm)


# --- pooling and reductions ---------------------------------------------------------------------


def _ceil_overhang(size: int, window: int, stride: int, begin: int, end: int) -> int:
    """Return how far the last window of ``ceil_mode`` reaches past the padded input.

    ONNX, as torch, drops a last window that would start in the padding after the input.
    """
    outputs = -(-(size + begin + end - window) // stride) + 1
    if (outputs - 1) * stride >= size + begin:
        outputs -= 1
    return max((outputs - 1) * stride + window - (size + begin + end), 0)


def _pool(e: Emission, node: ir.Node, *, average: bool) -> None:
    kernel = [int(k) for k in node.attributes.get_ints("kernel_shape", ())]
    rank = len(kernel)
    strides = [int(s) for s in node.attributes.get_ints("strides", [1] * rank)]
    if any(d != 1 for d in node.attributes.get_ints("dilations", [1] * rank)):
        raise e.refuse(node, "MIL's pooling has no dilation")
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise e.refuse(node, "MIL's pooling gives no indices")
    begin, end = spatial_pads(e, node, kernel, strides, [1] * rank)
    if any(p >= k for pad in (begin, end) for p, k in zip(pad, kernel, strict=True)):
        raise e.refuse(node, "a window can lie in the padding altogether")
    overhang = [0] * rank
    if (
        node.attributes.get_int("ceil_mode", 0)
        and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    ):
        sizes = zip(e.spatial(node), kernel, strides, begin, end, strict=True)
        overhang = [_ceil_overhang(*size) for size in sizes]
    x = e.value(node)
    counted = average and bool(node.attributes.get_int("count_include_pad", 0))
    if counted and any(overhang):
        # The divisor counts the declared padding but not what ceil_mode adds, so the two are padded apart.
        pad = _interleaved(begin, end)
        x = e.mb.pad(x=x, pad=pad, mode="constant", constant_val=np.float32(0), name=e.helper(node, "pad"))
        begin, end, counted = [0] * rank, [0] * rank, False
    pool = partial(e.mb.avg_pool, exclude_padding_from_average=not counted) if average else e.mb.max_pool
    after = [p + extra for p, extra in zip(end, overhang, strict=True)]
    pad = _interleaved(begin, after)
    e.bind(
        node,
        pool(x=x, kernel_sizes=kernel, strides=strides, pad_type="custom", pad=pad, name=e.name(node)),
    )


def _global_pool(e: Emission, node: ir.Node, *, operation: str) -> None:
    axes = list(range(2, len(e.shape(node))))
    e.bind(node, getattr(e.mb, operation)(x=e.value(node), axes=axes, keep_dims=True, name=e.name(node)))


def _reduce(e: Emission, node: ir.Node, *, operation: str) -> None:
    axes = e.integers(node, "axes", 1)
    if not axes:
        if node.attributes.get_int("noop_with_empty_axes", 0):
            e.bind(node, e.value(node))
            return
        axes = list(range(len(e.shape(node))))
    keep = bool(node.attributes.get_int("keepdims", 1))
    axes = sorted(e.axis(node, a) for a in axes)
    e.bind(node, getattr(e.mb, operation)(x=e.value(node), axes=axes, keep_dims=keep, name=e.name(node)))


# --- elementwise --------------------------------------------------------------------------------


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


def _softmax(e: Emission, node: ir.Node) -> None:
    if e.graph.opset < 13:
        raise e.refuse(
            node, "before operator set 13 it flattens its input", "export with operator set 13 or later"
        )
    axis = e.axis(node, node.attributes.get_int("axis", -1))
    e.bind(node, e.mb.softmax(x=e.value(node), axis=axis, name=e.name(node)))


def _log_softmax(e: Emission, node: ir.Node) -> None:
    if e.graph.opset < 13:
        raise e.refuse(
            node, "before operator set 13 it flattens its input", "export with operator set 13 or later"
        )
    axis = e.axis(node, node.attributes.get_int("axis", -1))
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


# --- data movement ------------------------------------------------------------------------------


def _concat(e: Emission, node: ir.Node) -> None:
    values = [e.value(node, i) for i in range(len(node.inputs))]
    if len(values) == 1:
        e.bind(node, values[0])
        return
    axis = e.axis(node, node.attributes.get_int("axis", 0))
    e.bind(node, e.mb.concat(values=values, axis=axis, name=e.name(node)))


def _split(e: Emission, node: ir.Node) -> None:
    axis = e.axis(node, node.attributes.get_int("axis", 0))
    size, count = e.shape(node)[axis], len(node.outputs)
    sizes = e.integers(node, "split", 1)
    if sizes is None:
        if not isinstance(size, int):
            raise e.refuse(node, "it splits a dimension that is not static")
        chunk = -(-size // count)
        sizes = [chunk] * (count - 1) + [size - chunk * (count - 1)]
    if count == 1:
        e.bind(node, e.value(node))
        return
    name = e.helper(node, "split")
    how = {"num_splits": count} if len(set(sizes)) == 1 else {"split_sizes": sizes}
    for index, part in enumerate(e.mb.split(x=e.value(node), axis=axis, name=name, **how)):
        part.name = e.name(node, index)
        e.splits[part.name] = f"{name}_cast_fp16_{index}"
        e.bind(node, part, index)


def _slice(e: Emission, node: ir.Node) -> None:
    starts, ends = e.integers(node, "starts", 1), e.integers(node, "ends", 2)
    if starts is None or ends is None:
        raise e.refuse(node, "it has no range")
    axes = e.integers(node, "axes", 3) or list(range(len(starts)))
    steps = e.integers(node, "steps", 4) or [1] * len(starts)
    shape = e.shape(node)
    rank = len(shape)
    begin, end, stride = [0] * rank, [0] * rank, [1] * rank
    whole = [True] * rank
    open_end = [True] * rank
    for axis, first, last, step in zip((e.axis(node, a) for a in axes), starts, ends, steps, strict=True):
        size = shape[axis]
        if not isinstance(size, int):
            if first == 0 and step == 1 and last >= _INT32_MAX:
                continue
            raise e.refuse(node, "it slices a dimension that is not static")
        # Python's rule is ONNX's: clamp, and count negative positions from the end.
        begin[axis], end[axis], stride[axis] = slice(first, last, step).indices(size)
        if (end[axis] - begin[axis]) * step <= 0:
            raise e.refuse(node, "the slice is empty")
        whole[axis] = False
        open_end[axis] = end[axis] < 0
        end[axis] = max(end[axis], 0)
    sliced = e.mb.slice_by_index(
        x=e.value(node),
        begin=begin,
        end=end,
        stride=stride,
        begin_mask=whole,
        end_mask=open_end,
        name=e.name(node),
    )
    e.bind(node, sliced)


_INT32_MAX: Final = 2**31 - 1


def _gather(e: Emission, node: ir.Node) -> None:
    axis = e.axis(node, node.attributes.get_int("axis", 0))
    indices = e.constant(node, 1)
    size = e.shape(node)[axis]
    if indices is not None and isinstance(size, int):
        if indices.size and (indices.min() < -size or indices.max() >= size):
            raise e.refuse(node, f"an index is outside a dimension of {size}")
        indices = indices % size
    elif indices is not None and indices.size and indices.min() < 0:
        raise e.refuse(node, "a negative index counts from the end of a dimension that is not static")
    x = e.value(node)
    if indices is not None and indices.ndim == 0:
        rank = len(e.shape(node))
        mask = [a == axis for a in range(rank)]
        begin = [int(indices) if m else 0 for m in mask]
        whole = [not m for m in mask]
        picked = e.mb.slice_by_index(
            x=x,
            begin=begin,
            end=[b + 1 for b in begin],
            begin_mask=whole,
            end_mask=whole,
            squeeze_mask=mask,
            name=e.name(node),
        )
        e.bind(node, picked)
        return
    where = e.value(node, 1) if indices is None else e.literal(node, indices)
    e.bind(node, e.mb.gather(x=x, indices=where, axis=axis, name=e.name(node)))


def _target_shape(e: Emission, node: ir.Node, requested: NDArray[Any] | None) -> list[int]:
    """Return the shape that a reshape gives, at most one dimension -1.

    The inferred shape of the output decides, because it also covers targets that the graph computes from the
    batch; zeros of the requested shape (copy from the input) are worked out where it is unknown.
    """
    known = node.outputs[0].shape
    if known is not None:
        sizes = [d if isinstance(d, int) else -1 for d in known]
        if sizes.count(-1) <= 1:
            return sizes
    if requested is None:
        raise e.refuse(node, "the shape that it gives is not known", "export with a static batch")
    sizes = [int(d) for d in requested.reshape(-1)]
    if not node.attributes.get_int("allowzero", 0):
        given = e.shape(node)
        copied = [given[i] if d == 0 and i < len(given) else d for i, d in enumerate(sizes)]
        sizes = [d if isinstance(d, int) else -1 for d in copied]
    if sizes.count(-1) > 1:
        raise e.refuse(node, "two dimensions of the shape that it gives are not static")
    return sizes


def _reshape(e: Emission, node: ir.Node) -> None:
    shape = _target_shape(e, node, e.constant(node, 1))
    e.bind(node, e.mb.reshape(x=e.value(node), shape=shape, name=e.name(node)))


def _flatten(e: Emission, node: ir.Node) -> None:
    given = e.shape(node)
    axis = node.attributes.get_int("axis", 1)
    axis = axis + len(given) if axis < 0 else axis
    halves: list[int] = []
    for part in (given[:axis], given[axis:]):
        static = [d for d in part if isinstance(d, int)]
        halves.append(int(np.prod(static)) if len(static) == len(part) else -1)
    if halves.count(-1) > 1:
        raise e.refuse(node, "two dimensions of the shape that it gives are not static")
    e.bind(node, e.mb.reshape(x=e.value(node), shape=halves, name=e.name(node)))


def _transpose(e: Emission, node: ir.Node) -> None:
    rank = len(e.shape(node))
    perm = list(node.attributes.get_ints("perm", tuple(reversed(range(rank)))))
    e.bind(node, e.mb.transpose(x=e.value(node), perm=perm, name=e.name(node)))


def _squeeze(e: Emission, node: ir.Node) -> None:
    axes = e.integers(node, "axes", 1)
    shape = e.shape(node)
    axes = [i for i, d in enumerate(shape) if d == 1] if axes is None else [e.axis(node, a) for a in axes]
    e.bind(node, e.mb.squeeze(x=e.value(node), axes=sorted(axes), name=e.name(node)))


def _unsqueeze(e: Emission, node: ir.Node) -> None:
    axes = e.integers(node, "axes", 1) or []
    rank = len(e.shape(node)) + len(axes)
    e.bind(node, e.mb.expand_dims(x=e.value(node), axes=sorted(a % rank for a in axes), name=e.name(node)))


def _expand(e: Emission, node: ir.Node) -> None:
    given, result = e.shape(node), e.graph.shape(node.outputs[0])
    lifted: tuple[int | str, ...] = (1,) * (len(result) - len(given)) + tuple(given)
    repeats = []
    for before, after in zip(lifted, result, strict=True):
        if before != after and not (before == 1 and isinstance(after, int)):
            raise e.refuse(node, "it repeats a dimension that is not static")
        repeats.append(1 if before == after else int(after))
    x = e.value(node)
    if len(lifted) > len(given):
        axes = list(range(len(lifted) - len(given)))
        x = e.mb.expand_dims(x=x, axes=axes, name=e.helper(node, "lifted"))
    e.bind(node, e.mb.tile(x=x, reps=repeats, name=e.name(node)))


def _tile(e: Emission, node: ir.Node) -> None:
    repeats = [int(n) for n in e.required(node, 1, "number of repetitions").reshape(-1)]
    if min(repeats, default=1) < 1:
        raise e.refuse(node, "the result is empty")
    e.bind(node, e.mb.tile(x=e.value(node), reps=repeats, name=e.name(node)))


_PAD_MODES: Final = MappingProxyType({"constant": "constant", "reflect": "reflect", "edge": "replicate"})


def _cut(e: Emission, node: ir.Node, before: Sequence[int], after: Sequence[int]) -> Any:
    """Return the input with what negative padding cuts off taken away."""
    shape = e.shape(node)
    cut = [(max(-first, 0), max(-last, 0)) for first, last in zip(before, after, strict=True)]
    if not any(first or last for first, last in cut):
        return e.value(node)
    ends = []
    for size, (first, last) in zip(shape, cut, strict=True):
        if (first or last) and not isinstance(size, int):
            raise e.refuse(node, "it cuts a dimension that is not static")
        ends.append(int(size) - last if first or last else 0)
        if (first or last) and ends[-1] <= first:
            raise e.refuse(node, "it cuts off everything")
    whole = [not (first or last) for first, last in cut]
    only = min((*before, *after)) < 0 and max((*before, *after)) <= 0
    return e.mb.slice_by_index(
        x=e.value(node),
        begin=[first for first, _ in cut],
        end=ends,
        begin_mask=whole,
        end_mask=whole,
        name=e.name(node) if only else e.helper(node, "cut"),
    )


def _pad(e: Emission, node: ir.Node) -> None:
    mode = node.attributes.get_string("mode", "constant")
    pads = e.integers(node, "pads", 1)
    if mode not in _PAD_MODES or pads is None:
        raise e.refuse(node, f"MIL's pad has no mode {mode}")
    rank = len(e.shape(node))
    axes = list(range(rank))
    if e.has(node, 3):
        axes = [e.axis(node, int(a)) for a in e.required(node, 3, "axes").reshape(-1)]
    before, after = [0] * rank, [0] * rank
    for index, axis in enumerate(axes):
        before[axis], after[axis] = pads[index], pads[index + len(axes)]
    x = _cut(e, node, before, after)
    before, after = [max(p, 0) for p in before], [max(p, 0) for p in after]
    first = next((i for i in range(rank) if before[i] or after[i]), rank)
    if first == rank:
        e.bind(node, x)
        return
    value = np.float32(node.attributes.get_float("value", 0.0))
    if e.has(node, 2):
        value = np.float32(e.required(node, 2, "value").reshape(()))
    if mode != "constant":
        # Core ML reflects and replicates on the last two dimensions alone.
        if first < rank - 2:
            raise e.refuse(node, f"mode {mode} on a dimension before the last two")
        value = np.float32(0)
    padded = e.mb.pad(
        x=x,
        pad=_interleaved(before[first:], after[first:]),
        mode=_PAD_MODES[mode],
        constant_val=value,
        name=e.name(node),
    )
    e.bind(node, padded)


OPERATORS: Final[Mapping[str, Operator]] = MappingProxyType(
    {
        "Abs": partial(_unary, operation="abs"),
        "Add": partial(_binary, operation="add"),
        "AveragePool": partial(_pool, average=True),
        "BatchNormalization": _batch_norm,
        "Cast": _cast,
        "Ceil": partial(_unary, operation="ceil"),
        "Clip": _clip,
        "Concat": _concat,
        "Conv": _conv,
        "Div": partial(_binary, operation="real_div"),
        "Dropout": _identity,
        "Elu": _elu,
        "Erf": partial(_unary, operation="erf"),
        "Exp": partial(_unary, operation="exp"),
        "Expand": _expand,
        "Flatten": _flatten,
        "Floor": partial(_unary, operation="floor"),
        "Gather": _gather,
        "Gelu": _gelu,
        "Gemm": _gemm,
        "GlobalAveragePool": partial(_global_pool, operation="reduce_mean"),
        "GlobalMaxPool": partial(_global_pool, operation="reduce_max"),
        "HardSigmoid": _hard_sigmoid,
        "HardSwish": _hard_swish,
        "Identity": _identity,
        "LeakyRelu": _leaky_relu,
        "Log": partial(_unary, operation="log"),
        "LogSoftmax": _log_softmax,
        "MatMul": _matmul,
        "Max": partial(_extremum, operation="maximum"),
        "MaxPool": partial(_pool, average=False),
        "Min": partial(_extremum, operation="minimum"),
        "Mish": _mish,
        "Mul": partial(_binary, operation="mul"),
        "Neg": _negate,
        "PRelu": _prelu,
        "Pad": _pad,
        "Pow": partial(_binary, operation="pow"),
        "Reciprocal": _reciprocal,
        "ReduceL2": partial(_reduce, operation="reduce_l2_norm"),
        "ReduceMax": partial(_reduce, operation="reduce_max"),
        "ReduceMean": partial(_reduce, operation="reduce_mean"),
        "ReduceMin": partial(_reduce, operation="reduce_min"),
        "ReduceSum": partial(_reduce, operation="reduce_sum"),
        "Relu": partial(_unary, operation="relu"),
        "Reshape": _reshape,
        "Resize": resize,
        "Sigmoid": partial(_unary, operation="sigmoid"),
        "Slice": _slice,
        "Softmax": _softmax,
        "Softplus": partial(_unary, operation="softplus"),
        "Split": _split,
        "Sqrt": partial(_unary, operation="sqrt"),
        "Squeeze": _squeeze,
        "Sub": partial(_binary, operation="sub"),
        "Sum": _sum,
        "Tanh": partial(_unary, operation="tanh"),
        "Tile": _tile,
        "Transpose": _transpose,
        "Unsqueeze": _unsqueeze,
    }
)


def needed_inputs(node: ir.Node) -> list[ir.Value]:
    """Return the inputs whose values the emitted node reads at run time.

    A reshape reads its target from the inferred shape, so what a graph computes for it is not emitted.
    """
    inputs = node.inputs[:1] if node.op_type == "Reshape" else node.inputs
    return [value for value in inputs if value is not None]
