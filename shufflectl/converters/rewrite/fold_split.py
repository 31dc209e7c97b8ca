"""`fold-split`: `fold`, with each branch's last convolution split by the lives of its channels.

::

    Given                                     Result
    h [N, C/2, H, W]                          h [N, C/2, H, W]
    b = Relu(Conv(h, W))   [N, C/2, H, W]     b.0 = Relu(Conv(h, W[rows 0]))   [N, C/4, H, W]
    q = Slice(b, C/4)      [N, C/4, H, W]     b.1 = Relu(Conv(h, W[rows 1]))   [N, C/8, H, W]  ...

The rows of a convolution are independent, so each group of rows may be a convolution of its own; then what a
unit reads is whole tensors and no slice is left. With padding to the block of a blocked layout (ONNX Runtime:
16 channels with AVX-512, 8 otherwise) all data stays blocked.

Conditions: those of `fold`; a tensor is held in pieces only if it comes from a convolution through
activations alone. `Options.merge` lets small classes share a piece, whose readers have zero columns for what
they ignore.
"""

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.lowering import Options, Report
from shufflectl.converters.rewrite.relayout import relayout

__all__ = ["apply"]


def apply(graph: Graph, options: Options) -> tuple[Graph, Report]:
    """Return the graph with its shuffles folded into the weights and no slices, and the report."""
    why = "the permutation lives in the weights; each branch gives one tensor for each unit that reads it"
    return relayout(graph, options, name="fold-split", why=why, split=True)
