"""Spares the copy in front of a padded pooling, by computing one row and one column that nobody reads.

torch pads both ends of a pooling; TFLite's SAME pads the end first. For a window of 3 and a stride of 2
over an even size the two disagree, and only an explicit PAD, a copy of the network's largest tensor, makes
them agree. With one row and column more they agree without it::

    Conv  -> [N, 112, 112, C]                          Conv' -> [N, 113, 113, C]
    PAD   -> [N, 113, 113, C]  a row on top            MAX_POOL_2D SAME (1 on top, 1 below) -> [N, 57, 57, C]
    MAX_POOL_2D VALID -> [N, 56, 56, C]                first 56 rows and columns: the same windows

The last row and column of what follows hold nothing that was asked for. Pointwise operators hand them on; a
window with a stride of 2 whose last row does not need the padding at the end never reads them.

The convolution's own padding grows by its stride, which costs nothing: XNNPACK takes a PAD of zeros in
front of a convolution into the convolution. It does not for pooling. On ShuffleNet V2 x1.0 the copy is
about 5% of an inference (docs/latency.md).

Conditions, all proved on the graph: what is in front of the pooling is one convolution and pointwise
operators that only the pooling reads in the end; what is behind it are pointwise operators, and windows
that need not read the last row. Otherwise the pooling is left as it is.
"""

import onnx_ir as ir

from shufflectl.converters.graph import Graph, TensorRecord
from shufflectl.converters.rewrite.roles import Carries, Mixes, role

__all__ = ["grow"]

_WINDOWS = frozenset(["AveragePool", "Conv", "MaxPool"])


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else default


def _area(value: ir.Value) -> list[int] | None:
    """Return height and width, where both are known."""
    if value.shape is None or len(value.shape) != 4:
        return None
    sizes = Graph.shape(value)[2:]
    return [s for s in sizes if isinstance(s, int)] if all(isinstance(s, int) for s in sizes) else None


class _Window:
    """The geometry of a node over height and width."""

    def __init__(self, node: ir.Node) -> None:
        weight = Graph.constant(node.inputs[1]) if node.op_type == "Conv" else None
        kernel = list(weight.shape[2:]) if weight is not None else []
        self.node = node
        self.kernel = _ints(node, "kernel_shape", kernel)
        self.strides = _ints(node, "strides", [1, 1])
        self.dilations = _ints(node, "dilations", [1, 1])
        self.pads = _ints(node, "pads", [0, 0, 0, 0])
        self.known = (
            node.op_type in _WINDOWS
            and len(self.kernel) == 2
            and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
            and not node.attributes.get_int("ceil_mode", 0)
        )

    def needed(self, axis: int, outputs: int) -> int:
        """Return how many elements of an axis that many outputs read, those of the padding in front aside."""
        reach = (outputs - 1) * self.strides[axis] + self.dilations[axis] * (self.kernel[axis] - 1) + 1
        return int(reach - self.pads[axis])


def _pointwise(node: ir.Node) -> bool:
    """Whether each output pixel depends on the same input pixel alone."""
    what = role(node)
    if isinstance(what, Carries) and what.elementwise:
        return True
    if node.op_type != "Conv" or not isinstance(what, Mixes | Carries):
        return False
    window = _Window(node)
    return window.known and window.kernel == [1, 1] and window.strides == [1, 1] and not any(window.pads)


def _grows(pool: ir.Node) -> bool:
    """Whether SAME pads a pooling over one row and column more as the pooling is padded."""
    window = _Window(pool)
    given, made = (None if v is None else _area(v) for v in (pool.inputs[0], pool.outputs[0]))
    if not window.known or pool.op_type != "MaxPool" or given is None or made is None:
        return False
    if window.dilations != [1, 1] or len(pool.outputs) != 1:
        return False
    for axis in (0, 1):
        stride, kernel, before = window.strides[axis], window.kernel[axis], window.pads[axis]
        grown = -(-(given[axis] + 1) // stride)
        total = (grown - 1) * stride + kernel - (given[axis] + 1)
        plain = (made[axis] - 1) * stride + kernel - given[axis]
        same = -(-given[axis] // stride) == made[axis] and max(plain, 0) // 2 == before
        if before == 0 or same or grown != made[axis] + 1 or total // 2 != before or total < 0:
            return False
        if window.needed(axis, made[axis]) > given[axis]:  # its last window is padded at the end
            return False
    return True


class _Grower:
    """The change of one pooling: first all that must hold is found to hold, then it is made."""

    def __init__(self, graph: Graph, pool: ir.Node) -> None:
        self.graph = graph
        self.pool = pool
        self.larger: list[ir.Value] = [pool.outputs[0]]
        self.conv: ir.Node | None = None
        self.readers: list[ir.Node] = []

    def possible(self) -> bool:
        return self._in_front() and self._behind()

    def _in_front(self) -> bool:
        value = self.pool.inputs[0]
        while value is not None:
            node = value.producer()
            if node is None or value.is_graph_output() or len(list(value.uses())) != 1:
                return False
            self.larger.append(value)
            if node.op_type == "Conv":
                self.conv = node
                return _Window(node).known and _area(value) is not None
            if not _pointwise(node):
                return False
            value = node.inputs[0]
        return False

    def _behind(self) -> bool:
        waiting = [self.pool.outputs[0]]
        while waiting:
            value = waiting.pop()
            if value.is_graph_output():
                return False
            for use in value.uses():
                node, out = use.node, use.node.outputs[0]
                if use.idx != 0 or len(node.outputs) != 1:
                    return False
                if _pointwise(node):
                    self.larger.append(out)
                    waiting.append(out)
                    continue
                window, given, made = _Window(node), _area(value), _area(out)
                if not window.known or given is None or made is None:
                    return False
                for axis in (0, 1):
                    free = given[axis] + 1 + window.pads[axis] - window.needed(axis, made[axis])
                    # Without padding at the end it gives as many outputs, and reads no row too many.
                    exact = free - window.pads[axis] < window.strides[axis]
                    if window.needed(axis, made[axis]) > given[axis] or not exact:
                        return False
                self.readers.append(node)
        return True

    def make(self) -> None:
        for value in self.larger:
            height, width = _area(value) or []
            batch, channels = Graph.shape(value)[:2]
            record = self.graph.record(str(value.name))
            self.graph.records[str(value.name)] = TensorRecord(
                record.origin, record.channels, record.area or (height, width)
            )
            value.shape = ir.Shape([batch, channels, height + 1, width + 1])
        assert self.conv is not None  # noqa: S101 - `possible` found it
        given = self.conv.inputs[0]
        assert given is not None  # noqa: S101 - a convolution reads something
        window, source, made = _Window(self.conv), _area(given), _area(self.conv.outputs[0])
        assert source is not None and made is not None  # noqa: S101, PT018 - likewise
        after = [max(window.needed(axis, made[axis]) - source[axis], 0) for axis in (0, 1)]
        self.conv.attributes.add(ir.AttrInt64s("pads", [*window.pads[:2], *after]))
        for node in self.readers:
            before = _Window(node).pads[:2]
            node.attributes.add(ir.AttrInt64s("pads", [*before, 0, 0]))


def grow(graph: Graph) -> Graph:
    """Return the graph with poolings that SAME pads as they are, where that is possible.

    Tensors that have a row and a column more are on record with the sizes that they stand for.
    """
    copy = graph.clone()
    for node in copy.nodes:
        if node.op_type == "MaxPool" and _grows(node):
            change = _Grower(copy, node)
            if change.possible():
                change.make()
    return copy
