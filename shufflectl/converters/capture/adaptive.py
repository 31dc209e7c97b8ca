"""Adaptive average pooling to any size, as products with constant matrices.

``AdaptiveAvgPool2d((h, w))`` averages rows ``floor(i H / h)`` to ``ceil((i + 1) H / h)`` for output row
i, and columns likewise. Where h does not divide H the windows differ in size or overlap, which no pooling
operator of ONNX has, and the exporter gathers every element of every window at rank 6. Averaging is
linear and separable, so::

    Given   x [N, C, H, W], output size (h, w)
    Result  x [N, C, H, W] . A [W, w] -> [N, C, H, w];  transposed [N, C, w, H] . B [H, h] -> [N, C, w, h]
            transposed [N, C, h, w]

Real: heads for detection and segmentation (pyramid pooling to 1, 2, 3 and 6 of a 7x7 map).

1. To 1x1 it stays a mean over H and W.
2. Where the windows are all alike it is AveragePool.
3. Else the products; a side whose output size is its size takes none.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import opset20 as op

from shufflectl.errors import GraphError

__all__ = ["adaptive_average_pool", "windows"]


def windows(source: int, target: int) -> NDArray[np.float32]:
    """Return the share of each of the source elements in each of the averages, ``[source, target]``."""
    shares = np.zeros((source, target), np.float32)
    for index in range(target):
        first, last = index * source // target, -(-(index + 1) * source // target)
        shares[first:last, index] = np.float32(1 / (last - first))
    return shares


def adaptive_average_pool(x: Any, output_size: Sequence[int]) -> Any:
    """Translate ``aten::adaptive_avg_pool2d`` (`torch.onnx.export`'s ``custom_translation_table``).

    Raises:
        GraphError: The height or width of the input is not known.
    """
    sizes, targets = list(x.shape)[-2:], [int(size) for size in output_size]
    if targets == [1, 1]:  # case 1
        axes: Any = op.Constant(value_ints=[-1, -2])
        return op.ReduceMean(x, axes, keepdims=1, noop_with_empty_axes=0)
    if not all(isinstance(size, int) for size in sizes):
        raise GraphError(
            "adaptive pooling of an image whose size is not fixed", hint="export with a fixed input size"
        )
    if all(size % target == 0 for size, target in zip(sizes, targets, strict=True)) and len(x.shape) == 4:
        steps = [size // target for size, target in zip(sizes, targets, strict=True)]
        return op.AveragePool(x, kernel_shape=steps, strides=steps, count_include_pad=0)  # case 2
    rank = len(x.shape)
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    height, width = (
        None if size == target else op.Constant(value=ir.to_proto(ir.tensor(windows(size, target))))
        for size, target in zip(sizes, targets, strict=True)
    )
    if width is not None:  # case 3
        x = op.MatMul(x, width)
    if height is not None:
        x = op.Transpose(op.MatMul(op.Transpose(x, perm=swapped), height), perm=swapped)
    return x
