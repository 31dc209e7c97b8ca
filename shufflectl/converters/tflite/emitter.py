"""The state of one conversion: which file tensors hold each tensor of the graph, and in which order of axes.

Operators (`operators`) ask for their inputs in the order of axes that they want, and say in which order
their outputs come. This module pays for the difference, once for each tensor and order.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.schema_py_generated import ActivationFunctionType, BuiltinOperator
from numpy.typing import NDArray

from shufflectl.converters.compose import Located, compose
from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.operators import weighted
from shufflectl.converters.quantize.scales import Scale
from shufflectl.converters.quantize.ties import only_activation
from shufflectl.converters.targets import EmitOptions
from shufflectl.converters.tflite import layout
from shufflectl.converters.tflite.flatbuffer import COUNTS, ModelWriter, Tensor
from shufflectl.converters.tflite.fuse import Fusion, fusions
from shufflectl.converters.tflite.layout import Dim, Shape, View, channels_last, movement
from shufflectl.converters.trace import NHWC, Trace
from shufflectl.errors import UnsupportedOperatorError

__all__ = ["Emitter", "Handler", "Operand", "Order", "Site", "fixed_sizes", "int32"]

Order = tuple[int, ...]
_FP16_MAX = float(np.finfo(np.float16).max)


@dataclass
class Operand:
    """A logical tensor and the file tensors that hold it.

    Attributes:
        name: The graph's name for it.
        shape: Its logical shape.
        dtype: The type of its elements.
        held: The file tensor that it was made as, and the view of it; None for a constant.
        value: The value of a constant.
        settled: The file tensors whose axes are the logical axes in some order, by that order.
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    held: tuple[Tensor, View] | None = None
    value: NDArray[Any] | None = None
    settled: dict[Order, Tensor] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The number of logical axes."""
        return len(self.shape)

    @property
    def natural_order(self) -> Order:
        """The order of axes that costs nothing, or least."""
        return tuple(range(self.rank)) if self.held is None else self.held[1].natural_order()

    @property
    def array(self) -> NDArray[Any]:
        """The value of an operand that is held nowhere, which is a constant."""
        if self.value is None:
            raise RuntimeError(f"tensor {self.name!r} is neither held nor constant")
        return self.value

    def elements(self) -> int:
        """Return the number of elements, with 1 for every size that is not fixed."""
        return int(np.prod([d for d in self.shape if isinstance(d, int)], dtype=np.int64))

    def cost(self, order: Order) -> int:
        """Return the number of elements that have to move to bring it into that order."""
        if self.held is None or order in self.settled:
            return 0
        return self.elements() if movement(self.held[1], order).perm is not None else 0


class Site:
    """One node of the graph as an operator's emit function sees it.

    Args:
        node: The node.
        fusion: The activation that it carries out besides; None for none.
    """

    def __init__(self, node: ir.Node, fusion: Fusion | None) -> None:
        self.node = node
        self.activation: int = ActivationFunctionType.NONE if fusion is None else fusion.activation
        self.outputs = list(node.outputs) if fusion is None else [fusion.node.outputs[0]]

    @property
    def op_type(self) -> str:
        """The operator in ONNX."""
        return self.node.op_type

    @property
    def name(self) -> str:
        """The node's name, or its first output's where it has none."""
        return self.node.name or self.node.outputs[0].name or self.op_type

    @property
    def output(self) -> ir.Value:
        """The (first) output, after the fused activation."""
        return self.outputs[0]

    @property
    def shape(self) -> Shape:
        """The shape of the output."""
        return Graph.shape(self.output)

    def has(self, index: int) -> bool:
        """Say whether an optional input is given."""
        return len(self.node.inputs) > index and self.node.inputs[index] is not None

    def input(self, index: int) -> ir.Value:
        """Return an input that must be there."""
        value = self.node.inputs[index] if len(self.node.inputs) > index else None
        if value is None:
            self.refuse(f"input {index} is missing")
        return value

    def constant(self, index: int, what: str) -> NDArray[Any]:
        """Return a constant input; refuse the node where it is computed."""
        value = Graph.constant(self.input(index))
        if value is None:
            self.refuse(f"its {what} is not constant")
        return value

    def optional(self, index: int, what: str) -> NDArray[Any] | None:
        """Return an optional constant input, None where it is not given."""
        return self.constant(index, what) if self.has(index) else None

    def ints(self, key: str, default: Sequence[int]) -> list[int]:
        """Return an attribute that is a list of integers."""
        value = self.node.attributes.get_ints(key, None)
        return list(default) if value is None else [int(v) for v in value]

    def integer(self, key: str, default: int) -> int:
        """Return an integer attribute."""
        return int(self.node.attributes.get_int(key, default))

    def number(self, key: str, default: float) -> float:
        """Return a float attribute."""
        return float(self.node.attributes.get_float(key, default))

    def text(self, key: str, default: str) -> str:
        """Return a string attribute."""
        return str(self.node.attributes.get_string(key, default))

    def axis(self, key: str, default: int, rank: int) -> int:
        """Return an attribute that counts an axis, from 0."""
        return self.integer(key, default) % max(rank, 1)

    def refuse(self, why: str, hint: str = "") -> NoReturn:
        """Raise the error that says that the target cannot express this node."""
        raise UnsupportedOperatorError(self.name, self.op_type, "tflite", why=why, hint=hint)


def fixed_sizes(site: Site, shape: Shape, axes: Sequence[int]) -> list[int]:
    """Return sizes that must be fixed."""
    sizes = [shape[a] for a in axes]
    if not all(isinstance(size, int) for size in sizes):
        site.refuse(f"the size of axis {axes[0]} and later is not fixed in {list(shape)}")
    return [int(size) for size in sizes]


def int32(values: Any) -> NDArray[np.int32]:
    """Return indices, axes or sizes as TFLite reads them."""
    return np.asarray(values, np.int32)


Handler = Callable[["Emitter", Site], None]
"""Emits one node: asks the emitter for inputs, appends operators, gives it the outputs."""


class Emitter:
    """Converts one graph.

    Args:
        graph: The captured graph.
        options: How to write it.
        operators: The emit function of each operator of ONNX.
    """

    def __init__(self, graph: Graph, options: EmitOptions, operators: dict[str, Handler]) -> None:
        self.graph = graph
        self.options = options
        self.file = ModelWriter()
        self._operators = operators
        self._operands: dict[ir.Value, Operand] = {}
        self._halves: dict[int, Tensor] = {}
        self._fusions = fusions(graph.nodes)
        self._floating = False
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    # The conversion.

    def run(self) -> None:
        """Emit every node, and bring the outputs into the layout that the caller asked for."""
        for value in self.graph.inputs:
            self._input(value)
        absorbed = {fusion.node for fusion in self._fusions.values()}
        for node in self.graph.nodes:
            if node in absorbed or node.op_type == "Constant":
                continue
            site = Site(node, self._fusions.get(node))
            handler = self._operators.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if handler is None:
                hint = "docs/add-an-operator.md says how to add it"
                raise UnsupportedOperatorError(site.name, node.op_type, "tflite", hint=hint)
            self._floating = self._stays_float(node)
            handler(self, site)
        self._floating = False
        for value in self.graph.outputs:
            self._output(value)

    def trace(self, codes: Mapping[Tensor, Tensor]) -> Trace:
        """Return where the graph's tensors are in the file.

        Args:
            codes: The file's tensors that hold others' codes in their place.
        """
        live = self.file.live([*self.inputs.values(), *self.outputs.values()])
        located: list[Located] = []
        for value in [*self.graph.inputs, *(v for node in self.graph.nodes for v in node.outputs)]:
            operand = self._operands.get(value)
            if operand is None or operand.value is not None or self._unfinished(value):
                continue
            for order, held in self._held_forms(operand, value):
                tensor = codes.get(held, held)
                if id(tensor) in live:
                    axes = None if order == tuple(range(len(order))) else order
                    located.append(Located(value, tensor.name, axes))
                    break
        return compose(self.graph, located)

    def _unfinished(self, value: ir.Value) -> bool:
        """Whether a tensor has the codes of the activation behind it, which end where that does."""
        quantization = self.graph.quantization
        return (
            quantization is not None
            and self._scale(value) is not None
            and str(value.name) not in quantization.scales
        )

    def _held_forms(self, operand: Operand, value: ir.Value) -> Iterable[tuple[Order, Tensor]]:
        ends = self.inputs if value.is_graph_input() else self.outputs
        end = ends.get(value.name or "")
        if end is not None:
            yield self._boundary_order(operand.rank), end
        if operand.held is not None:
            order = operand.held[1].order
            if order is not None:
                yield order, operand.held[0]
        yield from operand.settled.items()

    def _boundary_order(self, rank: int) -> Order:
        """Return the order of axes of the file's inputs and outputs."""
        return channels_last(rank) if rank == 4 and self.options.layout != "nchw" else tuple(range(rank))

    def _input(self, value: ir.Value) -> None:
        shape = Graph.shape(value)
        order = self._boundary_order(len(shape))
        name = value.name or "input"
        view = View.of(shape, order)
        dtype = self._dtype(value)
        if not self.file.holds(dtype):
            raise UnsupportedOperatorError(name, "input", "tflite", why=f"its type is {dtype}")
        tensor = self.file.tensor(name, view.dims, dtype)
        tensor.grid = COUNTS if dtype == np.uint8 else None
        tensor.scale = self._scale(value)
        self.inputs[name] = tensor
        self._operands[value] = Operand(name, shape, dtype, (tensor, view), settled={order: tensor})

    def _output(self, value: ir.Value) -> None:
        operand = self.operand(value)
        tensor = self.settle(operand, self._boundary_order(operand.rank))
        name = value.name or "output"
        if tensor.data is not None or any(
            tensor is t for t in (*self.inputs.values(), *self.outputs.values())
        ):
            copy = self.file.tensor(f"{name}/copy", tensor.dims, tensor.dtype)  # one tensor cannot be both
            self._reshape(tensor, copy)
            tensor = copy
        self.file.rename(tensor, name)
        self.outputs[name] = tensor

    # What operators ask for.

    def _scale(self, value: ir.Value) -> Scale | None:
        """Return the scale of a tensor's codes: its own, or that of the activation that ends its making."""
        if self.graph.quantization is None:
            return None
        scales = self.graph.quantization.scales
        ending = only_activation(value)
        if str(value.name) in scales or ending is None:
            return scales.get(str(value.name))
        return scales.get(str(ending.outputs[0].name))

    def ends_at(self, site: Site, bound: float) -> bool:
        """Whether no code of what a node reads and makes lies beyond the code of a bound."""
        given, made = self._scale(site.input(0)), self._scale(site.output)
        if made is None or given != made or self._floating:
            return False
        return int(made.codes(np.asarray(bound, np.float32))) in (-128, 127)

    def _stays_float(self, node: ir.Node) -> bool:
        """Whether a node computes in floats whatever its tensors are."""
        quantization = self.graph.quantization
        if quantization is None or str(node.name) in quantization.floats:
            return True
        return node.op_type in ("Conv", "Gemm", "MatMul") and weighted(node) is None

    @staticmethod
    def _dtype(value: ir.Value) -> np.dtype[Any]:
        return np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()

    def operand(self, value: ir.Value) -> Operand:
        """Return a tensor of the graph: one that was made before, or a constant."""
        if value not in self._operands:
            const = Graph.constant(value)
            if const is None:  # an input that no node made: the graph is not sorted
                raise UnsupportedOperatorError(value.name or "", "?", "tflite", why="its value is not known")
            self._operands[value] = self.constant_operand(const, value.name or "constant")
        return self._operands[value]

    @staticmethod
    def constant_operand(value: NDArray[Any], name: str) -> Operand:
        """Return a constant as an operand; 64-bit integers become 32-bit."""
        array = value.astype(np.int32) if value.dtype == np.int64 else value
        return Operand(name, array.shape, array.dtype, value=array)

    def settle(self, operand: Operand, order: Order) -> Tensor:
        """Return a file tensor whose axes are the operand's logical axes in ``order``."""
        if order in operand.settled:
            return operand.settled[order]
        if operand.held is None:
            tensor = self.constant(operand.array.transpose(order), operand.name)
        else:
            tensor, view = operand.held
            step = movement(view, order)
            dims = tuple(operand.shape[a] for a in order)
            name = (
                operand.name if not operand.settled and view.order is None else self._variant(operand, order)
            )
            if step.perm is not None:
                moved = tuple(view.dims[f] for f in step.perm)
                label = name if step.dims is None else f"{name}/transpose"
                source, tensor = tensor, self.file.tensor(label, moved, operand.dtype)
                perm = self.constant(np.asarray(step.perm, np.int32), "permutation")
                self.file.operator(
                    BuiltinOperator.TRANSPOSE, [source, perm], [tensor], schema.TransposeOptionsT()
                )
            if step.dims is not None:
                source, tensor = tensor, self.file.tensor(name, dims, operand.dtype)
                self._reshape(source, tensor)
            if view.order is None and not operand.settled:
                operand.held = (tensor, View.of(operand.shape, order))
        operand.settled[order] = tensor
        return tensor

    @staticmethod
    def _variant(operand: Operand, order: Order) -> str:
        if operand.rank == 4 and order in ((0, 1, 2, 3), NHWC):
            return f"{operand.name}/{'nhwc' if order == NHWC else 'nchw'}"
        return f"{operand.name}/order{''.join(map(str, order))}"

    def reshaped(self, operand: Operand, shape: Sequence[Dim], name: str) -> Operand:
        """Return the operand in another logical shape of as many elements."""
        shape = tuple(shape)
        if operand.held is None:
            return self.constant_operand(operand.array.reshape([int(d) for d in shape]), operand.name)
        tensor, view = operand.held
        step = layout.reshape(view, shape)
        if step is None:
            order = layout.gathered_order(view, shape)
            view = View.of(operand.shape, order)
            tensor = self.settle(operand, order)
            step = layout.reshape(view, shape)
            if step is None:
                raise RuntimeError(f"axes {order} of {operand.name!r} do not reshape to {shape}")
        dims, after = step
        if dims is not None:
            source, tensor = tensor, self.file.tensor(name, dims, operand.dtype)
            self._reshape(source, tensor)
        return Operand(name, shape, operand.dtype, (tensor, after))

    def common_order(self, operands: Sequence[Operand]) -> Order:
        """Return the order of axes that moves the fewest elements among operands of one rank."""
        held = [o for o in operands if o.held is not None]
        rank = operands[0].rank
        orders = list(
            dict.fromkeys([*(o.natural_order for o in held), *(k for o in held for k in o.settled)])
        )
        if not orders:
            return tuple(range(rank))
        preferred = channels_last(rank)
        return min(orders, key=lambda order: (sum(o.cost(order) for o in held), order != preferred))

    def result(
        self, value: ir.Value, order: Order | None = None, dims: Sequence[Dim] | None = None
    ) -> Tensor:
        """Return a new file tensor for an output.

        Args:
            value: The graph's tensor.
            order: Its logical axes in the file's order; the logical order where not given.
            dims: Not needed where the file's shape follows from the order.
        """
        shape = Graph.shape(value)
        order = tuple(range(len(shape))) if order is None else order
        view = View.of(shape, order)
        dtype = self._dtype(value)
        tensor = self.file.tensor(value.name or "tensor", view.dims if dims is None else dims, dtype)
        tensor.scale = self._scale(value)
        self._operands[value] = Operand(
            value.name or "", shape, dtype, (tensor, view), settled={order: tensor}
        )
        return tensor

    def elementwise(self, site: Site) -> tuple[Tensor, Tensor]:
        """Return the file tensors of the first input and the output of an operator that keeps every place.

        Where the input's axes are spread over several file axes (a flattened NHWC image), the output's are.
        """
        data = self.operand(site.input(0))
        order = self.common_order([data])
        if data.held is None or data.cost(order) == 0:
            return self.settle(data, order), self.result(site.output, order)
        source, view = data.held
        dtype = self._dtype(site.output)
        target = self.file.tensor(f"{site.output.name}/spread", source.dims, dtype)
        target.scale = self._scale(site.output)
        self._operands[site.output] = Operand(site.output.name or "", data.shape, dtype, (target, view))
        return source, target

    def alias(self, value: ir.Value, operand: Operand) -> None:
        """Let an output be a tensor that exists already."""
        held = operand.held
        order = None if held is None else held[1].order
        settled = {} if held is None or order is None else {order: held[0]}
        self._operands[value] = Operand(
            value.name or operand.name, operand.shape, operand.dtype, held, operand.value, settled
        )

    def constant(self, value: NDArray[Any], name: str) -> Tensor:
        """Return a constant of the file that is held as it is: indices, shapes, scalars."""
        return self.file.constant(value, name)

    def weight(self, value: NDArray[Any], name: str) -> Tensor:
        """Return a float constant in the precision asked for.

        In fp16 files it is a float16 constant behind a DEQUANTIZE, as TensorFlow's converter writes it;
        one with values that float16 cannot hold stays float32.
        """
        data = np.asarray(value, np.float32)
        small = self.options.precision == "fp16" and data.size > 0 and bool((np.abs(data) <= _FP16_MAX).all())
        if not small:
            return self.file.constant(data, name)
        half = self.file.constant(data.astype(np.float16), f"{name}/fp16")
        if id(half) not in self._halves:
            full = self.file.tensor(name, half.dims, np.float32)
            self.file.operator(BuiltinOperator.DEQUANTIZE, [half], [full], schema.DequantizeOptionsT())
            self._halves[id(half)] = full
        return self._halves[id(half)]

    def ordered(self, operand: Operand, order: Order) -> Tensor:
        """Return an operand in an order of axes; float constants in the precision asked for.

        A scalar stays float32: it costs four bytes, and float16 would change a bound or a factor.
        """
        if operand.value is not None and operand.dtype == np.float32 and operand.value.size > 1:
            return self.weight(np.ascontiguousarray(operand.value.transpose(order)), operand.name)
        return self.settle(operand, order)

    def add(
        self, code: int, inputs: Sequence[Tensor], outputs: Sequence[Tensor], options: Any = None
    ) -> None:
        """Append an operator."""
        self.file.operator(code, inputs, outputs, options, floating=self._floating)

    def inner(self, site: Site, role: str, dims: Sequence[Dim], dtype: Any = np.float32) -> Tensor:
        """Return a file tensor that stands for no tensor of the graph."""
        return self.file.tensor(f"{site.output.name}/{role}", dims, dtype)

    def _reshape(self, source: Tensor, target: Tensor) -> None:
        unknown = [d for d in target.dims if isinstance(d, str)]
        if len(unknown) > 1:
            why = f"more than one size of {list(target.dims)} is not fixed"
            raise UnsupportedOperatorError(target.name, "Reshape", "tflite", why=why)
        new_shape = [d if isinstance(d, int) else -1 for d in target.dims]
        shape = self.constant(np.asarray(new_shape, np.int32), "shape")
        options = schema.ReshapeOptionsT(newShape=np.asarray(new_shape, np.int32))
        self.add(BuiltinOperator.RESHAPE, [source, shape], [target], options)
