"""`rank4`: the shuffle as a transpose of [N, g, C/g, H*W].

The spatial axes move as one, so a channel shuffle needs four axes, not five::

    Given                                          Result
    x [N, C, H, W]                                 x [N, C, H, W]
    r = Reshape(x)    [N, g, C/g, H, W]            r = Reshape(x)    [N, g, C/g, H*W]
    t = Transpose(r)  [N, C/g, g, H, W]            t = Transpose(r)  [N, C/g, g, H*W]
    y = Reshape(t)    [N, C, H, W]                 y = Reshape(t)    [N, C, H, W]

The TFLite GPU delegate and NNAPI refuse any tensor of rank 5 (ShuffleNet V2 and V1, every unit).

Conditions: the site is one channel shuffle, of which every output is a run of channels. Megvii's even and odd
channels are the two halves of a shuffle with C/2 groups. Refused: any other permutation (`gather` takes it).
"""

from typing import Final

import onnx_ir as ir

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.edit import Editor
from shufflectl.converters.rewrite.lowering import Options, Report
from shufflectl.converters.rewrite.provenance import Site
from shufflectl.converters.rewrite.sitewise import Form, divide, join, require_form, rewrite_sites

__all__ = ["RANK4", "apply"]


def _build(editor: Editor, site: Site) -> list[ir.Value]:
    groups = require_form(site)
    return divide(editor, site, editor.shuffle(join(editor, site), groups, site.name))


RANK4: Final[Form] = ("rank4", "no tensor of rank 5, at the same bytes", _build)
"""The form, for other lowerings to fall back on."""


def apply(graph: Graph, options: Options) -> tuple[Graph, Report]:  # noqa: ARG001 - every lowering's signature
    """Return the graph with every channel shuffle at rank 4, and the report."""
    return rewrite_sites(graph, *RANK4)
