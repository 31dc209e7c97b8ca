"""The one intermediate representation: a captured ONNX graph held as onnx-ir.

Shapes are static (the batch alone may be symbolic), batch norm is folded, every tensor has a stable
name that points back to the module that made it, and weights are initialisers. Capture, rewrites,
emitters and parity all speak of its tensors by those names.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from shufflectl.converters.quantize.scales import Scale
from shufflectl.errors import GraphError

__all__ = ["Graph", "Quantization", "TensorRecord"]

_ORIGIN = "shufflectl.origin"
_CHANNELS = "shufflectl.channels"
_AREA = "shufflectl.area"
_QUANTIZATION = "shufflectl.quantization"


@dataclass(frozen=True)
class TensorRecord:
    """Which tensor of the captured graph a rewritten tensor stands for.

    Attributes:
        origin: The captured tensor's name; empty where a tensor stands for none of them.
        channels: For each channel of this tensor the captured tensor's channel, -1 for padding and for what
            belongs to another; None where the order is the same. Several tensors may share an origin: each
            holds all of its channels, or they hold them in pieces.
        area: The captured tensor's height and width, where this one has further rows and columns at the end;
            None where they are the same.
    """

    origin: str
    channels: tuple[int, ...] | None = None
    area: tuple[int, int] | None = None


@dataclass(frozen=True)
class Quantization:
    """Which tensors of a graph are held in eight bits; see `converters.quantize`.

    Attributes:
        scales: The grid of each such tensor, by name. Weights and biases follow from the float constants.
        floats: The names of nodes that compute in floating point all the same.
    """

    scales: Mapping[str, Scale]
    floats: frozenset[str] = frozenset()


class Graph:
    """A captured model: an onnx-ir model and the record of what each rewritten tensor stands for.

    Args:
        model: The onnx-ir model. The graph owns it: passes change it in place on a `clone`.
        records: For each tensor that a rewrite renamed, permuted or padded, what it stands for. A tensor
            with no record stands for itself.
        quantization: Which tensors are held in eight bits; None for a graph in floating point.
    """

    def __init__(
        self,
        model: ir.Model,
        records: Mapping[str, TensorRecord] | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        self.model = model
        self.records = dict(records or {})
        self.quantization = quantization

    @property
    def nodes(self) -> list[ir.Node]:
        """The nodes, in an order in which every tensor is made before it is used."""
        return list(self.model.graph)

    @property
    def inputs(self) -> list[ir.Value]:
        """The graph's inputs, without initialisers."""
        return [v for v in self.model.graph.inputs if v.name not in self.model.graph.initializers]

    @property
    def outputs(self) -> list[ir.Value]:
        """The graph's outputs."""
        return list(self.model.graph.outputs)

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return self.model.opset_imports[""]

    def record(self, name: str) -> TensorRecord:
        """Return what the tensor of that name stands for."""
        return self.records.get(name, TensorRecord(name))

    @staticmethod
    def constant(value: ir.Value | None) -> NDArray[Any] | None:
        """Return a tensor's value where it is constant (an initialiser or a Constant node), or None."""
        if value is None:
            return None
        const = value.const_value
        if const is None:
            node = value.producer()
            if node is None or node.op_type != "Constant":
                return None
            const = ir.convenience.get_const_tensor(value)
            if const is None:
                return None
        return np.asarray(const.numpy())

    @staticmethod
    def shape(value: ir.Value) -> tuple[int | str, ...]:
        """Return a tensor's shape; a symbolic dimension is its name.

        Raises:
            GraphError: The shape is unknown.
        """
        if value.shape is None:
            raise GraphError(f"the shape of tensor {value.name!r} is unknown")
        return tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)

    def clone(self) -> Self:
        """Return a copy that can be rewritten without changing this graph (weights are shared)."""
        return type(self)(self.model.clone(), self.records, self.quantization)

    def to_proto(self) -> onnx.ModelProto:
        """Return the graph as an ONNX protobuf."""
        return ir.to_proto(self.model)

    def to_bytes(self) -> bytes:
        """Return the graph with its records and scales as one ONNX file's bytes (for another process)."""
        proto = self.to_proto()
        for name, record in self.records.items():
            proto.metadata_props.add(key=f"{_ORIGIN}:{name}", value=record.origin)
            for kind, numbers in ((_CHANNELS, record.channels), (_AREA, record.area)):
                if numbers is not None:
                    proto.metadata_props.add(key=f"{kind}:{name}", value=",".join(map(str, numbers)))
        if self.quantization is not None:
            scales = {name: [grid.scale, grid.zero_point] for name, grid in self.quantization.scales.items()}
            held = {"scales": scales, "floats": sorted(self.quantization.floats)}
            proto.metadata_props.add(key=_QUANTIZATION, value=json.dumps(held))
        return bytes(proto.SerializeToString(deterministic=True))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote."""
        proto = onnx.ModelProto.FromString(data)
        props = {p.key: p.value for p in proto.metadata_props}
        held = props.pop(_QUANTIZATION, None)
        records, kept = {}, []
        for key, value in props.items():
            kind, _, name = key.partition(":")
            if kind == _ORIGIN:
                height_width = _integers(props.get(f"{_AREA}:{name}"))
                area = None if height_width is None else (height_width[0], height_width[1])
                records[name] = TensorRecord(value, _integers(props.get(f"{_CHANNELS}:{name}")), area)
            elif kind not in (_CHANNELS, _AREA):
                kept.append((key, value))
        del proto.metadata_props[:]
        for key, value in kept:
            proto.metadata_props.add(key=key, value=value)
        return cls(ir.from_proto(proto), records, None if held is None else _quantization(held))


def _integers(text: str | None) -> tuple[int, ...] | None:
    return None if text is None else tuple(int(number) for number in text.split(",") if number)


def _quantization(text: str) -> Quantization:
    held = json.loads(text)
    scales = {name: Scale(scale, zero_point) for name, (scale, zero_point) in held["scales"].items()}
    return Quantization(scales, frozenset(held["floats"]))
