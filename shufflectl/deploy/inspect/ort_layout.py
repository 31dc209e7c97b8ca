"""What ONNX Runtime's optimiser makes of a file on this machine: blocked convolutions, reorders, the rest.

On CPUs with AVX, ONNX Runtime's MLAS computes convolutions on channels in blocks (the NCHWc layout). A
convolution that is given this layout reads and writes it; where a neighbour cannot, ReorderInput and
ReorderOutput copy the tensor. Which operators are given it is decided in
``onnxruntime/core/optimizer/nchwc_transformer.cc`` (`TransformConv`, `TransformPool`), and the reasons here
are its conditions, checked against ONNX Runtime 1.31 with convolutions of all widths:

- a dense convolution with fewer input channels than a block reads the plain layout; otherwise its input
  channels must be a multiple of 4;
- a depthwise convolution's channels must be a multiple of 4;
- a grouped convolution's channels, input and output, must be multiples of the block in every group;
- a pooling's channels must be a multiple of the block;
- kernels are constant, float32, and two-dimensional.

A group of Q/DQ (`integers`) becomes one kernel of codes where ONNX Runtime has one, as QLinearConv for a
convolution; what only moves codes loses the conversions around it. Weights in codes that are not part of such
a group are unpacked by a DequantizeLinear in every run: ONNX Runtime does not fold it.

The optimised graph depends on the CPU: the block has 16 channels with AVX-512 and 8 with AVX, and Arm CPUs
mostly have none. So these facts hold for the machine that they were measured on.
"""

import platform
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import onnx

from shufflectl.deploy.inspect.program import Value, size_in_bytes

__all__ = ["LayoutReport", "PlainOperator", "Reorder", "analyse"]

_BLOCKED: Final = "com.microsoft.nchwc"
_REORDERS: Final = ("ReorderInput", "ReorderOutput")
_CONVOLUTIONS: Final = ("Conv", "FusedConv")
_POOLS: Final = ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")
_ALIGNMENT: Final = 4
_CONVERSIONS: Final = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_INTEGER: Final = re.compile(
    r"QLinear\w+|QGemm|NhwcMaxPool|(Conv|MatMul)Integer\w*|DynamicQuantizeMatMul|QAttention"
)


@dataclass(frozen=True)
class Reorder:
    """A copy from one layout to the other.

    Attributes:
        type: ``ReorderInput`` (into blocks) or ``ReorderOutput`` (out of them).
        tensor: The plain tensor, by its name in the file where the file has it.
        neighbours: The types of the operators on the plain side, which keep the plain layout.
        bytes: Bytes read and written; None where the tensor's size is unknown.
    """

    type: str
    tensor: str
    neighbours: tuple[str, ...]
    bytes: int | None


@dataclass(frozen=True)
class PlainOperator:
    """A convolution or pooling that keeps the plain layout.

    Attributes:
        name: Its name in the optimised graph.
        type: Its type.
        why: The condition that it does not meet.
    """

    name: str
    type: str
    why: str


@dataclass(frozen=True)
class LayoutReport:
    """The optimised graph.

    Attributes:
        machine: The kind of CPU, as ``x86_64``.
        block: Channels in a block; None where this machine has no blocked layout.
        operators: How many operators there are of each type; those of the blocked layout as ``nchwc.Conv``.
        fused: Convolutions that took an activation in.
        casts: Conversions between types that the file does not have, as fp16 gets on CPUs.
        reorders: Every reorder, in the order of execution.
        plain: Convolutions and poolings on floats that keep the plain layout.
        integers: Kernels of codes: fused groups of Q/DQ, and those that the file has itself, by type.
        conversions: Operators between codes and floats that are left.
        unpacked: Those of them that unpack weights, which happens in every run.
    """

    machine: str
    block: int | None
    operators: Mapping[str, int]
    fused: int
    casts: int
    reorders: tuple[Reorder, ...]
    plain: tuple[PlainOperator, ...]
    integers: Mapping[str, int] = field(default_factory=dict)
    conversions: int = 0
    unpacked: int = 0

    def count(self, kind: str) -> int:
        """Return how many reorders there are of a type."""
        return sum(reorder.type == kind for reorder in self.reorders)

    @property
    def blocked(self) -> int:
        """How many convolutions and poolings are given the blocked layout."""
        return sum(
            count
            for name, count in self.operators.items()
            if name.startswith("nchwc.") and name.removeprefix("nchwc.") in (*_CONVOLUTIONS, *_POOLS)
        )

    @property
    def reordered_bytes(self) -> int | None:
        """Bytes that all reorders read and write; None where one is unknown."""
        total = 0
        for reorder in self.reorders:
            if reorder.bytes is None:
                return None
            total += reorder.bytes
        return total

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LayoutReport":
        """Return the report that `dataclasses.asdict` gave."""
        return cls(
            machine=data["machine"],
            block=data["block"],
            operators=dict(data["operators"]),
            fused=data["fused"],
            casts=data["casts"],
            reorders=tuple(
                Reorder(r["type"], r["tensor"], tuple(r["neighbours"]), r["bytes"]) for r in data["reorders"]
            ),
            plain=tuple(PlainOperator(**p) for p in data["plain"]),
            integers=dict(data["integers"]),
            conversions=data["conversions"],
            unpacked=data["unpacked"],
        )


def analyse(
    optimised: onnx.ModelProto, values: Mapping[str, Value], *, casts: int, block: int | None
) -> LayoutReport:
    """Return what an optimised graph holds.

    Args:
        optimised: What ONNX Runtime writes as its optimised model.
        values: The file's tensors by name, for the sizes of those that are reordered.
        casts: How many conversions between types the file itself has.
        block: Channels in a block on this machine; None where there is no blocked layout.
    """
    nodes = optimised.graph.node
    kernels = {tensor.name: tensor for tensor in optimised.graph.initializer}
    makers = {name: node.op_type for node in nodes for name in node.output}
    readers: dict[str, list[str]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    operators = Counter(
        f"nchwc.{node.op_type}" if node.domain == _BLOCKED else node.op_type for node in nodes
    )
    ordered = dict(sorted(operators.items(), key=lambda item: (-item[1], item[0])))
    conversions = [node for node in nodes if node.op_type in _CONVERSIONS]
    unpacked = [node for node in conversions if node.input[0] in kernels]
    unpacking = {name for node in unpacked for name in node.output}
    return LayoutReport(
        machine=platform.machine(),
        block=block,
        operators=ordered,
        fused=sum(_fused(node) for node in nodes),
        casts=max(0, operators["Cast"] - casts),
        reorders=tuple(
            _reorder(node, makers, readers, values) for node in nodes if node.op_type in _REORDERS
        ),
        plain=tuple(
            PlainOperator(
                node.name or node.output[0], node.op_type, _why(node, kernels, values, block, unpacking)
            )
            for node in nodes
            if node.domain != _BLOCKED and node.op_type in (*_CONVOLUTIONS, *_POOLS)
        ),
        integers={name: count for name, count in ordered.items() if _INTEGER.fullmatch(name)},
        conversions=len(conversions),
        unpacked=len(unpacked),
    )


def _fused(node: onnx.NodeProto) -> bool:
    return node.op_type in _CONVOLUTIONS and any(a.name == "activation" and a.s for a in node.attribute)


def _reorder(
    node: onnx.NodeProto,
    makers: Mapping[str, str],
    readers: Mapping[str, Sequence[str]],
    values: Mapping[str, Value],
) -> Reorder:
    into = node.op_type == "ReorderInput"
    name = node.input[0] if into else node.output[0]
    beside = [makers[name]] if into and name in makers else [] if into else list(readers.get(name, ()))
    size = size_in_bytes(values[name]) if name in values else None
    return Reorder(
        node.op_type, name, tuple(dict.fromkeys(beside)), None if size is None else 2 * size
    )  # read and written


def _why(
    node: onnx.NodeProto,
    kernels: Mapping[str, onnx.TensorProto],
    values: Mapping[str, Value],
    block: int | None,
    unpacking: Collection[str],
) -> str:
    """Return the condition that a convolution or pooling does not meet."""
    if len(node.input) > 1 and node.input[1] in unpacking:
        return "its kernel is unpacked in every run"
    if block is None:
        return "ONNX Runtime has no blocked layout on this CPU"
    if node.op_type in _POOLS:
        value = values.get(node.input[0])
        channels = value.shape[1] if value is not None and value.shape and len(value.shape) == 4 else None
        if channels is not None and channels % block:
            return f"{channels} channels are no multiple of the block, {block}"
        return "no known condition"
    kernel = kernels.get(node.input[1]) if len(node.input) > 1 else None
    if kernel is None:
        return "its kernel is not constant"
    if kernel.data_type != onnx.TensorProto.FLOAT:
        return "its kernel is not float32"
    if len(kernel.dims) != 4:
        return "it is not two-dimensional"
    groups = next((int(a.i) for a in node.attribute if a.name == "group"), 1)
    results, sources = int(kernel.dims[0]), int(kernel.dims[1])
    if groups == 1:
        bad = sources >= block and sources % _ALIGNMENT
        return f"{sources} input channels are no multiple of {_ALIGNMENT}" if bad else "no known condition"
    if sources == 1 and results == groups:
        bad = results % _ALIGNMENT
        return f"{results} channels are no multiple of {_ALIGNMENT}" if bad else "no known condition"
    if sources % block or results // groups % block:
        each = f"{sources} input and {results // groups} output channels in a group"
        return f"{each} are not multiples of the block, {block}"
    return "no known condition"
