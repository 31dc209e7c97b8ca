"""Runs captured graphs over random images, as calibration does."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.ties import is_activation_tensor

Arrays = dict[str, NDArray]


def session(proto: onnx.ModelProto, outputs: list[str]) -> onnxruntime.InferenceSession:
    """Return a plain session that gives these tensors."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])


def images(graph: Graph, count: int, seed: int = 0) -> list[NDArray[np.float32]]:
    """Return random inputs, one image each."""
    rng = np.random.default_rng(seed)
    shape = [d if isinstance(d, int) else 1 for d in graph.shape(graph.inputs[0])]
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(count)]


def tensors(
    graph: Graph, batches: list[NDArray[np.float32]], wanted: Sequence[str] | None = None
) -> Iterator[Arrays]:
    """Yield the float tensors of a graph for each batch, or those that are wanted."""
    names = [str(v.name) for node in graph.nodes for v in node.outputs if is_activation_tensor(v)]
    name = str(graph.inputs[0].name)
    given = names if wanted is None else list(wanted)
    running = session(graph.to_proto(), given)
    for batch in batches:
        made = dict(zip(given, running.run(given, {name: batch}), strict=True))
        yield made if wanted is not None else {name: batch, **made}


def runner(batches: list[NDArray[np.float32]]) -> Callable[[Graph, Sequence[str] | None], Iterator[Arrays]]:
    """Return what `calibrate` runs a graph with."""
    return lambda graph, wanted: tensors(graph, batches, wanted)
