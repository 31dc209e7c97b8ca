"""Spoil exported files on purpose: other weights, biases or pads in one layer of an existing artifact.

A layer is named by its output in the captured graph (``stage2.0.branch2.4``). Weights are handed over as the
captured graph has them: ``[O, I, kH, kW]`` for a convolution, ``[O, I]`` for a dense layer.
"""

import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import flatbuffers
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from coremltools.proto import MIL_pb2, Model_pb2
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]
Change = Callable[[Array], Array]


def zero_column(channel: int) -> Change:
    """Return the change that deletes what an input channel contributes."""

    def change(weight: Array) -> Array:
        weight[:, channel] = 0
        return weight

    return change


def swap_rows(i: int, j: int) -> Change:
    """Return the change that swaps two output channels of a weight or a bias."""

    def change(weight: Array) -> Array:
        weight[[i, j]] = weight[[j, i]]
        return weight

    return change


def zero_heaviest_column(weight: Array) -> Array:
    """Delete what the input channel with the largest weights contributes (never a padded one)."""
    return zero_column(_heaviest(weight, 1)[0])(weight)


class SwapHeaviestRows:
    """Swaps the two output channels with the largest weights, first of the weight, then of the bias."""

    def __init__(self) -> None:
        self._swap: Change | None = None

    def __call__(self, parameter: Array) -> Array:
        """Swap, and remember which."""
        if self._swap is None:
            self._swap = swap_rows(*_heaviest(parameter, 0)[:2])
        return self._swap(parameter)


def _heaviest(weight: Array, axis: int) -> list[int]:
    others = tuple(a for a in range(weight.ndim) if a != axis)
    return [int(i) for i in np.argsort(-np.square(weight.astype(np.float64)).sum(others), kind="stable")]


def weight(path: Path, layer: str, change: Change) -> None:
    """Change a layer's weight in a file of any format, in place."""
    _FORMATS[path.suffix](path).parameter(layer, 1, change)


def bias(path: Path, layer: str, change: Change) -> None:
    """Change a layer's bias, likewise."""
    _FORMATS[path.suffix](path).parameter(layer, 2, change)


def swap_channels(path: Path, layer: str, i: int, j: int) -> None:
    """Swap two output channels of a layer."""
    weight(path, layer, swap_rows(i, j))
    bias(path, layer, swap_rows(i, j))


def pads(path: Path, layer: str, values: Sequence[int]) -> None:
    """Change a convolution's pads: top, left, bottom, right."""
    _FORMATS[path.suffix](path).pads(layer, list(values))


class _Onnx:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = onnx.load(path)

    def _node(self, layer: str) -> onnx.NodeProto:
        node = next(node for node in self.model.graph.node if layer in node.output)
        return self._node(node.input[0]) if node.op_type == "Cast" else node

    def parameter(self, layer: str, position: int, change: Change) -> None:
        name = self._node(layer).input[position]
        tensor = next(tensor for tensor in self.model.graph.initializer if tensor.name == name)
        changed = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), name))
        onnx.save(self.model, self.path)

    def pads(self, layer: str, values: list[int]) -> None:
        node = self._node(layer)
        kept = [attribute for attribute in node.attribute if attribute.name != "pads"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("pads", values)])
        onnx.save(self.model, self.path)


class _TFLite:
    """Finds a layer by its weight's name, which starts with the layer's, or by its output."""

    DTYPES: ClassVar = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.FLOAT16: np.float16}

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
        self.graph = self.model.subgraphs[0]

    def _operator(self, layer: str) -> Any:
        for operator in self.graph.operators:
            if self._code(operator) in self.AXES and len(operator.inputs) > 1:
                name = self.graph.tensors[operator.inputs[1]].name
                produced = self.graph.tensors[operator.outputs[0]].name
                own = re.fullmatch(rf"{re.escape(layer)}\.weight(_\d+)?", name.decode())  # _1: of a rewrite
                if own or produced == layer.encode():
                    return operator
        raise LookupError(layer)

    def _code(self, operator: Any) -> int:
        return int(self.model.operatorCodes[operator.opcodeIndex].builtinCode)

    # The file's axes of a weight as the captured graph's: [O, kH, kW, I], [1, kH, kW, O], [O, I].
    AXES: ClassVar = {
        schema.BuiltinOperator.CONV_2D: (0, 2, 3, 1),
        schema.BuiltinOperator.DEPTHWISE_CONV_2D: (1, 2, 3, 0),
        schema.BuiltinOperator.FULLY_CONNECTED: (0, 1),
    }

    def parameter(self, layer: str, position: int, change: Change) -> None:
        operator = self._operator(layer)
        tensor = self.graph.tensors[operator.inputs[position]]
        buffer = self.model.buffers[tensor.buffer]
        if buffer.data is None or len(buffer.data) == 0:  # fp16: the constant lies before a DEQUANTIZE
            index = operator.inputs[position]
            source = next(op for op in self.graph.operators if index in op.outputs)
            tensor = self.graph.tensors[source.inputs[0]]
            buffer = self.model.buffers[tensor.buffer]
        data = np.asarray(buffer.data, np.uint8).tobytes()
        array = np.frombuffer(data, self.DTYPES[tensor.type]).reshape(tensor.shape).copy()
        axes = self.AXES[self._code(operator)] if position == 1 else (0,)
        changed = change(array.transpose(np.argsort(axes)).copy()).transpose(axes)
        buffer.data = np.frombuffer(np.ascontiguousarray(changed).tobytes(), np.uint8)
        self._save()

    def pads(self, layer: str, values: list[int]) -> None:
        operator = self._operator(layer)
        padded = operator.inputs[0]
        pad = next(op for op in self.graph.operators if padded in op.outputs)
        assert self._code(pad) == schema.BuiltinOperator.PAD
        held = self.graph.tensors[pad.inputs[1]]
        data = np.asarray(self.model.buffers[held.buffer].data, np.uint8).tobytes()
        paddings = np.frombuffer(data, np.int32).reshape(4, 2).copy()
        # What lies at the end follows, so that shapes stay: the file may compute a row that nobody reads.
        for axis, first in ((1, values[0]), (2, values[1])):
            paddings[axis] = first, paddings[axis].sum() - first
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(paddings.tobytes(), np.uint8)
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = b"mutated", [4, 2], schema.TensorType.INT32
        tensor.buffer = len(self.model.buffers)
        self.model.buffers.append(buffer)
        self.graph.tensors.append(tensor)
        pad.inputs = [pad.inputs[0], len(self.graph.tensors) - 1]
        self._save()

    def _save(self) -> None:
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        self.path.write_bytes(builder.Output())


class _CoreML:
    RECORD = struct.Struct("<IIQQ")  # sentinel, type, bytes, offset of the data: MILBlob's storage format 2
    DTYPES: ClassVar = {
        MIL_pb2.FLOAT16: np.dtype("<f2"),
        MIL_pb2.FLOAT32: np.dtype("<f4"),
        MIL_pb2.INT32: np.dtype("<i4"),
    }

    def __init__(self, path: Path) -> None:
        self.file = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
        self.weights = self.file.parent / "weights" / "weight.bin"
        self.spec = Model_pb2.Model()
        self.spec.ParseFromString(self.file.read_bytes())
        main = self.spec.mlProgram.functions["main"]
        self.operations = main.block_specializations[main.opset].operations

    def _operation(self, layer: str) -> Any:
        name = re.sub(r"\W", "_", layer)
        for operation in self.operations:
            if operation.type in ("conv", "linear") and operation.outputs[0].name in (
                name,
                f"{name}_cast_fp16",
            ):
                return operation
        raise LookupError(layer)

    def _constant(self, operation: Any, argument: str) -> Any:
        binding = operation.inputs[argument].arguments[0]
        if binding.WhichOneof("binding") == "value":
            return binding.value
        found = next(
            op for op in self.operations if op.type == "const" and op.outputs[0].name == binding.name
        )
        return found.attributes["val"]

    def parameter(self, layer: str, position: int, change: Change) -> None:
        value = self._constant(self._operation(layer), ("x", "weight", "bias")[position])
        kind = value.type.tensorType
        shape = [dimension.constant.size for dimension in kind.dimensions]
        dtype = self.DTYPES[kind.dataType]
        if value.HasField("blobFileValue"):
            data = bytearray(self.weights.read_bytes())
            _, _, size, start = self.RECORD.unpack_from(data, value.blobFileValue.offset)
            array = np.frombuffer(bytes(data[start : start + size]), dtype).reshape(shape).copy()
            data[start : start + size] = np.ascontiguousarray(change(array).astype(dtype)).tobytes()
            self.weights.write_bytes(data)
            return
        tensor = value.immediateValue.tensor
        if tensor.WhichOneof("value") == "bytes":
            array = np.frombuffer(tensor.bytes.values, dtype).reshape(shape).copy()
            tensor.bytes.values = np.ascontiguousarray(change(array).astype(dtype)).tobytes()
        else:
            array = np.array(tensor.floats.values, dtype).reshape(shape)
            tensor.floats.values[:] = change(array).ravel().tolist()
        self._save()

    def pads(self, layer: str, values: list[int]) -> None:
        operation = self._operation(layer)
        top, left, bottom, right = values
        value = MIL_pb2.Value()
        value.CopyFrom(self._constant(operation, "pad"))
        value.immediateValue.tensor.ints.values[:] = [top, bottom, left, right]
        binding = operation.inputs["pad"].arguments[0]
        if binding.WhichOneof("binding") == "value":
            binding.value.CopyFrom(value)
        else:  # the constant may be shared: give this operation one of its own
            constant = next(
                op for op in self.operations if op.type == "const" and op.outputs[0].name == binding.name
            )
            own = type(constant)()
            own.CopyFrom(constant)
            own.outputs[0].name = binding.name = "mutated_pad"
            own.attributes["val"].CopyFrom(value)
            self.operations.insert(list(self.operations).index(operation), own)
        self._save()

    def _save(self) -> None:
        self.file.write_bytes(self.spec.SerializeToString(deterministic=True))


_FORMATS: dict[str, Callable[[Path], Any]] = {".onnx": _Onnx, ".tflite": _TFLite, ".mlpackage": _CoreML}
