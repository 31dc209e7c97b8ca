"""ONNX Runtime on the CPU.

A session runs the file as ONNX Runtime optimises it. Inner tensors (taps) come from a second session, built
when they are first asked for, with the optimiser off: fused operators have no inner tensors, and the
blocked layout would change them. A run with taps takes everything from that second session, so that its
tensors belong together; its outputs may differ from the first session's by rounding.

fp16: ONNX Runtime's CPU kernels compute most operators in fp32 behind casts of its own, so intermediate
results may be more exact than fp16 hardware gives.

Untrusted files: tensor data outside the file must be a plain file below the file's own folder, tensors
whose shape alone says that they exceed 4 GiB are refused before anything is allocated, and no code is
loaded.
"""

import contextlib
import importlib.metadata
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import external_data_helper

from shufflectl.deploy.files import EXPORT_AGAIN, own_metadata, read_file
from shufflectl.deploy.onnx_weights import external_files, graphs, stored_tensors
from shufflectl.deploy.runtimes.base import (
    Arrays,
    Availability,
    Integers,
    Session,
    TensorSpec,
    check_inputs,
)
from shufflectl.deploy.runtimes.onnx_integers import onnx_integers
from shufflectl.errors import ArtifactError, UnsupportedOperatorError

__all__ = ["OnnxRuntime", "block_size", "optimised_graph"]

_MAX_TENSOR: Final = 2**32
"""The most bytes that one tensor may take."""

_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(uint32)": np.dtype(np.uint32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(uint64)": np.dtype(np.uint64),
    "tensor(bool)": np.dtype(np.bool_),
}


def _first_line(error: Exception) -> str:
    """Return the gist of a message: its first line, without ONNX Runtime's codes and source positions."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", lines[0])
    return re.sub(r"\S*/onnxruntime/\S+ ", "", text).strip()


class _File:
    """A parsed, checked ONNX file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = read_file(path, "an ONNX file")
        self.proto = self._parse(data)
        external = external_files(self.proto, path)
        self._check_sizes()
        if external:
            # Embedded, so that ONNX Runtime opens no file of the artifact's choosing.
            external_data_helper.load_external_data_for_model(self.proto, str(path.parent))
            data = self.proto.SerializeToString()
        self.data = data
        properties = {entry.key: entry.value for entry in self.proto.metadata_props}
        self.info, self.trace = own_metadata(properties, path)

    def _error(self, what: str, hint: str = EXPORT_AGAIN) -> ArtifactError:
        return ArtifactError(f"{self.path} {what}", hint=hint)

    def _parse(self, data: bytes) -> onnx.ModelProto:
        try:
            proto: onnx.ModelProto = onnx.ModelProto.FromString(data)
        except DecodeError as error:
            raise self._error("is not an ONNX file, or is damaged: it is no protobuf message") from error
        if not proto.graph.output or not proto.opset_import:
            raise self._error("is not an ONNX file, or is damaged: it holds no graph")
        return proto

    def _check_sizes(self) -> None:
        """Refuse tensors whose declared or inferred shape exceeds what one tensor may take."""
        for tensor in stored_tensors(self.proto):
            self._check_size(tensor.name, tensor.dims, tensor.data_type)
        try:
            inferred = onnx.shape_inference.infer_shapes(self.proto, data_prop=True)
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
            raise self._error(f"is damaged: {_first_line(error)}") from error
        for graph in graphs(inferred.graph):
            for value in (*graph.input, *graph.output, *graph.value_info):
                dims = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
                self._check_size(value.name, dims, value.type.tensor_type.elem_type)

    def _check_size(self, name: str, dims: Sequence[int], data_type: int) -> None:
        try:
            itemsize = onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize
        except (KeyError, TypeError):
            itemsize = 1
        count = 1
        for dim in dims:
            if dim < 0:
                raise self._error(f"is damaged: tensor {name!r} has a negative dimension")
            count *= dim
        if count * itemsize > _MAX_TENSOR:
            raise self._error(
                f"declares tensor {name!r} with {count * itemsize} bytes, more than {_MAX_TENSOR}",
                "such a file may be hostile; do not use it",
            )


def _spec(arg: Any) -> TensorSpec:
    """Return ONNX Runtime's description of an input or output as ours."""
    if arg.type not in _DTYPES:
        raise ArtifactError(
            f"tensor {arg.name!r} has the type {arg.type}, which cannot be passed in or out",
            hint="inputs and outputs must be plain tensors of numbers",
        )
    return TensorSpec(
        arg.name, tuple(d if isinstance(d, int) else None for d in arg.shape), _DTYPES[arg.type]
    )


def _build(file: _File, data: bytes, threads: int, *, optimise: bool, graph: Path | None = None) -> Any:
    """Return a session; ``graph`` is where it writes the graph that it will run."""
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # errors come as exceptions; the log would repeat them on the terminal
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    if graph is not None:
        options.optimized_model_filepath = str(graph)
    name = file.path.name
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except state.NotImplemented as error:
        found = re.search(r"implementation for (\w+)\(\d+\) node with name '([^']*)'", str(error))
        operator, node = (found[1], found[2]) if found else ("?", "?")
        raise UnsupportedOperatorError(node, operator, "ONNX Runtime", why=_first_line(error)) from error
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise ArtifactError(
            f"ONNX Runtime cannot load {name}: {_first_line(error)}", hint=EXPORT_AGAIN
        ) from error


class _OrtSession:
    def __init__(self, file: _File, threads: int) -> None:
        self._file = file
        self._threads = threads
        self._session = self._build(file.data, optimise=True)
        self._tapped: tuple[frozenset[str], Any] | None = None
        self.inputs = tuple(_spec(arg) for arg in self._session.get_inputs())
        self.outputs = tuple(_spec(arg) for arg in self._session.get_outputs())
        self.info = file.info
        self.trace = file.trace

    @cached_property
    def integers(self) -> Integers:
        """What the file's codes stand for."""
        return onnx_integers(self._file.proto)

    def _build(self, data: bytes, *, optimise: bool) -> Any:
        return _build(self._file, data, self._threads, optimise=optimise)

    def _with_taps(self, taps: frozenset[str]) -> Any:
        """Return a session that gives the taps besides the outputs, the last one asked for being kept."""
        if self._tapped is None or not taps <= self._tapped[0]:
            known = {name for node in self._file.proto.graph.node for name in node.output}
            for tap in sorted(taps - known):
                raise ArtifactError(
                    f"{self._file.path.name} has no tensor {tap!r}",
                    hint="shufflectl inspect lists its tensors",
                )
            proto = onnx.ModelProto()
            proto.CopyFrom(self._file.proto)
            proto.graph.output.extend(onnx.ValueInfoProto(name=tap) for tap in sorted(taps))
            self._tapped = (taps, self._build(proto.SerializeToString(), optimise=False))
        return self._tapped[1]

    def run(self, inputs: Mapping[str, NDArray[Any]], taps: Sequence[str] = ()) -> Arrays:
        check_inputs(self.inputs, inputs)
        names = [spec.name for spec in self.outputs]
        inner = frozenset(taps) - set(names) - set(inputs)
        session = self._with_taps(inner) if inner else self._session
        wanted = [*names, *sorted(inner)]
        feeds = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        try:
            results = session.run(wanted, feeds)
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise ArtifactError(
                f"ONNX Runtime fails on {self._file.path.name}: {_first_line(error)}", hint=EXPORT_AGAIN
            ) from error
        arrays = dict(zip(wanted, results, strict=True))
        arrays.update({tap: inputs[tap] for tap in taps if tap in inputs})
        return arrays


class OnnxRuntime:
    """ONNX Runtime with its CPU execution provider."""

    name = "onnxruntime"
    format = "onnx"

    def available(self) -> Availability:
        """Say whether ONNX Runtime is installed."""
        try:
            return Availability(ok=True, version=importlib.metadata.version("onnxruntime"))
        except importlib.metadata.PackageNotFoundError:
            return Availability(
                ok=False, reason="the package onnxruntime is not installed", remedy="pip install onnxruntime"
            )

    @contextlib.contextmanager
    def load(self, artifact: Path, *, threads: int = 1) -> Iterator[Session]:
        """Open an ONNX file.

        Args:
            artifact: The file.
            threads: Threads within an operator; 0 for as many as ONNX Runtime likes.

        Raises:
            ArtifactError: The file is missing, damaged, of another kind, reaches outside its folder, declares
                tensors over 4 GiB, or its metadata is malformed.
            UnsupportedOperatorError: ONNX Runtime has no kernel for an operator.
        """
        yield _OrtSession(_File(artifact), threads)


def optimised_graph(artifact: Path) -> onnx.ModelProto:
    """Return the graph that ONNX Runtime's CPU provider runs: fused, and laid out for this CPU.

    Constant parts of the graph are computed on the way: call this in another process for files of others.

    Raises:
        ArtifactError: As `Runtime.load`.
        UnsupportedOperatorError: As `Runtime.load`.
    """
    file = _File(artifact)
    with tempfile.TemporaryDirectory(prefix="shufflectl-") as folder:
        path = Path(folder) / "optimised.onnx"
        _build(file, file.data, 1, optimise=True, graph=path)
        graph: onnx.ModelProto = onnx.ModelProto.FromString(path.read_bytes())
        return graph


def block_size() -> int | None:
    """Return how many channels a block of ONNX Runtime's layout has here; None where there is no such layout.

    The size is ONNX Runtime's choice for the CPU (16 with AVX-512, 8 with AVX) and shows in the kernel of a
    convolution with one output channel, which is padded to one block.
    """
    import onnxruntime as ort

    weight = onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")
    probe = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]>'
        "g (float[1,1,4,4] x) => (float[1,1,4,4] y) { y = Conv(x, w) }"
    )
    probe.graph.initializer.append(weight)
    with tempfile.TemporaryDirectory(prefix="shufflectl-") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "probe.onnx")
        ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = onnx.load(options.optimized_model_filepath)
    if not any(node.domain == "com.microsoft.nchwc" for node in found.graph.node):
        return None
    return max(int(tensor.dims[0]) for tensor in found.graph.initializer if len(tensor.dims) == 4)
