"""The codes inside of an int8 file, as the kernels that are shipped compute them.

A runtime's own way to inner tensors turns its integer kernels off: ONNX Runtime's Q/DQ nodes are fused only
where the optimiser runs, and a delegate's tensors are not the interpreter's. So a copy of the file is made
whose outputs are the codes of every tensor of the captured graph, and the runtime does with it what it does
with any file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.converters.trace import Trace
from shufflectl.deploy import runtimes
from shufflectl.deploy.inspect import summarize
from shufflectl.deploy.parity.codes import CodeReference, Codes
from shufflectl.deploy.parity.limits import CODE_LIMITS
from shufflectl.deploy.parity.locate import examine
from shufflectl.deploy.quantization import quantized_file
from shufflectl.deploy.runtimes.base import Arrays, Session
from shufflectl.errors import ArtifactError

__all__ = ["Shipped", "inner_codes", "layer_codes"]

CodeArrays = Mapping[str, NDArray[np.int16]]
Run = Callable[[NDArray[np.float32]], dict[str, NDArray[np.int16]]]


class Shipped:
    """A session whose inner tensors come from the kernels that make its outputs; see `Session`.

    Args:
        path: An int8 file of ours, ONNX or TFLite, that takes one image as floats.
        session: The same file.
    """

    def __init__(self, path: Path, session: Session) -> None:
        self.inputs, self.outputs, self.info = session.inputs, session.outputs, session.info
        self.integers = session.integers
        names = {name for view in session.trace.values() for name in view.names}
        self._entry = self.inputs[0].name
        self._run = (_onnx if path.suffix == ".onnx" else _tflite)(path, names)
        view = next(v for v in session.trace.values() if v.name == self._entry)
        _, height, width = (self.inputs[0].shape[axis] for axis in np.argsort(view.axes or range(4))[1:])
        known = self._run(view.to_file(np.zeros((1, 3, height, width), np.float32)))
        held = {name: v for name, v in session.trace.items() if all(n in known for n in v.names)}
        self.trace = Trace({name: v for name, v in session.trace.items() if name in held or v == view})
        self.view = view

    def run(self, inputs: Mapping[str, NDArray[Any]], taps: Sequence[str] = ()) -> Arrays:
        """Return the outputs and the taps, as numbers."""
        made = self._run(inputs[self._entry])
        wanted = [*(spec.name for spec in self.outputs), *taps]
        return {
            name: inputs[name]
            if name == self._entry
            else self.integers.grids[name].values(made[name].astype(np.int8))
            for name in wanted
        }

    def codes(self, image: NDArray[np.float32]) -> CodeArrays:
        """Return the codes for an image, as of int8, by the captured graph's names and in its layout."""
        made = self._run(self.view.to_file(image))
        return {name: v.collect(made) for name, v in self.trace.items() if v.name != self._entry}


def inner_codes(path: Path, images: NDArray[np.float32]) -> Iterator[CodeArrays]:
    """Yield the codes of an ONNX or TFLite file of ours for one image after the other.

    Args:
        path: See `Shipped`.
        images: ``[N, 3, H, W]``, as the network takes them.
    """
    with runtimes.choose("onnx" if path.suffix == ".onnx" else "tflite", ()).load(path) as session:
        shipped = Shipped(path, session)
        for image in images:
            yield shipped.codes(image[np.newaxis])


def layer_codes(
    path: Path, images: NDArray[np.float32], captured: Callable[[], Graph | None]
) -> list[tuple[str, Codes]]:
    """Return, by tensor, how far a file's codes are from those that the graph makes of the file's own ones.

    Args:
        path: See `Shipped`; its calibration is beside it.
        images: ``[N, 3, H, W]``, as the network takes them.
        captured: Returns the captured graph.

    Raises:
        ArtifactError: The file does not say what it was made of.
    """
    target = "onnx" if path.suffix == ".onnx" else "tflite"
    quantized = quantized_file(path, summarize(path).metadata, captured)
    if quantized is None:
        raise ArtifactError(f"{path.name} does not say what it was made of")
    limits = CODE_LIMITS[target]
    reference = CodeReference(quantized.in_codes, limits)
    with runtimes.choose(target, ()).load(path) as session:
        name = str(quantized.graph.inputs[0].name)
        shipped = Shipped(path, session)
        found = examine(quantized.reference(), shipped, {name: images}, limits.numbers, codes=reference)
    return [(layer.tensor, layer.codes) for layer in found.layers if layer.codes is not None]


def _onnx(path: Path, wanted: set[str]) -> Run:
    import onnxruntime as ort

    proto = onnx.load(path)
    sources = {
        node.output[0]: node.input[0]
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.output[0] in wanted
    }
    known = {value.name for value in proto.graph.output}
    added = [name for name in dict.fromkeys(sources.values()) if name not in known]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0].name

    def run(image: NDArray[np.float32]) -> dict[str, NDArray[np.int16]]:
        made = session.run(list(sources.values()), {entry: image})
        return {name: array.astype(np.int16) - 128 for name, array in zip(sources, made, strict=True)}

    return run


def _tflite(path: Path, wanted: set[str]) -> Run:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    places = {
        name: place
        for place, tensor in enumerate(graph.tensors)
        if (name := tensor.name.decode()) in wanted and tensor.type == schema.TensorType.INT8
    }
    for operator in graph.operators:
        kind = model.operatorCodes[operator.opcodeIndex].builtinCode
        name = graph.tensors[operator.outputs[0]].name.decode()
        if kind == schema.BuiltinOperator.DEQUANTIZE and name in wanted:
            places[name] = operator.inputs[0]
    known = {*graph.outputs, *graph.inputs}
    graph.outputs = [*graph.outputs, *(p for p in dict.fromkeys(places.values()) if p not in known)]
    model.signatureDefs = []
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    interpreter = Interpreter(model_content=bytes(builder.Output()), num_threads=1)
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]["index"]

    def run(image: NDArray[np.float32]) -> dict[str, NDArray[np.int16]]:
        interpreter.set_tensor(entry, np.ascontiguousarray(image))
        interpreter.invoke()
        return {name: interpreter.get_tensor(place).astype(np.int16) for name, place in places.items()}

    return run
