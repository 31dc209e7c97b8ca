"""Reads an ONNX file. Weights are never loaded: their shapes say all that is needed.

Shapes that the file does not state are inferred. A free batch (an input's first dimension) counts as one.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from shufflectl.deploy.files import info_from_text
from shufflectl.deploy.inspect.program import (
    Codes,
    Contraction,
    Operation,
    Program,
    Role,
    Shape,
    Value,
    at,
    is_scalar,
    known_shape,
    role_table,
    trained,
)
from shufflectl.deploy.onnx_weights import external_files, parse, stored_tensors

if TYPE_CHECKING:
    from shufflectl.converters.graph import Graph

__all__ = ["read_graph", "read_onnx"]

_STANDARD = ("", "ai.onnx")
_DOMAINS = (*_STANDARD, "com.microsoft", "com.microsoft.nchwc")
# Shapes, axes and pads are smaller than this; larger constants are weights, and stay unread.
_SMALL = 1024

_CONVOLUTIONS = {
    "Conv": (1, 2),
    "FusedConv": (1, 2),
    "ConvInteger": (1, None),
    "QLinearConv": (3, 8),
    "ConvTranspose": (1, 2),
}
"""Positions of the kernel and the bias among the inputs."""

_PRODUCTS = {
    "Gemm": (0, 1, 2),
    "FusedGemm": (0, 1, 2),
    "MatMul": (0, 1, None),
    "FusedMatMul": (0, 1, None),
    "MatMulInteger": (0, 1, None),
    "QLinearMatMul": (0, 3, None),
    "QGemm": (0, 3, 6),
}
"""Positions of both factors and of the bias among the inputs."""

_SCALES = {
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "SkipLayerNormalization": (2, 3),
    "PRelu": (1,),
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
}
"""Positions of trained constants; element-wise operators have theirs anywhere."""

_BINARY = frozenset(
    """
    Add Sub Mul Div Pow Min Max Mean Sum Mod BitShift BitwiseAnd BitwiseOr BitwiseXor And Or Xor Equal Less
    Greater LessOrEqual GreaterOrEqual Where QLinearAdd QLinearMul
    """.split()  # noqa: SIM905 - one name a line would take a page
)

_ROLES = role_table(
    {
        "convolution": " ".join(_CONVOLUTIONS),
        "dense": " ".join(_PRODUCTS),
        "pooling": """
            MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool GlobalLpPool MaxRoiPool ReduceMean
            ReduceMax ReduceMin ReduceSum ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
            ReduceSumSquare QLinearGlobalAveragePool QLinearAveragePool QLinearReduceMean
            """,
        "elementwise": f"""
            {" ".join(_BINARY)}
            Relu LeakyRelu PRelu Elu Selu Celu Clip Sigmoid HardSigmoid HardSwish Swish Tanh Gelu Mish
            Softplus Softsign ThresholdedRelu Exp Log Sqrt Reciprocal Neg Abs Sign Floor Ceil Round Erf Sin
            Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh Not BitwiseNot IsNaN IsInf BatchNormalization
            Dropout Shrink Trilu QuickGelu FastGelu BiasGelu QLinearSigmoid QLinearLeakyRelu
            """,
        "movement": """
            Transpose Concat Split Slice Gather GatherElements GatherND Scatter ScatterElements ScatterND
            Pad Expand Tile DepthToSpace SpaceToDepth ReverseSequence Compress Cast CastLike QuantizeLinear
            DequantizeLinear DynamicQuantizeLinear ReorderInput ReorderOutput QLinearConcat
            """,
        "view": "Reshape Flatten Squeeze Unsqueeze Identity Shape Size",
        "other": """
            Softmax LogSoftmax QLinearSoftmax Hardmax InstanceNormalization LayerNormalization
            SkipLayerNormalization GroupNormalization RMSNormalization LRN LpNormalization
            MeanVarianceNormalization ArgMax ArgMin TopK Resize Upsample NonZero NonMaxSuppression CumSum
            OneHot Range Unique EyeLike ConstantOfShape Bernoulli RandomNormal RandomUniform
            RandomNormalLike RandomUniformLike Multinomial GridSample RoiAlign
            """,
    }
)


def read_onnx(path: Path) -> tuple[Program, int]:
    """Read an ONNX file.

    Returns:
        The program, and the size in bytes of the file and of the files that hold its weights.

    Raises:
        ArtifactError: It is missing, damaged or no ONNX file, or its external weights are missing or lie
            outside of its folder.
    """
    model, size = parse(path)
    size += sum(file.stat().st_size for file in external_files(model, path))
    return read_model(model, "onnx"), size


def read_graph(graph: "Graph") -> Program:
    """Read a captured graph."""
    return read_model(graph.to_proto(), "graph")


def read_model(model: onnx.ModelProto, format_name: str) -> Program:
    """Return an ONNX model as a program; its weights are dropped and its batch is fixed."""
    declared = {i.name for i in model.graph.initializer}
    inputs = tuple(_value(v) for v in model.graph.input if v.name not in declared)
    outputs = tuple(_value(v) for v in model.graph.output)
    props = {p.key: p.value for p in model.metadata_props}
    _drop_weights(model)
    _bind_batch(model.graph)
    if not _complete(model.graph):
        model = _with_shapes(model)
    return Program(
        format_name,
        inputs,
        outputs,
        tuple(_Reader(model).operations()),
        " ".join(part for part in (model.producer_name, model.producer_version) if part),
        info_from_text(props),
    )


def _drop_weights(model: onnx.ModelProto) -> None:
    """Drop the values of large constants, so that inferring shapes does not copy them."""
    for tensor in stored_tensors(model):
        if math.prod(max(d, 0) for d in tensor.dims) > _SMALL:
            for kept in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                tensor.ClearField(kept)


def _bind_batch(graph: onnx.GraphProto) -> None:
    """Make a free batch 1: the first dimension of inputs that have more than one."""
    declared = {i.name for i in graph.initializer}
    symbols = set()
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in declared and len(dims) > 1 and not _fixed(dims[0]):
            symbols.add(dims[0].dim_param)
            dims[0].dim_value = 1
    symbols.discard("")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = 1


def _complete(graph: onnx.GraphProto) -> bool:
    """Whether every tensor between operators has a fixed shape."""
    known = {
        v.name
        for v in (*graph.value_info, *graph.output)
        if v.type.tensor_type.HasField("shape") and all(map(_fixed, v.type.tensor_type.shape.dim))
    }
    return all(name in known for node in graph.node for name in node.output if name)


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    # What the file states is kept where inference, which stops at unknown operators, finds nothing. Graph
    # outputs are inferred anew: their free dimensions would otherwise stand against what is known now.
    stated = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError, DecodeError):
        return model
    found = {v.name for v in (*inferred.graph.value_info, *inferred.graph.output) if _stated(v)}
    inferred.graph.value_info.extend(
        value for name, value in stated.items() if name not in found and _stated(value)
    )
    return inferred


def _stated(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.HasField("shape"))


def _fixed(dim: Any) -> bool:
    return bool(dim.HasField("dim_value") and dim.dim_value >= 0)


def _dtype(code: int) -> str | None:
    if not code or code not in TensorProto.DataType.values():
        return None
    name = str(TensorProto.DataType.Name(code)).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _value(info: onnx.ValueInfoProto) -> Value:
    tensor = info.type.tensor_type
    shape: Shape | None = None
    if tensor.HasField("shape"):
        shape = tuple(int(d.dim_value) if _fixed(d) else None for d in tensor.shape.dim)
    return Value(info.name, shape, _dtype(tensor.elem_type))


class _Reader:
    """The operations of a model whose shapes are known as far as they can be."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._nodes = graph.node
        self._values: dict[str, Value] = {}
        for info in (*graph.value_info, *graph.output, *graph.input):
            value = _value(info)
            # The same tensor may be stated twice, as an output with less detail than as an inner tensor.
            old = self._values.get(info.name)
            if old is None or old.shape is None or None in old.shape:
                self._values[info.name] = value
        self._small: dict[str, onnx.TensorProto] = {}
        for tensor in graph.initializer:
            self._constant(tensor.name, tensor)
        for sparse in graph.sparse_initializer:
            self._constant(sparse.values.name, sparse.values, tuple(sparse.dims))

    def operations(self) -> Iterator[Operation]:
        for node in self._nodes:
            if node.op_type == "Constant" and node.domain in _STANDARD:
                self._constant_node(node)
                continue
            yield self._operation(node)

    def _constant(self, name: str, tensor: onnx.TensorProto, dims: Sequence[int] | None = None) -> None:
        shape: Shape = tuple(int(d) if d >= 0 else None for d in (tensor.dims if dims is None else dims))
        self._values[name] = Value(name, shape, _dtype(tensor.data_type), constant=True)
        self._small[name] = tensor

    def _constant_node(self, node: onnx.NodeProto) -> None:
        for name in node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    self._constant(name, attribute.t)
                elif attribute.name in ("value_int", "value_float"):
                    self._values[name] = Value(
                        name, (), "int64" if "int" in attribute.name else "float32", constant=True
                    )
                elif attribute.name in ("value_ints", "value_floats"):
                    count = len(attribute.ints) + len(attribute.floats)
                    dtype = "int64" if "int" in attribute.name else "float32"
                    self._values[name] = Value(name, (count,), dtype, constant=True)
            self._values.setdefault(name, Value(name, None, None, constant=True))

    def _operation(self, node: onnx.NodeProto) -> Operation:
        inputs = [self._values.get(name, Value(name, None, None)) if name else None for name in node.input]
        given = [v for v in inputs if v is not None]
        outputs = tuple(self._values.get(name, Value(name, None, None)) for name in node.output if name)
        name = node.name or (outputs[0].name if outputs else node.op_type)
        role = _ROLES.get(node.op_type, "unknown") if node.domain in _DOMAINS else "unknown"
        if role not in ("convolution", "dense", "unknown") and given and all(v.constant for v in given):
            role = "weights"
            held = given[0].held or given[0].dtype
            outputs = tuple(Value(v.name, v.shape, v.dtype, constant=True, held=held) for v in outputs)
            self._values |= {v.name: v for v in outputs}
        kind = node.op_type if node.domain in _STANDARD else f"{node.domain}.{node.op_type}"
        weights, biases = _weights(node.op_type, role, inputs)
        return Operation(
            name,
            kind,
            role,
            tuple(v for v in given if not v.constant),
            outputs,
            weights,
            biases,
            _contraction(node, role, inputs, outputs),
            self._codes(node),
        )

    def _codes(self, node: onnx.NodeProto) -> Codes | None:
        """Return the grid of the codes that a conversion makes or reads, if the tensor has just one."""
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 2:
            return None
        scale = self._number(node.input[1])
        zero = self._number(node.input[2]) if len(node.input) > 2 and node.input[2] else 0.0
        codes = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
        given = next((name for name in (*node.input[2:3], codes) if name in self._values), "")
        dtype = self._values[given].dtype if given else "uint8"  # what QuantizeLinear makes by default
        return None if scale is None or zero is None else Codes(dtype, scale, int(zero))

    def _number(self, name: str) -> float | None:
        tensor = self._small.get(name)
        if tensor is None or math.prod(tensor.dims) != 1 or tensor.data_location == TensorProto.EXTERNAL:
            return None
        try:
            number = float(numpy_helper.to_array(tensor).reshape(()))
        except (ValueError, TypeError, RuntimeError):  # its data are not those of its type
            return None
        return number if math.isfinite(number) else None


def _weights(op_type: str, role: Role, inputs: Sequence[Value | None]) -> tuple[tuple[Value, ...], int]:
    """Return the trained constants, biases last, and the number of biases."""
    if role == "convolution":
        kernel, bias = _CONVOLUTIONS[op_type]
        return trained([at(inputs, kernel)], [at(inputs, bias)])
    if role == "dense":
        first, second, bias = _PRODUCTS[op_type]
        return trained([at(inputs, first), at(inputs, second)], [at(inputs, bias)])
    if op_type in _SCALES and role != "weights":
        return trained(at(inputs, index) for index in _SCALES[op_type])
    if op_type in _BINARY and role == "elementwise":
        # A scalar is part of a formula (the 3 of hard-swish), not a trained tensor.
        return trained(v for v in inputs if v is not None and not is_scalar(v))
    return (), 0


def _contraction(
    node: onnx.NodeProto, role: Role, inputs: Sequence[Value | None], outputs: Sequence[Value]
) -> Contraction | None:
    if not outputs:
        return None
    if role == "convolution":
        return _convolution(node, at(inputs, 0), at(inputs, _CONVOLUTIONS[node.op_type][0]), outputs[0])
    if role == "dense":
        first, second, _ = _PRODUCTS[node.op_type]
        return _product(node, at(inputs, first), at(inputs, second), outputs[0])
    return None


def _convolution(
    node: onnx.NodeProto, image: Value | None, kernel: Value | None, output: Value
) -> Contraction | None:
    weight = known_shape(kernel)
    groups = _int(node, "group", 1)
    if weight is None or len(weight) < 3 or groups < 1:
        return None
    transposed = node.op_type == "ConvTranspose"
    # Conv: [c2, c1/g, *window]; ConvTranspose: [c1, c2/g, *window].
    in_channels, out_channels = (
        (weight[0], weight[1] * groups) if transposed else (weight[1] * groups, weight[0])
    )
    where = known_shape(image if transposed else output)
    if where is None or len(where) != len(weight):
        return None
    return Contraction(in_channels, out_channels, where[0] * math.prod(where[2:]), groups, weight[2:])


def _product(node: onnx.NodeProto, a: Value | None, b: Value | None, output: Value) -> Contraction | None:
    first, second, result = known_shape(a), known_shape(b), known_shape(output)
    if "Gemm" in node.op_type:
        if first is None or second is None or len(first) != 2 or len(second) != 2:
            return None
        rows, depth = first[::-1] if _int(node, "transA", 0) else first
        columns = second[0] if _int(node, "transB", 0) else second[1]
        return Contraction(depth, columns, rows)
    if not first or not second or result is None:
        return None
    # A vector is a row on the left and a column on the right; a product of batches repeats the columns.
    depth = first[-2] if _int(node, "transA", 0) and len(first) > 1 else first[-1]
    columns = 1 if len(second) == 1 else second[-2] if _int(node, "transB", 0) else second[-1]
    return Contraction(depth, columns, math.prod(result) // max(columns, 1))


def _int(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)
