"""Core ML packages in tests: emitting, executing, comparing with ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from shufflectl.converters.coreml.emit import emit
from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.targets import EmitOptions
from shufflectl.deploy.runtimes.base import Arrays
from shufflectl.deploy.runtimes.coreml_reference import CoreMLReference

INFO = ModelInfo("test")


def package(graph: Graph, folder: Path, info: ModelInfo = INFO, **options: Any) -> Path:
    """Emit a graph into a new package in ``folder``."""
    path = folder / f"model{len(list(folder.iterdir()))}.mlpackage"
    emit(graph, info, EmitOptions(**options), path)
    return path


def execute(path: Path, inputs: Mapping[str, NDArray[Any]], taps: tuple[str, ...] = ()) -> Arrays:
    """Run a package on the reference runtime."""
    with CoreMLReference().load(path) as session:
        return session.run(inputs, taps)


def onnx_values(graph: Graph, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """Return every tensor that the graph's nodes compute, from ONNX Runtime without its optimisations."""
    proto = graph.to_proto()
    known = {out.name for out in proto.graph.output}
    proto.graph.output.extend(info for info in proto.graph.value_info if info.name not in known)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options)
    names = [out.name for out in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def sqnr(reference: NDArray[Any], actual: NDArray[Any]) -> float:
    """Return the signal to quantisation noise ratio in dB; infinity where both are the same."""
    assert reference.shape == actual.shape
    signal = reference.astype(np.float64)
    noise = np.square(signal - actual.astype(np.float64)).sum()
    assert np.isfinite(noise)
    return float("inf") if noise == 0 else float(10 * np.log10(np.square(signal).sum() / noise))


def differences(graph: Graph, path: Path, inputs: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Return the SQNR in dB of every tensor that the package's trace names, against ONNX Runtime."""
    reference = {**onnx_values(graph, inputs), **inputs}
    with CoreMLReference().load(path) as session:
        views = session.trace
        fed = {views[name].name: views[name].to_file(array) for name, array in inputs.items()}
        result = session.run(fed, [view.name for view in views.values()])
        return {
            name: sqnr(reference[name], view.to_logical(result[view.name])) for name, view in views.items()
        }
