"""What an operator does with channels: mixes them, carries them, or neither that is known.

- *mixes*: every output channel may read every input channel, through constant weights whose columns stand for
  the input channels and whose rows stand for the output channels (a convolution with one group, a dense
  layer). Input order, output order, repetitions and zero channels are then a matter of the weights alone.
- *carries*: output channel i is a function of channel i of the inputs and of row i of its constants (ReLU,
  pooling, depthwise convolution, addition, a scale). A permutation of its inputs is a permutation of its
  output, with its constants' rows permuted.
- *opaque*: anything else. It reads and gives channels in their own order.
"""

from dataclasses import dataclass

import onnx_ir as ir

from shufflectl.converters.graph import Graph
from shufflectl.errors import GraphError

__all__ = ["Carries", "Mixes", "Opaque", "Parameter", "Role", "role"]


@dataclass(frozen=True)
class Parameter:
    """A constant input with one entry a channel on some axis.

    Attributes:
        index: Which input of the node.
        axis: Its channel axis.
        padding: What the entries of padded channels are.
    """

    index: int
    axis: int
    padding: float = 0.0


@dataclass(frozen=True)
class Mixes:
    """Reads all channels through weights.

    Attributes:
        data: The index of the input that holds the channels.
        columns: The weights, on the axis of the input channels.
        rows: The weights and the bias, on the axis of the output channels.
    """

    data: int
    columns: Parameter
    rows: tuple[Parameter, ...]


@dataclass(frozen=True)
class Carries:
    """Keeps channels apart.

    Attributes:
        data: The indices of the inputs that hold channels.
        parameters: Constants with an entry for each channel.
        elementwise: Whether it works on each element alone (an activation), with one data input.
        pads: Whether a finite channel stays finite, so that padding can pass.
        depthwise: Whether ``group`` is the number of channels.
    """

    data: tuple[int, ...]
    parameters: tuple[Parameter, ...] = ()
    elementwise: bool = False
    pads: bool = True
    depthwise: bool = False


@dataclass(frozen=True)
class Opaque:
    """Reads and gives channels in their own order.

    Attributes:
        why: Why nothing better is known, as the end of a sentence.
    """

    why: str


Role = Mixes | Carries | Opaque

_ELEMENTWISE = frozenset(
    [
        "Relu",
        "LeakyRelu",
        "Sigmoid",
        "Tanh",
        "HardSigmoid",
        "HardSwish",
        "Clip",
        "Elu",
        "Selu",
        "Gelu",
        "Mish",
        "Erf",
        "Softplus",
        "Softsign",
        "Abs",
        "Neg",
        "Celu",
        "ThresholdedRelu",
        "Floor",
        "Ceil",
        "Round",
    ]
)
_ELEMENTWISE_UNPADDED = frozenset(["Exp", "Log", "Sqrt", "Reciprocal"])
_POOLING = frozenset(["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"])
_BINARY = frozenset(["Add", "Sub", "Mul", "Max", "Min"])
_BINARY_UNPADDED = frozenset(["Div", "Pow"])
_REDUCTIONS = frozenset(["ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"])


def _shape(value: ir.Value | None) -> tuple[int | str, ...]:
    return () if value is None or value.shape is None else Graph.shape(value)


def _channels(value: ir.Value | None) -> int:
    dims = _shape(value)
    return dims[1] if len(dims) > 1 and isinstance(dims[1], int) else 0


def _convolution(node: ir.Node) -> Role:
    x, weight = node.inputs[0], node.inputs[1]
    if Graph.constant(weight) is None:
        return Opaque("its weights are computed")
    bias = (Parameter(2, 0),) if len(node.inputs) > 2 and node.inputs[2] is not None else ()
    if bias and Graph.constant(node.inputs[2]) is None:
        return Opaque("its bias is computed")
    group, given, made = node.attributes.get_int("group", 1), _channels(x), _channels(node.outputs[0])
    if group == 1:
        return Mixes(0, Parameter(1, 1), (Parameter(1, 0), *bias))
    if group == given == made:
        return Carries((0,), (Parameter(1, 0), *bias), depthwise=True)
    return Opaque(f"it is a convolution with {group} groups of {given} channels")


def _dense(node: ir.Node) -> Role:
    weight = Graph.constant(node.inputs[1])
    if len(_shape(node.inputs[0])) != 2 or weight is None or weight.ndim != 2:
        return Opaque("its weights are computed or its input is no matrix")
    columns, rows = 0, 1
    bias: tuple[Parameter, ...] = ()
    if node.op_type == "Gemm":
        if node.attributes.get_int("transA", 0):
            return Opaque("it transposes its input")
        if node.attributes.get_int("transB", 0):
            columns, rows = 1, 0
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            value = Graph.constant(node.inputs[2])
            if value is None:
                return Opaque("its bias is computed")
            if value.ndim and value.shape[-1] == weight.shape[rows]:
                bias = (Parameter(2, value.ndim - 1),)
    return Mixes(0, Parameter(1, columns), (Parameter(1, rows), *bias))


def _binary(node: ir.Node, *, pads: bool) -> Role:
    out = _shape(node.outputs[0])
    data, parameters = [], []
    for index, value in enumerate(node.inputs):
        array = Graph.constant(value)
        if array is None:
            if len(_shape(value)) != len(out) or _channels(value) != _channels(node.outputs[0]):
                return Opaque("it broadcasts over channels")
            data.append(index)
            continue
        axis = 1 - (len(out) - array.ndim)  # constants are aligned at their last axis
        if axis >= 0 and array.shape[axis] > 1:
            if array.shape[axis] != _channels(node.outputs[0]):
                return Opaque("it broadcasts over channels")
            parameters.append(Parameter(index, axis))
    if not data:
        return Opaque("it computes a constant")
    return Carries(tuple(data), tuple(parameters), pads=pads)


def _reduction(node: ir.Node) -> Role:
    rank = len(_shape(node.inputs[0]))
    axes = None
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        array = Graph.constant(node.inputs[1])
        axes = None if array is None else [int(a) for a in array.ravel()]
    elif "axes" in node.attributes:
        axes = list(node.attributes["axes"].as_ints())
    if not axes or any((a + rank if a < 0 else a) < 2 for a in axes):
        return Opaque("it reduces over channels")
    return Carries((0,))


def _batch_norm(node: ir.Node) -> Role:
    computed = any(Graph.constant(v) is None for v in node.inputs[1:5])
    if computed or node.attributes.get_int("training_mode", False):
        return Opaque("its statistics are computed")
    return Carries((0,), (Parameter(1, 0), Parameter(2, 0), Parameter(3, 0), Parameter(4, 0, 1.0)))


def _prelu(node: ir.Node) -> Role:
    slope, rank = Graph.constant(node.inputs[1]), len(_shape(node.inputs[0]))
    if slope is None:
        return Opaque("its slope is computed")
    axis = 1 - (rank - slope.ndim)
    has = axis >= 0 and slope.shape[axis] > 1
    return Carries((0,), (Parameter(1, axis),) if has else ())


def _spatial(node: ir.Node) -> Role:
    """Pad and Resize, where they leave batch and channels alone."""
    given, made = _shape(node.inputs[0]), _shape(node.outputs[0])
    if given[:2] != made[:2] or any(Graph.constant(v) is None for v in node.inputs[1:] if v is not None):
        return Opaque("it may change channels")
    if node.op_type == "Pad":
        pads = Graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = Graph.constant(node.inputs[3]) if len(node.inputs) > 3 else None
        if pads is None or axes is not None or len(pads) != 2 * len(given):
            return Opaque("it may change channels")
        if any(pads[[0, 1, len(given), len(given) + 1]]):
            return Opaque("it moves channels")
    elif node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return Opaque("it may change channels")
    elif len(node.inputs) > 3 and node.inputs[3] is not None:
        return Opaque("it names the number of channels")
    return Carries((0,))


def role(node: ir.Node) -> Role:
    """Return what a node does with channels; it is never data movement."""
    if node.domain not in ("", "ai.onnx"):
        return Opaque(f"{node.domain}.{node.op_type} is not known")
    if sum(bool(v.name) for v in node.outputs) != 1:
        return Opaque(f"{node.op_type} has several results")
    try:
        channels = _channels(node.outputs[0])
    except GraphError:
        channels = 0
    if not channels:
        return Opaque("its result has no channel axis of known length")
    op = node.op_type
    if op == "Conv":
        return _convolution(node)
    if op in ("Gemm", "MatMul"):
        return _dense(node)
    found: Role
    if op in _ELEMENTWISE or op in _ELEMENTWISE_UNPADDED:
        if any(Graph.constant(v) is None for v in node.inputs[1:] if v is not None):
            return Opaque("its bounds are computed")
        found = Carries((0,), elementwise=True, pads=op in _ELEMENTWISE)
    elif op in _POOLING:
        found = Carries((0,))
    elif op in _BINARY or op in _BINARY_UNPADDED:
        found = _binary(node, pads=op in _BINARY)
    elif op in _REDUCTIONS:
        found = _reduction(node)
    elif op == "BatchNormalization":
        found = _batch_norm(node)
    elif op == "PRelu":
        found = _prelu(node)
    elif op in ("Pad", "Resize"):
        found = _spatial(node)
    else:
        return Opaque(f"{op} may mix channels")
    if isinstance(found, Carries) and any(_channels(node.inputs[i]) != channels for i in found.data):
        return Opaque(f"{op} changes the number of channels")
    return found
