"""`native`: the graph as captured.

What torch wrote: Concat, Reshape, Transpose and Reshape at rank 5, Split. Core ML's own pass turns this form
(static shapes) into one ``concat(interleave=True)``, and ncnn and ONNX Runtime's QNN provider look for it, so
it is the right form where a runtime has a channel shuffle of its own. It is never refused.
"""

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.lowering import Options, Report, unchanged

__all__ = ["apply"]


def apply(graph: Graph, options: Options) -> tuple[Graph, Report]:  # noqa: ARG001 - every lowering's signature
    """Return a copy of the graph, and the report of what it holds."""
    return unchanged("native", graph, "the form that was captured, for runtimes that know it")
