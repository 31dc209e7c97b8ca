"""Padding in ONNX's terms and in MIL's."""

from collections.abc import Sequence

import onnx_ir as ir

from shufflectl.converters.coreml.emission import Emission

__all__ = ["interleaved", "spatial_pads"]


def spatial_pads(
    emission: Emission,
    node: ir.Node,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Return the padding before and after each spatial dimension, ``auto_pad`` worked out.

    ONNX ``SAME_UPPER`` and ``SAME_LOWER`` pad to ``ceil(size / stride)`` outputs, the odd element after or
    before.
    """
    sizes = emission.spatial(node)
    rank = len(sizes)
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto == "VALID":
        return [0] * rank, [0] * rank
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        begin, end = [], []
        for size, window, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
            total = max((-(-size // stride) - 1) * stride + (window - 1) * dilation + 1 - size, 0)
            small, large = total // 2, total - total // 2
            begin.append(small if auto == "SAME_UPPER" else large)
            end.append(large if auto == "SAME_UPPER" else small)
        return begin, end
    pads = [int(p) for p in node.attributes.get_ints("pads", [0] * 2 * rank)]
    if min(pads) < 0:
        raise emission.refuse(node, "negative padding")
    return pads[:rank], pads[rank:]


def interleaved(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Return ONNX's padding (all begins, all ends) in MIL's order (begin and end of each dimension)."""
    return [p for pair in zip(begin, end, strict=True) for p in pair]
