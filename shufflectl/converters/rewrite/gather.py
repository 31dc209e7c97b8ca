"""`gather`: each output picked by constant channel indices.

::

    Given                                          Result
    a, b [N, C/2, H, W]                            a, b [N, C/2, H, W]
    c = Concat(a, b)            [N, C, H, W]       c = Concat(a, b)          [N, C, H, W]
    y = shuffle(c)              [N, C, H, W]       p = Gather(c, [0, C/2, 1, C/2 + 1, ...])  [N, C/2, H, W]
    p, q = Split(y)             [N, C/2, H, W]     q = Gather(c, ...)                        [N, C/2, H, W]

Conditions: none on the permutation; it takes what `rank4` refuses, selections and repetitions included. An
output that is a run of the joined channels is a Slice. XNNPACK has no GATHER, so in TFLite each one ends a
partition.
"""

import onnx_ir as ir

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.edit import Editor
from shufflectl.converters.rewrite.lowering import Options, Report
from shufflectl.converters.rewrite.provenance import Site
from shufflectl.converters.rewrite.sitewise import join, rewrite_sites

__all__ = ["apply"]


def _build(editor: Editor, site: Site) -> list[ir.Value]:
    whole = join(editor, site)
    made = []
    for output in site.outputs:
        channels = [int(c) for c in site.joined(output)]
        first, end = channels[0], channels[0] + len(channels)
        if channels == list(range(first, end)):
            made.append(editor.slice(whole, first, end, f"{output.name}.slice"))
        else:
            made.append(editor.gather(whole, channels, f"{output.name}.gather"))
    return made


def apply(graph: Graph, options: Options) -> tuple[Graph, Report]:  # noqa: ARG001 - every lowering's signature
    """Return the graph with every moved channel picked by index, and the report."""
    return rewrite_sites(graph, "gather", "one copy for each output, any permutation", _build)
