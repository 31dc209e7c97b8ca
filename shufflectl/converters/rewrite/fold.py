"""`fold`: no shuffle, no split, no copy of channels that pass through: the permutation lives in the weights.

See `plan` for the algebra. For a stage of ShuffleNet V2 with C channels::

    Given, each unit                                    Result
    x [N, C, H, W]                                      b1, b2, ... [N, C/2, H, W]  the branches' outputs
    p, q = Split(shuffle(x))   [N, C/2, H, W]           q = Concat(b[k-1] (last C/4), b[k-2] (C/8), ...)
    b = branch(q)              [N, C/2, H, W]           b = branch'(q)              [N, C/2, H, W]
    x = Concat(p, b)           [N, C, H, W]

A channel of b is read once, by the unit in which the shuffles have brought it to the second half; the unit in
which that happens is its life. The rows of the last 1x1 convolution are sorted by life, so what a unit reads
is one run of each b, and the columns of its first 1x1 convolution (and the constants of a downsampling unit's
depthwise convolution) are permuted to match. Nothing else moves: about 1 to 2 T instead of 6 T a unit.

Conditions: none on the model; it works on the channel maps of all consumers. What it leaves, it names: what
stands between two grouped convolutions (V1) or around operators that are not known to keep channels apart. A
graph output gets its channels in the captured order, by one gather where they are not. Weights that several
nodes share are duplicated where their orders differ, with a note. Shuffles that remain go to `commute`
and `rank4`.
"""

from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.lowering import Options, Report
from shufflectl.converters.rewrite.relayout import relayout

__all__ = ["apply"]


def apply(graph: Graph, options: Options) -> tuple[Graph, Report]:
    """Return the graph with its shuffles folded into the weights, read by slices, and the report."""
    why = "the permutation lives in the weights; each unit reads runs of the tensors before it"
    return relayout(graph, options, name="fold", why=why, split=False)
