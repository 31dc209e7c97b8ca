"""Runs TFLite bytes in LiteRT, bare, and ONNX Runtime on the same graph."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray
from onnx import numpy_helper

from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import TRACE_KEY, ModelInfo
from shufflectl.converters.targets import EmitOptions
from shufflectl.converters.tflite.emit import to_bytes
from shufflectl.converters.trace import Trace
from support.graphs import graph_from_text

NAMES = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
INFO = ModelInfo("test")


def graph_of(
    body: str, weights: Mapping[str, NDArray[Any]] | None = None, shape: Sequence[int | str] = (1, 8, 10, 9)
) -> Graph:
    """Return the graph of one input ``x`` and one output ``y``, whose shape is inferred."""
    sizes = ",".join(map(str, shape))
    text = f'<ir_version: 10, opset_import: ["" : 20]>\ng (float[{sizes}] x) => (float y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    for name, array in (weights or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    del model.graph.output[:]
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    (output,) = (v for v in inferred.graph.value_info if v.name == "y")
    dims = ",".join(str(d.dim_value or d.dim_param) for d in output.type.tensor_type.shape.dim)
    return graph_from_text(f"g (float[{sizes}] x) => (float[{dims}] y) {{ {body} }}", weights)


def emit_bytes(graph: Graph, **options: Any) -> bytes:
    """Return a graph's TFLite file."""
    return to_bytes(graph, INFO, EmitOptions(**options))


def model_of(data: bytes) -> Any:
    """Return a file as the schema's objects."""
    return schema.ModelT.InitFromPackedBuf(data, 0)


def operators(data: bytes) -> list[str]:
    """Return the file's operators, in order."""
    model = model_of(data)
    return [NAMES[model.operatorCodes[op.opcodeIndex].builtinCode] for op in model.subgraphs[0].operators]


def census(data: bytes) -> dict[str, int]:
    """Return how many of each operator a file has."""
    return dict(Counter(operators(data)))


def shapes(data: bytes) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by name."""
    return {t.name.decode(): tuple(map(int, t.shape)) for t in model_of(data).subgraphs[0].tensors}


def metadata(data: bytes, key: str) -> bytes:
    """Return one metadata buffer."""
    model = model_of(data)
    entry = next(m for m in model.metadata if m.name.decode() == key)
    return bytes(model.buffers[entry.buffer].data)


def trace_of(data: bytes) -> Trace:
    """Return a file's trace."""
    return Trace.from_json(metadata(data, TRACE_KEY).decode())


def reference(graph: Graph, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return ONNX Runtime's outputs by name, without optimisations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph.to_proto().SerializeToString(), options, ["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def run(data: bytes, inputs: dict[str, NDArray[Any]], *, delegate: bool = True) -> dict[str, NDArray[Any]]:
    """Return LiteRT's outputs by name, in the file's layout; inputs in the file's layout."""
    resolver = OpResolverType.BUILTIN if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=resolver)
    for detail in interpreter.get_input_details():
        array = inputs[detail["name"]]
        if tuple(detail["shape"]) != array.shape:
            interpreter.resize_tensor_input(detail["index"], array.shape, strict=True)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], inputs[detail["name"]])
    interpreter.invoke()
    return {d["name"]: interpreter.get_tensor(d["index"]).copy() for d in interpreter.get_output_details()}


def random_inputs(graph: Graph, seed: int = 0, batch: int = 1, scale: float = 1.0) -> dict[str, NDArray[Any]]:
    """Return random logical inputs."""
    rng = np.random.default_rng(seed)
    result = {}
    for value in graph.inputs:
        shape = [d if isinstance(d, int) else batch for d in Graph.shape(value)]
        assert value.dtype is not None
        result[value.name or ""] = (scale * rng.standard_normal(shape)).astype(value.dtype.numpy())
    return result


@dataclass
class Result:
    """A file and how far it is from ONNX Runtime with and without the delegate."""

    data: bytes
    errors: dict[str, float]

    @property
    def worst(self) -> float:
        """The largest difference, relative to the largest magnitude of the reference (at least 1)."""
        return max(self.errors.values())


def compare(graph: Graph, *, seed: int = 0, batch: int = 1, scale: float = 1.0, **options: Any) -> Result:
    """Emit a graph and run it with XNNPACK and with builtin kernels against ONNX Runtime."""
    data = emit_bytes(graph, **options)
    inputs = random_inputs(graph, seed, batch, scale)
    wanted = reference(graph, inputs)
    trace = trace_of(data)
    errors = {}
    for kind in (True, False):
        given = {trace[k].name: trace[k].to_file(v) for k, v in inputs.items()}
        outputs = run(data, given, delegate=kind)
        assert list(wanted) == list(outputs)
        for name, array in outputs.items():
            logical = trace[name].to_logical(array) if name in trace else array
            assert wanted[name].shape == logical.shape, (name, wanted[name].shape, logical.shape)
            difference = np.abs(wanted[name].astype(np.float64) - logical.astype(np.float64))
            size = max(1.0, float(np.abs(wanted[name]).max(initial=0)))
            key = f"{name} {'xnnpack' if kind else 'builtin'}"
            errors[key] = float(difference.max(initial=0)) / size
            assert np.isfinite(logical).all() or not np.isfinite(wanted[name]).all(), key
    return Result(data, errors)


__all__ = [
    "INFO",
    "Result",
    "census",
    "compare",
    "emit_bytes",
    "graph_of",
    "metadata",
    "model_of",
    "operators",
    "random_inputs",
    "reference",
    "run",
    "shapes",
    "trace_of",
]
