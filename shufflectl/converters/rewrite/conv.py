"""`conv`: the shuffle as a 1x1 convolution with a permutation matrix.

``y[o] = sum_i P[o, i] x[i]`` with one 1 a row: each product is x times 1 or x times 0, so the sum is exact
for finite x::

    Given                                          Result
    x [N, C, H, W]                                 x [N, C, H, W]
    y = shuffle(x)  [N, C, H, W]                   y = Conv(x, P)  [N, C, H, W],  P [C, C, 1, 1]

It costs C^2 * H * W multiply-adds and needs nothing but convolutions, which is the point where an accelerator
has nothing else.

Conditions: rank 4 and a float type. Refused: other ranks and types; they become `rank4`.
"""

import numpy as np
import onnx_ir as ir

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.edit import Editor, channel_axis_size
from shufflectl.converters.rewrite.lowering import Options, RefusedError, Report
from shufflectl.converters.rewrite.provenance import Site
from shufflectl.converters.rewrite.rank4 import RANK4
from shufflectl.converters.rewrite.sitewise import divide, join, permutation_matrix, rewrite_sites

__all__ = ["apply"]


def _convolve(editor: Editor, x: ir.Value, channels: list[int], base: str) -> ir.Value:
    dtype = x.dtype
    assert dtype is not None  # noqa: S101 - checked by the caller
    matrix = permutation_matrix(channels, channel_axis_size(x), np.dtype(dtype.numpy()))
    weight = editor.constant(f"{base}.weight", matrix[:, :, None, None])
    shape = editor.with_channels(x, len(channels))
    return editor.node("Conv", [x, weight], [shape], base, kernel_shape=[1, 1])[0]


def _build(editor: Editor, site: Site) -> list[ir.Value]:
    for name, _ in site.inputs:
        value = editor.value(name)
        if len(Graph.shape(value)) != 4:
            raise RefusedError(f"{name!r} has rank {len(Graph.shape(value))}, and a 1x1 convolution takes 4")
        if value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
            raise RefusedError(f"{name!r} is no float tensor")
    whole = join(editor, site)
    if site.form is not None:
        order = [int(c) for c in site.form.order()]
        return divide(editor, site, _convolve(editor, whole, order, f"{site.name}.permute"))
    return [
        _convolve(editor, whole, [int(c) for c in site.joined(output)], f"{output.name}.permute")
        for output in site.outputs
    ]


def apply(graph: Graph, options: Options) -> tuple[Graph, Report]:  # noqa: ARG001 - every lowering's signature
    """Return the graph with every shuffle as a convolution, and the report."""
    return rewrite_sites(
        graph, "conv", "convolutions only, for accelerators that have little else", _build, (RANK4,)
    )
