"""What rewrites need to change a graph: nodes, constants and names, in one place.

An `Editor` works on a clone. New nodes are put where all they read exists, new tensors know their shapes, and
names stay unique. Weights are never changed in place: a node that needs other weights gets an initialiser of
its own, so that what shares the old one keeps it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from shufflectl.converters.graph import Graph, TensorRecord

__all__ = ["Editor", "channel_axis_size", "take"]

Dim = int | str


def channel_axis_size(value: ir.Value) -> int:
    """Return a tensor's number of channels (axis 1)."""
    size = Graph.shape(value)[1]
    if not isinstance(size, int):
        raise TypeError(f"tensor {value.name!r} has no known number of channels")
    return size


def take(array: NDArray[Any], axis: int, layout: Sequence[int], padding: float) -> NDArray[Any]:
    """Return the entries of a layout on an axis, padding where it is -1."""
    index = np.asarray(layout)
    taken: NDArray[Any] = np.take(array, np.maximum(index, 0), axis=axis)
    if (index < 0).any():
        shape = [1] * array.ndim
        shape[axis] = len(index)
        taken = np.where((index >= 0).reshape(shape), taken, array.dtype.type(padding))
    return taken


class Editor:
    """Changes a clone of a graph.

    Args:
        graph: What to start from; it is not changed.

    Attributes:
        graph: The clone.
        shared: Initialisers that several nodes share and of which one node now has its own copy.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph.clone()
        self.shared: list[str] = []
        self._core = self.graph.model.graph
        self._names = {str(v.name) for v in (*self._core.inputs, *self._core.initializers.values())}
        self._names |= {str(v.name) for n in self._core for v in n.outputs}
        self._values = {str(v.name): v for v in (*self._core.inputs, *self._core.initializers.values())}
        self._values |= {str(v.name): v for n in self._core for v in n.outputs}
        self._owner = {str(v.name): n for n in self._core for v in n.outputs}
        self._last: ir.Node | None = None
        self._records = dict(self.graph.records)
        self._totals = self._recorded()
        self._kept = set(self._values.values())
        """Tensors whose names mean something: those that were there before, and their replacements."""

    def _recorded(self) -> dict[str, int]:
        """Return how many channels of each captured tensor are on record."""
        found: dict[str, set[int]] = {}
        for value in (*self._core.inputs, *(v for n in self._core for v in n.outputs)):
            record = self.graph.record(str(value.name))
            channels: Iterable[int] = record.channels or ()
            if record.channels is None and value.shape is not None and len(value.shape) > 1:
                size = value.shape[1]
                channels = range(size) if isinstance(size, int) else ()
            found.setdefault(record.origin, set()).update(c for c in channels if c >= 0)
        return {origin: len(channels) for origin, channels in found.items()}

    def value(self, name: str) -> ir.Value:
        """Return the tensor of that name."""
        return self._values[name]

    def producer(self, name: str) -> ir.Node:
        """Return the node that makes the tensor of that name."""
        return self._owner[name]

    def name(self, base: str) -> str:
        """Return a name that no tensor has yet, and take it."""
        candidate, count = base, 0
        while candidate in self._names:
            count += 1
            candidate = f"{base}_{count}"
        self._names.add(candidate)
        return candidate

    def constant(self, base: str, array: NDArray[Any]) -> ir.Value:
        """Return a new initialiser."""
        name = self.name(base)
        tensor = ir.tensor(np.ascontiguousarray(array), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self._core.register_initializer(value)
        self._values[name] = value
        return value

    def after(self, values: Sequence[ir.Value]) -> None:
        """Put what `node` makes next behind the nodes that make these tensors."""
        makers = {n for v in values if (n := v.producer()) is not None}
        self._last = None
        for node in self._core:
            if node in makers:
                self._last = node

    def behind(self, node: ir.Node) -> None:
        """Put what `node` makes next behind this node."""
        self._last = node

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        shapes: Sequence[Sequence[Dim]],
        base: str,
        **attributes: Any,
    ) -> list[ir.Value]:
        """Return the results of a new node, one a shape, of the first input's type."""
        first = inputs[0]
        assert first is not None  # noqa: S101 - a node moves or computes something
        outputs = []
        for index, shape in enumerate(shapes):
            name = self.name(base if len(shapes) == 1 else f"{base}.{index}")
            value = ir.Value(name=name, shape=ir.Shape(list(shape)), type=first.type)
            self._values[name] = value
            outputs.append(value)
        attrs = ir.convenience.convert_attributes(attributes)
        node = ir.Node("", op, inputs, attrs, outputs=outputs, name=outputs[0].name)
        if self._last is None:
            nodes = list(self._core)
            if nodes:
                self._core.insert_before(nodes[0], node)
            else:
                self._core.append(node)
        else:
            self._core.insert_after(self._last, node)
        self._last = node
        for value in outputs:
            self._owner[str(value.name)] = node
            # Its name may be that of a captured tensor that is gone, so it must say that it stands for none.
            self.graph.records[str(value.name)] = TensorRecord("")
        return outputs

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None], channels: int, base: str) -> ir.Value:
        """Return the result of the same operator on other inputs, with another number of channels."""
        old = node.outputs[0]
        new = self.node(node.op_type, inputs, [self.with_channels(old, channels)], base)[0]
        made = new.producer()
        assert made is not None  # noqa: S101 - it was made just now
        for attr in node.attributes.values():
            made.attributes.add(attr)
        new.type = old.type
        return new

    # Shapes of channel movement. A tensor is [N, C, ...]: the batch may be symbolic, the rest is known.

    @staticmethod
    def with_channels(value: ir.Value, channels: int) -> list[Dim]:
        """Return a tensor's shape with another number of channels."""
        batch, _, *rest = Graph.shape(value)
        return [batch, channels, *rest]

    def reshape(self, value: ir.Value, shape: Sequence[Dim], base: str) -> ir.Value:
        """Return the tensor with another shape; a symbolic batch is not baked in."""
        dims = [-1 if isinstance(d, str) else d for d in shape]
        to = self.constant(f"{base}.shape", np.asarray(dims, np.int64))
        return self.node("Reshape", [value, to], [shape], base)[0]

    def transpose(self, value: ir.Value, perm: Sequence[int], base: str) -> ir.Value:
        """Return the tensor with its axes in another order."""
        dims = Graph.shape(value)
        return self.node("Transpose", [value], [[dims[a] for a in perm]], base, perm=list(perm))[0]

    def concat(self, values: Sequence[ir.Value], base: str, axis: int = 1) -> ir.Value:
        """Return the tensors joined on an axis; one alone is returned as it is."""
        if len(values) == 1:
            return values[0]
        shape = list(Graph.shape(values[0]))
        shape[axis] = sum(int(Graph.shape(v)[axis]) for v in values)
        return self.node("Concat", values, [shape], base, axis=axis)[0]

    def slice(self, value: ir.Value, first: int, end: int, base: str) -> ir.Value:
        """Return channels ``[first, end)``; all of them are the tensor itself."""
        if first == 0 and end == channel_axis_size(value):
            return value
        bounds = [
            self.constant(f"{base}.{part}", np.asarray([number], np.int64))
            for part, number in (("starts", first), ("ends", end), ("axes", 1))
        ]
        shape = self.with_channels(value, end - first)
        return self.node("Slice", [value, *bounds], [shape], base)[0]

    def gather(self, value: ir.Value, channels: Sequence[int], base: str) -> ir.Value:
        """Return the listed channels."""
        index = self.constant(f"{base}.indices", np.asarray(channels, np.int64))
        return self.node("Gather", [value, index], [self.with_channels(value, len(channels))], base, axis=1)[
            0
        ]

    def split(self, value: ir.Value, sizes: Sequence[int], base: str) -> list[ir.Value]:
        """Return the channels divided into runs of these sizes."""
        shapes = [self.with_channels(value, size) for size in sizes]
        part = self.constant(f"{base}.sizes", np.asarray(sizes, np.int64))
        return self.node("Split", [value, part], shapes, base, axis=1)

    def shuffle(self, value: ir.Value, groups: int, base: str) -> ir.Value:
        """Return the tensor with its channels shuffled at rank 4."""
        batch, channels, *rest = Graph.shape(value)
        size, area = int(channels) // groups, math.prod(int(d) for d in rest)
        # [N, C, H, W] -> [N, g, C/g, H*W] -> [N, C/g, g, H*W] -> [N, C, H, W]
        x = self.reshape(value, [batch, groups, size, area], f"{base}.reshape")
        x = self.transpose(x, (0, 2, 1, 3), f"{base}.transpose")
        return self.reshape(x, [batch, channels, *rest], f"{base}.shuffle")

    # Replacing what was there.

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let everything that reads a tensor read another, which takes its name."""
        if old is new:
            return
        name = str(old.name)
        if new in self._kept:
            if not old.is_graph_output():
                ir.convenience.replace_all_uses_with(old, new)
                return
            # An output needs a node that makes it.
            self.after([new])
            new = self.node("Identity", [new], [Graph.shape(old)], f"{name}.identity")[0]
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        old.name = self.name(f"{name}.before")
        maker = old.producer()
        if maker is not None and maker.name == name:  # it may stay: what replaces the tensor may read it
            maker.name = old.name
        self._values[str(old.name)], self._values[name] = old, new
        new.name = name
        self.graph.records[str(old.name)] = TensorRecord("")
        self._kept.add(new)
        producer = self._owner[name] = new.producer()  # type: ignore[assignment]  # a new tensor has a producer
        if producer is not None and producer.outputs[0] is new:
            producer.name = name

    def own_constant(self, node: ir.Node, index: int, array: NDArray[Any]) -> None:
        """Give a node a constant input of its own."""
        old = node.inputs[index]
        assert old is not None  # noqa: S101 - only inputs that are there are replaced
        base = str(old.name)
        if len({use.node for use in old.uses()}) > 1 and base not in self.shared:
            self.shared.append(base)
        node.replace_input_with(index, self.constant(base, array))

    def record(self, value: ir.Value, channels: Sequence[int], origin: str | None = None) -> None:
        """Put on record that a tensor holds the channels of another in this order (-1: padding).

        Args:
            value: The tensor.
            channels: For each of its channels that of the origin. Channels that are missing are in others.
            origin: The tensor of the graph that the editor started from; by default that of the same name.
        """
        name = str(value.name)
        before = self._records.get(origin or name, TensorRecord(origin or name))
        order = tuple(channels)
        if before.channels is not None:
            order = tuple(-1 if c < 0 else before.channels[c] for c in order)
        if not before.origin:
            self.graph.records[name] = before
        elif order != tuple(range(self._totals.get(before.origin, len(order)))):
            self.graph.records[name] = TensorRecord(before.origin, order)
        elif before.origin == name:
            self.graph.records.pop(name, None)
        else:
            self.graph.records[name] = TensorRecord(before.origin)

    def finish(self) -> Graph:
        """Return the graph with what nothing reads removed, in an order in which it can be executed."""
        common.RemoveUnusedNodesPass()(self.graph.model)
        made: set[ir.Value] = {*self._core.inputs, *self._core.initializers.values()}
        for node in self._core:
            if any(v is not None and v not in made for v in node.inputs):
                self._core.sort()
                break
            made.update(node.outputs)
        alive = {str(v.name) for v in self._core.inputs}
        alive |= {str(v.name) for n in self._core for v in n.outputs}
        self.graph.records = {k: v for k, v in self.graph.records.items() if k in alive}
        left = self._recorded()
        # A piece that nothing reads is gone, so the others no longer make up what they stood for.
        for name, record in self.graph.records.items():
            if record.origin and left[record.origin] < self._totals.get(record.origin, 0):
                self.graph.records[name] = TensorRecord("")
        return self.graph
