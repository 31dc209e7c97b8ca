"""`interleave`: a shuffle of joined tensors as a concat on an axis of its own.

Shuffling the concatenation of g tensors with g groups interleaves them, and so does joining them on the axis
behind the channels::

    Given                                          Result
    a, b [N, C/2, H, W]                            a, b [N, C/2, H, W]
    c = Concat(a, b)      [N, C, H, W]             r, s = Reshape(a), Reshape(b)  [N, C/2, 1, H*W]
    y = shuffle(c, g=2)   [N, C, H, W]             c = Concat(r, s, axis 2)       [N, C/2, 2, H*W]
                                                   y = Reshape(c)                 [N, C, H, W]

The transpose is gone: 2T of reads and writes (T bytes of y) instead of 4T. It is meant for NCHW; in NHWC the
concat copies single elements (measured 1.5x slower than `native` in LiteRT).

Conditions: the site joins as many tensors, of equal channels, as its shuffle has groups (ShuffleNet V2 in
torchvision's form, every unit). Refused: ShuffleNet V1, which shuffles one tensor; Megvii's V2, which divides
into even and odd channels. They become `rank4`.
"""

import math
from typing import Final

import onnx_ir as ir

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.edit import Editor
from shufflectl.converters.rewrite.lowering import Options, RefusedError, Report
from shufflectl.converters.rewrite.provenance import Site
from shufflectl.converters.rewrite.rank4 import RANK4
from shufflectl.converters.rewrite.sitewise import Form, divide, require_form, rewrite_sites

__all__ = ["INTERLEAVE", "apply", "interleave"]


def interleave(editor: Editor, values: list[ir.Value], base: str) -> ir.Value:
    """Return the tensors' channels interleaved; all have the same shape."""
    batch, channels, *rest = Graph.shape(values[0])
    area = math.prod(int(d) for d in rest)
    # each [N, C/g, H, W] -> [N, C/g, 1, H*W]
    parts = [editor.reshape(v, [batch, channels, 1, area], f"{base}.part") for v in values]
    joined = editor.concat(parts, f"{base}.concat", axis=2)
    # [N, C/g, g, H*W] -> [N, C, H, W]
    return editor.reshape(joined, [batch, int(channels) * len(values), *rest], f"{base}.interleave")


def _build(editor: Editor, site: Site) -> list[ir.Value]:
    groups = require_form(site)
    sizes = {count for _, count in site.inputs}
    if len(site.inputs) == 1:
        raise RefusedError("it shuffles one tensor, which would have to be divided first")
    if groups != len(site.inputs) or len(sizes) > 1:
        text = " + ".join(str(count) for _, count in site.inputs)
        raise RefusedError(
            f"a shuffle with {groups} groups of {text} channels is not an interleaving of them"
        )
    whole = interleave(editor, [editor.value(name) for name, _ in site.inputs], site.name)
    return divide(editor, site, whole)


INTERLEAVE: Final[Form] = ("interleave", "concat and transpose in one copy", _build)
"""The form, for other lowerings to fall back on."""


def apply(graph: Graph, options: Options) -> tuple[Graph, Report]:  # noqa: ARG001 - every lowering's signature
    """Return the graph with concat and shuffle as one concat, and the report."""
    return rewrite_sites(graph, *INTERLEAVE, (RANK4,))
