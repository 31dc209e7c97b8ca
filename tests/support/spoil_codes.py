"""Spoil the scales of int8 files on purpose: of activations, of weights, of biases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from coremltools.proto import MIL_pb2, Model_pb2
from onnx import numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]


def activation_scale(path: Path, tensor: str, factor: float) -> None:
    """Multiply the scale of a tensor's codes, wherever the file holds it."""
    _FORMATS[path.suffix](path).activation(tensor, lambda scale, zero: (scale * factor, zero))


def zero_point(path: Path, tensor: str, step: int) -> None:
    """Add to the zero point of a tensor's codes."""
    _FORMATS[path.suffix](path).activation(tensor, lambda scale, zero: (scale, zero + step))


def swap_weight_scales(path: Path, layer: str, i: int, j: int) -> None:
    """Swap the scales of two rows of a layer's weights."""

    def swap(scales: Array) -> Array:
        scales[[i, j]] = scales[[j, i]]
        return scales

    _FORMATS[path.suffix](path).rows(layer, 1, swap)


def bias_scale(path: Path, layer: str, factor: float) -> None:
    """Multiply the scales of a layer's bias."""
    _FORMATS[path.suffix](path).rows(layer, 2, lambda scales: scales * np.float32(factor))


class _Onnx:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._model = onnx.load(path)
        self._constants = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._makers = {name: node for node in self._model.graph.node for name in node.output}

    def _replace(self, name: str, change: Callable[[Array], Array]) -> None:
        old = self._constants[name]
        array = numpy_helper.to_array(old)
        old.CopyFrom(numpy_helper.from_array(np.asarray(change(array.copy()), array.dtype), name))

    def activation(self, tensor: str, change: Callable[[Any, Any], tuple[Any, Any]]) -> None:
        """Tensors of one grid share its constants: this one gets some of its own."""
        made = self._makers[tensor]
        for node in (made, self._makers[made.input[0]]):
            pair = [numpy_helper.to_array(self._constants[name]) for name in node.input[1:]]
            for place, value in enumerate(change(pair[0], pair[1].astype(np.int32))):
                name = f"{tensor}.spoilt{place}"
                if name not in {t.name for t in self._model.graph.initializer}:
                    array = np.asarray(value).astype(pair[place].dtype)
                    self._model.graph.initializer.append(numpy_helper.from_array(array, name))
                node.input[place + 1] = name
        onnx.save(self._model, self._path)

    def rows(self, layer: str, position: int, change: Callable[[Array], Array]) -> None:
        node = self._makers[layer]
        while node.op_type not in ("Conv", "Gemm"):
            node = self._makers[node.input[0]]
        self._replace(self._makers[node.input[position]].input[1], change)
        onnx.save(self._model, self._path)


class _TFLite:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
        self._graph = self._model.subgraphs[0]
        self._names = [t.name.decode() for t in self._graph.tensors]

    def activation(self, tensor: str, change: Callable[[Any, Any], tuple[Any, Any]]) -> None:
        grid = self._graph.tensors[self._names.index(tensor)].quantization
        grid.scale, grid.zeroPoint = (np.asarray(v) for v in change(grid.scale, grid.zeroPoint))
        grid.scale = grid.scale.astype(np.float32)
        self._save()

    def rows(self, layer: str, position: int, change: Callable[[Array], Array]) -> None:
        index = self._names.index(layer)
        op = next(op for op in self._graph.operators if index in op.outputs)
        grid = self._graph.tensors[op.inputs[position]].quantization
        grid.scale = change(np.array(grid.scale, np.float32)).astype(np.float32)
        self._save()

    def _save(self) -> None:
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        self._path.write_bytes(bytes(builder.Output()))


class _CoreML:
    def __init__(self, path: Path) -> None:
        self._file = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
        self._weights = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
        self._model = Model_pb2.Model.FromString(self._file.read_bytes())
        function = self._model.mlProgram.functions["main"]
        self._operations = function.block_specializations[function.opset].operations

    def _maker(self, name: str) -> MIL_pb2.Operation:
        return next(op for op in self._operations if any(out.name == name for out in op.outputs))

    def _value(self, op: MIL_pb2.Operation, key: str) -> Any:
        argument = op.inputs[key].arguments[0]
        return argument.value if argument.WhichOneof("binding") == "value" else None

    def _constant(self, op: MIL_pb2.Operation, key: str) -> MIL_pb2.Value:
        value = self._value(op, key)
        if value is not None:
            return value
        constant = self._maker(op.inputs[key].arguments[0].name)
        return constant.attributes["val"]

    def activation(self, tensor: str, change: Callable[[Any, Any], tuple[Any, Any]]) -> None:
        made = self._maker(tensor)
        names = {made.name for made in made.outputs}
        pair = [
            op
            for op in self._operations
            if op.type in ("quantize", "dequantize")
            and names & {*(out.name for out in op.outputs), *(a.name for a in op.inputs["input"].arguments)}
        ]
        source = made.inputs["input"].arguments[0].name
        pair += [op for op in self._operations if any(out.name == source for out in op.outputs)]
        for op in pair:
            if op.type not in ("quantize", "dequantize"):
                continue
            scale, zero = (
                self._read(self._constant(op, "scale")),
                self._read(self._constant(op, "zero_point")),
            )
            new = change(scale, zero.astype(np.int32))
            for key, value, old in zip(("scale", "zero_point"), new, (scale, zero), strict=True):
                target = op.inputs[key].arguments[0]
                changed = MIL_pb2.Value()
                changed.CopyFrom(self._constant(op, key))
                changed.immediateValue.tensor.bytes.values = np.asarray(value).astype(old.dtype).tobytes()
                target.ClearField("name")
                target.value.CopyFrom(changed)
        self._file.write_bytes(self._model.SerializeToString())

    @staticmethod
    def _read(value: MIL_pb2.Value) -> Array:
        kinds = {MIL_pb2.FLOAT16: np.float16, MIL_pb2.FLOAT32: np.float32, MIL_pb2.INT8: np.int8}
        kinds[MIL_pb2.UINT8] = np.uint8
        tensor = value.immediateValue.tensor
        if tensor.WhichOneof("value") == "floats":
            return np.asarray(tensor.floats.values, np.float32).reshape(())
        return np.frombuffer(tensor.bytes.values, kinds[value.type.tensorType.dataType]).reshape(())


_FORMATS: dict[str, Any] = {".onnx": _Onnx, ".tflite": _TFLite, ".mlpackage": _CoreML}
