"""A graph that someone else exported, made into one that can be worked on.

Other exporters compute shapes in the graph: a shuffle of TorchScript's exporter with a dynamic batch is a
chain of Shape, Gather, Unsqueeze and Concat into each Reshape, and what its Slices take is computed from the
size of the tensor even where that is fixed. `adopt` walks the nodes once, in order, and knows of each tensor

1. its shape: what ONNX infers for one node from the shapes before it, each dimension a number or a multiple
   of the batch;
2. its value, where it is made of constants, or of sizes, by data movement and arithmetic. A size that depends
   on the batch is held as ``a * batch + b`` and computed with exactly, so what is found constant is constant
   for every batch, not for those that were tried.

Constants then take the place of what computed them, a Reshape whose shape depends on the batch alone gets a
-1 there, and batch norm is folded. Nodes that are left keep their names, and tensors theirs.

The file may be anybody's: no node is run by a runtime, what is evaluated is bounded, and what is not
understood stays as it is.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import defs
from onnx_ir.passes import common

from shufflectl.converters.capture.batch import make_batch_free
from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.lowering import OLDEST_OPSET
from shufflectl.converters.rewrite.movement import (
    MAX_ELEMENTS,
    CannotExecuteError,
    execute,
    is_movement,
)
from shufflectl.errors import GraphError, UsageError

__all__ = ["Adopted", "Affine", "adopt", "write_out_functions"]

BATCH: Final = "batch"
_MULTIPLE: Final = re.compile(rf"(?:(\d{{1,9}})\*)?{BATCH}")
_STANDARD: Final = ("", "ai.onnx")
_SMALL: Final = 4096
"""Operands that say shapes, axes and bounds are smaller; only they are shown to shape inference."""
_MAX_CHANNELS: Final = 1 << 20
_MAX_NODES: Final = 200_000
"""The most nodes that a graph may have once its functions are written out."""


@dataclass(frozen=True)
class Affine:
    """The number ``scale * batch + offset``, for every batch from 1 upwards; scale is not 0."""

    scale: int
    offset: int = 0

    @staticmethod
    def _parts(other: object) -> tuple[int, int]:
        if isinstance(other, Affine):
            return other.scale, other.offset
        if isinstance(other, int | np.integer) and not isinstance(other, bool):
            return 0, int(other)
        raise CannotExecuteError("it computes with the batch size and something that is no size")

    def __add__(self, other: object) -> "Size":
        scale, offset = self._parts(other)
        return _affine(self.scale + scale, self.offset + offset)

    __radd__ = __add__

    def __neg__(self) -> "Size":
        return _affine(-self.scale, -self.offset)

    def __sub__(self, other: object) -> "Size":
        scale, offset = self._parts(other)
        return _affine(self.scale - scale, self.offset - offset)

    def __rsub__(self, other: object) -> "Size":
        scale, offset = self._parts(other)
        return _affine(scale - self.scale, offset - self.offset)

    def __mul__(self, other: object) -> "Size":
        scale, offset = self._parts(other)
        if scale:
            raise CannotExecuteError("it multiplies the batch size by itself")
        return _affine(self.scale * offset, self.offset * offset)

    __rmul__ = __mul__


Size = int | Affine
Values = NDArray[Any]  # of numbers, or of dtype object: Python's integers and Affine
Dims = tuple[Size | None, ...]


def _affine(scale: int, offset: int) -> Size:
    return Affine(scale, offset) if scale else offset


def _quotient(a: Size, b: Size) -> Size:
    """Divide as ONNX divides integers, towards zero."""
    if isinstance(b, Affine):
        raise CannotExecuteError("it divides by the batch size")
    if b == 0:
        raise CannotExecuteError("it divides by zero")
    if isinstance(a, Affine):
        if a.scale % b or a.offset % b:
            raise CannotExecuteError(f"it divides the batch size by {b}")
        return _affine(a.scale // b, a.offset // b)
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _equal(a: Size, b: Size) -> bool:
    difference = a - b
    if not isinstance(difference, Affine):
        return difference == 0
    batch, rest = divmod(-difference.offset, difference.scale)
    if not rest and batch >= 1:
        raise CannotExecuteError(f"it asks whether the batch is {batch}")
    return False


def _symbolic(array: Values) -> bool:
    return array.dtype == object


def _room(*arrays: Values) -> None:
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    if np.prod(shape, dtype=object) > MAX_ELEMENTS:
        raise CannotExecuteError("its result is too large to compute")


def _divide(a: Values, b: Values) -> Values:
    _room(a, b)
    if _symbolic(a) or _symbolic(b) or np.issubdtype(a.dtype, np.integer):
        return np.asarray(np.frompyfunc(_quotient, 2, 1)(a.astype(object), b.astype(object)), object)
    return np.asarray(np.divide(a, b))


def _compare(a: Values, b: Values) -> Values:
    _room(a, b)
    if _symbolic(a) or _symbolic(b):
        return np.asarray(np.frompyfunc(_equal, 2, 1)(a.astype(object), b.astype(object)), bool)
    return np.asarray(np.equal(a, b))


def _where(condition: Values, a: Values, b: Values) -> Values:
    _room(condition, a, b)
    if _symbolic(a) != _symbolic(b):
        a, b = a.astype(object), b.astype(object)
    return np.asarray(np.where(condition, a, b))


def _binary(function: Callable[[Values, Values], Any]) -> Callable[[Values, Values], Values]:
    def compute(a: Values, b: Values) -> Values:
        _room(a, b)
        if _symbolic(a) != _symbolic(b):
            a, b = a.astype(object), b.astype(object)
        return np.asarray(function(a, b))

    return compute


_ARITHMETIC: Final[dict[str, Callable[..., Values]]] = {
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _divide,
    "Equal": _compare,
    "Neg": np.negative,
    "Sqrt": np.sqrt,
    "Where": _where,
}


class Adopted(NamedTuple):
    """A graph made plain.

    Attributes:
        graph: The graph. Where no file is rewritten, `frozen` says why.
        changes: What was made plain, a sentence each.
        frozen: Why the graph cannot be rewritten, empty where it can.
        nodes: For each tensor the name that the file gives to the node which makes it.
    """

    graph: Graph
    changes: tuple[str, ...]
    frozen: str
    nodes: dict[str, str]


def _parse(dim: int | str | None) -> Size | None:
    """Return a dimension as a size, None where it is neither fixed nor a multiple of the batch."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    found = _MULTIPLE.fullmatch(dim or "")
    return None if found is None else Affine(int(found[1] or 1))


def _dims(value: ir.Value | None) -> Dims | None:
    if value is None or value.shape is None:
        return None
    return tuple(_parse(d if isinstance(d, int) else d.value) for d in value.shape)


def _text(size: Size | None) -> int | str | None:
    if not isinstance(size, Affine):
        return size
    if size.offset or size.scale < 1:
        return None
    return BATCH if size.scale == 1 else f"{size.scale}*{BATCH}"


def _product(dims: Sequence[Size | None]) -> Size | None:
    total: Size = 1
    for dim in dims:
        if dim is None:
            return None
        try:
            total = total * dim
        except CannotExecuteError:
            return None
    return total


class _Walk:
    """One walk over the nodes of a model, in place."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.symbolic: dict[ir.Value, Values] = {}
        self._spent = 0
        self._opsets = [onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items()]

    def run(self) -> None:
        for node in self.model.graph:
            if not self._evaluate(node):
                self._infer(node)

    # Values.

    def _value(self, value: ir.Value | None) -> Values:
        if value is None:
            raise CannotExecuteError("an input is missing")
        found = self.symbolic.get(value)
        if found is None:
            found = Graph.constant(value)
        if found is None:
            raise CannotExecuteError(f"{value.name!r} is not constant")
        return found

    def _evaluate(self, node: ir.Node) -> bool:
        """Compute a node's results where they are constant, or sizes; whether they are."""
        if node.domain not in _STANDARD:
            return False
        if node.op_type == "Constant":
            return self._constant(node.outputs[0])
        try:
            results = self._compute(node)
        except (CannotExecuteError, ValueError, TypeError, IndexError, OverflowError, KeyError):
            return False
        if results is None or len(results) != len(node.outputs):
            return False
        for value, array in zip(node.outputs, results, strict=True):
            self._know(value, array)
        return True

    @staticmethod
    def _constant(value: ir.Value) -> bool:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:  # of strings, or sparse
            return False
        value.const_value = tensor
        value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        return True

    def _compute(self, node: ir.Node) -> list[Values] | None:
        op = node.op_type
        if op in ("Shape", "Size"):
            return [self._sizes(node)]
        if is_movement(node):
            count = len(node.inputs) if op == "Concat" else 1
            arrays = [self._value(v) for v in node.inputs[:count]]
            if any(map(_symbolic, arrays)):
                arrays = [a.astype(object) for a in arrays]
            results = execute(node, arrays)
        elif op in _ARITHMETIC:
            results = [_ARITHMETIC[op](*(self._value(v) for v in node.inputs))]
        elif op == "Cast":
            results = [self._cast(node, self._value(node.inputs[0]))]
        elif op == "ConstantOfShape":
            results = [self._filled(node, self._value(node.inputs[0]))]
        elif op == "ReduceProd" and len(node.inputs) == 1 and "axes" not in node.attributes:
            array = self._value(node.inputs[0])
            total = _product(array.ravel().tolist()) if array.size <= _SMALL else None
            if total is None or array.dtype.kind not in "iO":
                return None
            keeps = node.attributes.get_int("keepdims", 1)
            results = [np.asarray(total, object).reshape((1,) * array.ndim if keeps else ())]
        else:
            return None
        results = [np.asarray(r) for r in results]  # numpy gives one element as itself
        self._spent += sum(a.size for a in results)
        if self._spent > MAX_ELEMENTS:
            raise CannotExecuteError("the file computes too many constants")
        return results

    def _sizes(self, node: ir.Node) -> Values:
        dims = _dims(node.inputs[0])
        if dims is None:
            raise CannotExecuteError("the shape is not known")
        if node.op_type == "Size":
            found: list[Size | None] = [_product(dims)]
        else:
            found = list(
                dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]
            )
        if None in found:
            raise CannotExecuteError("a size is not known")
        array = np.empty(len(found), object)
        array[:] = found
        return array if node.op_type == "Shape" else array.reshape(())

    @staticmethod
    def _cast(node: ir.Node, array: Values) -> Values:
        to = ir.DataType(node.attributes["to"].as_int())
        if _symbolic(array):
            if to not in (ir.DataType.INT64, ir.DataType.INT32):
                raise CannotExecuteError("a size becomes something else than an integer")
            return array
        return np.asarray(array.astype(to.numpy()))

    @staticmethod
    def _filled(node: ir.Node, shape: Values) -> Values:
        if shape.size > 64 or _symbolic(shape):
            raise CannotExecuteError("it depends on the batch")
        sizes = [int(d) for d in shape]
        if np.prod(sizes, dtype=object) > _SMALL:
            raise CannotExecuteError("its result is too large to compute")
        value = node.attributes.get("value")
        fill = np.zeros(1, np.float32) if value is None else np.asarray(value.as_tensor().numpy())
        return np.full(sizes, fill.ravel()[0], fill.dtype)

    def _know(self, value: ir.Value, array: Values) -> None:
        if _symbolic(array):
            if any(isinstance(x, Affine) for x in array.ravel()):
                self.symbolic[value] = array
                value.shape, value.dtype = ir.Shape(array.shape), value.dtype or ir.DataType.INT64
                return
            dtype = np.int32 if value.dtype == ir.DataType.INT32 else np.int64
            array = array.astype(dtype)
        tensor = ir.tensor(np.asarray(array, order="C"), name=value.name)
        value.const_value = tensor
        value.shape, value.dtype = ir.Shape(array.shape), tensor.dtype

    # Shapes.

    def _infer(self, node: ir.Node) -> None:
        stated = [(_dims(v), v.dtype) for v in node.outputs]
        if node.op_type == "Conv" and node.domain in _STANDARD:
            _check_weights(node)
        found: Sequence[tuple[Dims | None, ir.DataType | None]]
        if node.op_type in ("Reshape", "Expand") and node.domain in _STANDARD and node.inputs[0] is not None:
            found = [(self._reshaped(node), node.inputs[0].dtype)]
        else:
            found = self._inferred(node) or stated
        for value, (dims, dtype), (said, said_dtype) in zip(node.outputs, found, stated, strict=False):
            known_dims = said if dims is None else dims
            if dims is not None and said is not None and len(dims) == len(said):
                known_dims = tuple(s if d is None else d for d, s in zip(dims, said, strict=True))
            _check_size(value, known_dims)
            value.shape = None if known_dims is None else ir.Shape([_text(d) for d in known_dims])
            if (known := dtype or said_dtype) is not None:
                value.dtype = known

    def _reshaped(self, node: ir.Node) -> Dims | None:
        source = _dims(node.inputs[0])
        try:
            if len(node.inputs) > 1:
                target: list[Any] = self._value(node.inputs[1]).ravel().tolist()
            else:
                target = list(node.attributes.get_ints("shape") or [])
        except CannotExecuteError:
            return None
        if source is None or len(target) > 64:
            return None
        if node.op_type == "Expand":
            return _broadcast(source, tuple(target))
        if not node.attributes.get_int("allowzero", 0):
            target = [source[i] if t == 0 and i < len(source) else t for i, t in enumerate(target)]
        free = [i for i, t in enumerate(target) if isinstance(t, int) and t < 0]
        if len(free) == 1:
            total, rest = _product(source), _product([t for i, t in enumerate(target) if i != free[0]])
            try:
                target[free[0]] = _ratio(total, rest)
            except CannotExecuteError:
                target[free[0]] = None
        return tuple(None if isinstance(t, int) and t < 0 else t for t in target)

    def _inferred(self, node: ir.Node) -> list[tuple[Dims | None, ir.DataType | None]] | None:
        """Return what ONNX infers of a node's results."""
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return None
        types: dict[str, onnx.TypeProto] = {}
        data: dict[str, onnx.TensorProto] = {}
        for value in node.inputs:
            if value is None:
                continue
            if value.dtype is None:
                return None
            shape = (
                None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
            )
            types[str(value.name)] = onnx.helper.make_tensor_type_proto(int(value.dtype), shape)
            if (
                value.shape is not None
                and (array := Graph.constant(value)) is not None
                and array.size <= _SMALL
            ):
                data[str(value.name)] = onnx.numpy_helper.from_array(array, str(value.name))
        version = self.model.opset_imports.get(node.domain)
        try:
            schema = defs.get_schema(node.op_type, version or 1, node.domain)
            made = onnx.shape_inference.infer_node_outputs(
                schema, ir.to_proto(node), types, data, opset_imports=self._opsets
            )
        except defs.SchemaError:
            return None
        except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
            lines = str(error).strip().splitlines()
            raise GraphError(
                f"node {node.name or node.outputs[0].name!r} ({node.op_type}) does not fit its inputs: "
                f"{lines[0][:200] if lines else 'it has no valid result'}",
                hint="export the model again",
            ) from error
        return [_from_type(made.get(str(v.name))) for v in node.outputs]


def _check_size(value: ir.Value, dims: Dims | None) -> None:
    """Refuse a tensor that no phone holds: following its channels would fill the memory.

    Raises:
        GraphError: It is one.
    """
    sizes = [d.scale if isinstance(d, Affine) else d for d in dims or () if d is not None]
    channels = sizes[1] if len(sizes) > 1 else 0
    if math.prod(sizes) > MAX_ELEMENTS or channels > _MAX_CHANNELS:
        raise GraphError(
            f"the tensor {value.name!r} is too large to be followed: {'x'.join(map(str, sizes))}",
            hint="export the model with a smaller input",
        )


def _check_weights(node: ir.Node) -> None:
    """Refuse a convolution whose weights are for other channels, which ONNX's inference does not look at.

    Raises:
        GraphError: They are.
    """
    x, weight = _dims(node.inputs[0]), _dims(node.inputs[1])
    if x is None or weight is None or len(x) < 2 or len(weight) < 2:
        return
    given, wanted, group = x[1], weight[1], node.attributes.get_int("group", 1)
    bias = _dims(node.inputs[2]) if len(node.inputs) > 2 else None
    fits = not isinstance(given, int) or not isinstance(wanted, int) or given == wanted * group
    if not fits or (bias is not None and bias != weight[:1]):
        name = node.name or node.outputs[0].name
        raise GraphError(
            f"the weights of node {name!r} (Conv) do not fit its {given} channels",
            hint="export the model again",
        )


def _ratio(total: Size | None, rest: Size | None) -> Size | None:
    if total is None or rest is None or rest == 0:
        return None
    if isinstance(rest, Affine):
        if not isinstance(total, Affine) or total.offset or rest.offset or total.scale % rest.scale:
            return None
        return total.scale // rest.scale
    return _quotient(total, rest)


def _broadcast(source: Dims, target: Dims) -> Dims | None:
    rank = max(len(source), len(target))
    padded = ((1,) * (rank - len(source)) + source, (1,) * (rank - len(target)) + target)
    found: list[Size | None] = []
    for s, t in zip(*padded, strict=True):
        found.append(s if t in (1, s) else t if s == 1 else None)
    return tuple(found)


def _from_type(made: onnx.TypeProto | None) -> tuple[Dims | None, ir.DataType | None]:
    if made is None or not made.HasField("tensor_type"):
        return None, None
    tensor = made.tensor_type
    dtype = ir.DataType(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return None, dtype
    return tuple(
        _parse(d.dim_value if d.HasField("dim_value") else d.dim_param or None) for d in tensor.shape.dim
    ), dtype


def write_out_functions(model: ir.Model) -> int:
    """Replace calls of the model's functions by their nodes; return how many functions there were.

    Raises:
        GraphError: They call one another in a circle, or make too many nodes.
    """
    functions = dict(model.functions)
    if not functions:
        return 0
    counts: dict[Any, int] = {}
    pending: set[Any] = set()

    def count(key: Any) -> int:
        if key in pending:
            raise GraphError(
                f"the function {key[1]!r} of the file calls itself", hint="export the model again"
            )
        if key not in counts:
            pending.add(key)
            counts[key] = total(functions[key])
            pending.discard(key)
        return counts[key]

    def total(nodes: Any) -> int:
        found = sum(count(n.op_identifier()) if n.op_identifier() in functions else 1 for n in nodes)
        if found > _MAX_NODES:
            raise GraphError(f"the file's functions stand for more than {_MAX_NODES} nodes")
        return found

    total(model.graph)
    common.InlinePass()(model)
    return len(functions)


def _bind(model: ir.Model, size: int | None) -> None:
    """Name the batch in all shapes, and give free heights and widths a size.

    Raises:
        GraphError: A shape is not given, a free dimension has no size, or an input is too large.
        UsageError: A size is given, and no dimension is free.
    """
    symbols = set()
    free = False
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    for value in inputs:
        if value.shape is None:
            raise GraphError(
                f"the input {value.name!r} has no shape", hint="export the model with a fixed input size"
            )
        dims: list[int | str | None] = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int) and dim >= 0:
                dims.append(dim)
            elif axis == 0 and len(value.shape) > 1:
                symbols.add(dim.value if isinstance(dim, ir.SymbolicDim) else None)
                dims.append(BATCH)
            elif size is not None:
                free = True
                dims.append(size)
            else:
                raise GraphError(
                    f"axis {axis} of the input {value.name!r} has no fixed length",
                    hint="say for which images: --input-size 224",
                )
        _check_size(value, tuple(_parse(d) for d in dims))
        value.shape = ir.Shape(dims)
    if size is not None and not free:
        raise UsageError("the file fixes the size of its input", hint="leave out --input-size")
    symbols.discard(None)
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None:
                # Symbols are the exporter's own; only the batch has a meaning here.
                value.shape = ir.Shape(
                    d
                    if isinstance(d, int)
                    else BATCH
                    if axis == 0 and isinstance(d, ir.SymbolicDim) and d.value in symbols
                    else None
                    for axis, d in enumerate(value.shape)
                )


def _settle(model: ir.Model) -> int:
    """Put constants in the place of the nodes that were found to make them; return how many nodes went."""
    graph, gone = model.graph, 0
    for node in list(graph):
        if any(v.const_value is None for v in node.outputs) or any(v.is_graph_output() for v in node.outputs):
            continue
        for value in node.outputs:
            tensor, name = value.const_value, value.name
            if value.uses():
                constant = ir.Value(name=name, shape=value.shape, type=value.type, const_value=tensor)
                ir.convenience.replace_all_uses_with(value, constant)
                value.name = None
                graph.register_initializer(constant)
        gone += node.op_type != "Constant"
        graph.remove(node, safe=True)
    return gone


def _unused(model: ir.Model) -> int:
    before = len(model.graph)
    common.RemoveUnusedNodesPass()(model)
    return before - len(model.graph)


def _norms(model: ir.Model) -> int:
    """Fold batch norm; return how many went."""
    before = sum(n.op_type == "BatchNormalization" for n in model.graph)
    if not before:
        return 0
    from shufflectl.converters.capture.batchnorm import fold_graph  # imports torch, for its other half

    fold_graph(model)
    return before - sum(n.op_type == "BatchNormalization" for n in model.graph)


def _frozen(model: ir.Model) -> str:
    """Return why a graph cannot be rewritten; empty where it can."""
    opset = model.opset_imports[""]
    if opset < OLDEST_OPSET:
        return (
            f"its operator set {opset} is older than {OLDEST_OPSET}; export it with a newer one, or convert "
            "it with onnx.version_converter"
        )
    for node in model.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return f"node {node.name or node.outputs[0].name!r} ({node.op_type}) holds a graph of its own"
    return ""


def adopt(proto: onnx.ModelProto, *, size: int | None = None) -> Adopted:
    """Return an ONNX model of any exporter as a graph that can be analysed, and rewritten where it allows.

    Args:
        proto: The model, its weights loaded. It is valid, as `onnx.checker` sees it.
        size: Height and width of the input in pixels, where the model leaves them free.

    Raises:
        GraphError: It has no default operator set, a function that calls itself, an input of unknown shape,
            or a node that does not fit its inputs.
        UsageError: A size is given, and the model fixes its own.
    """
    model = ir.from_proto(proto)
    if "" not in model.opset_imports and "ai.onnx" in model.opset_imports:
        model.opset_imports[""] = model.opset_imports["ai.onnx"]
    if "" not in model.opset_imports:
        raise GraphError("the model uses no standard ONNX operators", hint="pass the network itself")
    functions = write_out_functions(model)
    names = {str(v.name): node.name for node in model.graph for v in node.outputs if v.name and node.name}
    _bind(model, size)
    _Walk(model).run()
    arithmetic = _settle(model)
    make_batch_free(model)
    arithmetic += _unused(model)
    norms = _norms(model)
    common.RemoveUnusedNodesPass()(model)
    changes = [
        text
        for count, text in (
            (functions, f"{functions} functions were written out"),
            (arithmetic, f"{arithmetic} nodes that compute shapes and constants became constants"),
            (norms, f"{norms} batch norms were folded into the convolutions before them"),
        )
        if count
    ]
    return Adopted(Graph(model), tuple(changes), _frozen(model), names)
