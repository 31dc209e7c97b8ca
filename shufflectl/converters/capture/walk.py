"""What is known of each tensor of a model, found in one walk over its nodes, in order.

The walk finds of each tensor

1. its shape: what ONNX infers for one node from the shapes before it, each dimension a number or a multiple
   of the batch;
2. its value, where it is made of constants, or of sizes, by data movement and arithmetic. A size that depends
   on the batch is held as ``a * batch + b`` and computed with exactly (`sizes`, `arithmetic`).

No node is run by a runtime, what is evaluated is bounded, and what is not understood stays as it is.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx import defs

from shufflectl.converters.capture.arithmetic import ARITHMETIC, Values, is_symbolic
from shufflectl.converters.capture.sizes import (
    Affine,
    Dims,
    Size,
    broadcast,
    dimension_text,
    dims_of,
    parsed,
    product,
    ratio,
)
from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.movement import (
    MAX_ELEMENTS,
    CannotExecuteError,
    execute,
    is_movement,
)
from shufflectl.errors import GraphError

__all__ = ["Walk", "check_size"]

_STANDARD: Final = ("", "ai.onnx")
_SMALL: Final = 4096
"""Operands that say shapes, axes and bounds are smaller; only they are shown to shape inference."""
_MAX_CHANNELS: Final = 1 << 20


class Walk:
    """One walk over the nodes of a model, in place."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.symbolic: dict[ir.Value, Values] = {}
        self._spent = 0
        self._opsets = [onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items()]

    def run(self) -> None:
        """Give each tensor its shape and type, and its value where that is constant.

        Raises:
            GraphError: A node does not fit its inputs, or a tensor is too large to be followed.
        """
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
            if any(map(is_symbolic, arrays)):
                arrays = [a.astype(object) for a in arrays]
            results = execute(node, arrays)
        elif op in ARITHMETIC:
            results = [ARITHMETIC[op](*(self._value(v) for v in node.inputs))]
        elif op == "Cast":
            results = [self._cast(node, self._value(node.inputs[0]))]
        elif op == "ConstantOfShape":
            results = [self._filled(node, self._value(node.inputs[0]))]
        elif op == "ReduceProd" and len(node.inputs) == 1 and "axes" not in node.attributes:
            array = self._value(node.inputs[0])
            total = product(array.ravel().tolist()) if array.size <= _SMALL else None
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
        dims = dims_of(node.inputs[0])
        if dims is None:
            raise CannotExecuteError("the shape is not known")
        if node.op_type == "Size":
            found: list[Size | None] = [product(dims)]
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
        if is_symbolic(array):
            if to not in (ir.DataType.INT64, ir.DataType.INT32):
                raise CannotExecuteError("a size becomes something else than an integer")
            return array
        return np.asarray(array.astype(to.numpy()))

    @staticmethod
    def _filled(node: ir.Node, shape: Values) -> Values:
        if shape.size > 64 or is_symbolic(shape):
            raise CannotExecuteError("it depends on the batch")
        sizes = [int(d) for d in shape]
        if np.prod(sizes, dtype=object) > _SMALL:
            raise CannotExecuteError("its result is too large to compute")
        value = node.attributes.get("value")
        fill = np.zeros(1, np.float32) if value is None else np.asarray(value.as_tensor().numpy())
        return np.full(sizes, fill.ravel()[0], fill.dtype)

    def _know(self, value: ir.Value, array: Values) -> None:
        if is_symbolic(array):
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
        stated = [(dims_of(v), v.dtype) for v in node.outputs]
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
            check_size(value, known_dims)
            value.shape = None if known_dims is None else ir.Shape([dimension_text(d) for d in known_dims])
            if (known := dtype or said_dtype) is not None:
                value.dtype = known

    def _reshaped(self, node: ir.Node) -> Dims | None:
        source = dims_of(node.inputs[0])
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
            return broadcast(source, tuple(target))
        if not node.attributes.get_int("allowzero", 0):
            target = [source[i] if t == 0 and i < len(source) else t for i, t in enumerate(target)]
        free = [i for i, t in enumerate(target) if isinstance(t, int) and t < 0]
        if len(free) == 1:
            total, rest = product(source), product([t for i, t in enumerate(target) if i != free[0]])
            try:
                target[free[0]] = ratio(total, rest)
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


def check_size(value: ir.Value, dims: Dims | None) -> None:
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
    x, weight = dims_of(node.inputs[0]), dims_of(node.inputs[1])
    if x is None or weight is None or len(x) < 2 or len(weight) < 2:
        return
    given, wanted, group = x[1], weight[1], node.attributes.get_int("group", 1)
    bias = dims_of(node.inputs[2]) if len(node.inputs) > 2 else None
    fits = not isinstance(given, int) or not isinstance(wanted, int) or given == wanted * group
    if not fits or (bias is not None and bias != weight[:1]):
        name = node.name or node.outputs[0].name
        raise GraphError(
            f"the weights of node {name!r} (Conv) do not fit its {given} channels",
            hint="export the model again",
        )


def _from_type(made: onnx.TypeProto | None) -> tuple[Dims | None, ir.DataType | None]:
    if made is None or not made.HasField("tensor_type"):
        return None, None
    tensor = made.tensor_type
    dtype = ir.DataType(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return None, dtype
    return tuple(
        parsed(d.dim_value if d.HasField("dim_value") else d.dim_param or None) for d in tensor.shape.dim
    ), dtype
