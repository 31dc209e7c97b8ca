"""How poolings and reductions are spelled in MIL."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx_ir as ir

from shufflectl.converters.coreml.emission import Emission, Operator
from shufflectl.converters.coreml.operators.pads import interleaved, spatial_pads

__all__ = ["OPERATORS"]


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
        pad = interleaved(begin, end)
        x = e.mb.pad(x=x, pad=pad, mode="constant", constant_val=np.float32(0), name=e.helper(node, "pad"))
        begin, end, counted = [0] * rank, [0] * rank, False
    pool = partial(e.mb.avg_pool, exclude_padding_from_average=not counted) if average else e.mb.max_pool
    after = [p + extra for p, extra in zip(end, overhang, strict=True)]
    pad = interleaved(begin, after)
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


OPERATORS: Final[Mapping[str, Operator]] = MappingProxyType(
    {
        "AveragePool": partial(_pool, average=True),
        "GlobalAveragePool": partial(_global_pool, operation="reduce_mean"),
        "GlobalMaxPool": partial(_global_pool, operation="reduce_max"),
        "MaxPool": partial(_pool, average=False),
        "ReduceL2": partial(_reduce, operation="reduce_l2_norm"),
        "ReduceMax": partial(_reduce, operation="reduce_max"),
        "ReduceMean": partial(_reduce, operation="reduce_mean"),
        "ReduceMin": partial(_reduce, operation="reduce_min"),
        "ReduceSum": partial(_reduce, operation="reduce_sum"),
    }
)
