"""Parts of the captured graph, executed by ONNX Runtime on tensors that are given from outside.

Cut at every tensor that a file still holds, the captured graph falls into *segments*: each makes one held
tensor from other held tensors. Fed with a file's own tensors, a segment says what that file's next tensor
should have been, whatever went wrong before it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from shufflectl.converters.graph import Graph
from shufflectl.deploy.runtimes.base import Arrays
from shufflectl.errors import GraphError

__all__ = ["Executor", "Segment", "SegmentedGraph", "execute"]

_GIVEN = "::given"


@dataclass(frozen=True)
class Segment:
    """The nodes between held tensors.

    Attributes:
        tensor: What the segment makes.
        nodes: Positions of its nodes in the graph, in graph order.
        sources: The held tensors and graph inputs that it reads.
    """

    tensor: str
    nodes: tuple[int, ...]
    sources: tuple[str, ...]


class SegmentedGraph:
    """A captured graph cut at tensors.

    Args:
        graph: The captured graph.
        held: Names of the tensors to cut at. Graph inputs, constants and unknown names are left out.
    """

    def __init__(self, graph: Graph, held: Iterable[str]) -> None:
        self.proto = graph.to_proto()
        self.nodes: list[onnx.NodeProto] = list(self.proto.graph.node)
        self.initializers = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        self.inputs = [value.name or "" for value in graph.inputs]
        self.outputs = [value.name or "" for value in graph.outputs]
        self.producer = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        values = [*graph.inputs, *(value for node in graph.nodes for value in node.outputs)]
        self.types = {v.name: int(v.dtype) if v.dtype else onnx.TensorProto.FLOAT for v in values}
        self.sizes = {
            v.name: int(np.prod([d if isinstance(d, int) else 1 for d in v.shape])) if v.shape else 1
            for v in values
        }
        wanted = set(held)
        self.held = [name for name in self.producer if name in wanted and self._varies(name)]
        self._cut = {*self.held, *self.inputs}

    def _varies(self, name: str) -> bool:
        """Say whether a tensor depends on a graph input."""
        seen, todo = set(), [name]
        while todo:
            current = todo.pop()
            if current in self.inputs:
                return True
            if current in seen or current not in self.producer:
                continue
            seen.add(current)
            todo.extend(self.nodes[self.producer[current]].input)
        return False

    def segment(self, tensor: str) -> Segment:
        """Return the segment that makes a tensor.

        Raises:
            GraphError: No node of the graph makes it.
        """
        if tensor not in self.producer:
            raise GraphError(f"no node of the graph makes a tensor {tensor!r}")
        nodes: set[int] = set()
        sources: dict[str, None] = {}
        todo = [self.producer[tensor]]
        while todo:
            index = todo.pop()
            if index in nodes:
                continue
            nodes.add(index)
            for name in self.nodes[index].input:
                if name in self._cut:
                    sources[name] = None
                elif name in self.producer:
                    todo.append(self.producer[name])
        order = {name: i for i, name in enumerate([*self.inputs, *self.producer])}
        return Segment(tensor, tuple(sorted(nodes)), tuple(sorted(sources, key=order.__getitem__)))

    def label(self, index: int) -> str:
        """Return a node as messages call it: the tensor that it makes, which is named for its module."""
        node = self.nodes[index]
        return f"{node.output[0]} ({node.op_type})"

    def model(
        self,
        segments: Sequence[Segment],
        *,
        outputs: Sequence[str] | None = None,
        nodes: Mapping[int, onnx.NodeProto] | None = None,
        weights: Mapping[str, NDArray[Any]] | None = None,
    ) -> onnx.ModelProto:
        """Return the segments as one model that takes its sources as inputs.

        Args:
            segments: What to execute.
            outputs: What to give back; the segments' tensors unless given.
            nodes: Nodes to put in place of the graph's, by position.
            weights: Initialisers to put in place of the graph's, by name.
        """
        indices = sorted({index for segment in segments for index in segment.nodes})
        sources = dict.fromkeys(name for segment in segments for name in segment.sources)
        wanted = list(outputs) if outputs is not None else [segment.tensor for segment in segments]
        chosen: list[onnx.NodeProto] = []
        for index in indices:
            node = onnx.NodeProto()
            node.CopyFrom((nodes or {}).get(index, self.nodes[index]))
            for position, name in enumerate(node.input):
                if name in sources:
                    node.input[position] = name + _GIVEN
            chosen.append(node)
        used = dict.fromkeys(name for node in chosen for name in node.input if name in self.initializers)
        tensors = [
            numpy_helper.from_array(weights[name], name)
            if weights is not None and name in weights
            else self.initializers[name]
            for name in used
        ]
        graph = helper.make_graph(
            chosen,
            "segment",
            [helper.make_tensor_value_info(name + _GIVEN, self.types[name], None) for name in sources],
            [helper.make_tensor_value_info(name, self.types[name], None) for name in wanted],
            tensors,
        )
        return helper.make_model(
            graph, opset_imports=self.proto.opset_import, ir_version=self.proto.ir_version
        )

    def feeds(self, segments: Sequence[Segment], arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return the inputs of `model` for the same segments, cast to the graph's types."""
        names = dict.fromkeys(name for segment in segments for name in segment.sources)
        return {name + _GIVEN: self.cast(name, arrays[name]) for name in names}

    def cast(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """Return an array in the type that the captured graph gives the tensor of that name."""
        dtype = helper.tensor_dtype_to_np_dtype(self.types[name])
        return np.ascontiguousarray(array.astype(dtype, copy=False))

    def reference(self, tensors: Sequence[str]) -> onnx.ModelProto:
        """Return the whole graph with those tensors as its outputs."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        del proto.graph.output[:]
        proto.graph.output.extend(
            helper.make_tensor_value_info(name, self.types[name], None) for name in tensors
        )
        return proto


def execute(model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
    """Execute a model once with ONNX Runtime, each node by itself, on one thread.

    Raises:
        GraphError: ONNX Runtime refuses the model or fails on it.
    """
    return Executor(model).run(feeds)


class Executor:
    """A model that ONNX Runtime executes node by node; no optimisation changes what a node computes.

    Args:
        model: The model.

    Raises:
        GraphError: ONNX Runtime refuses the model.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._outputs = [output.name for output in model.graph.output]
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime raises classes of its own, all directly below Exception
            raise GraphError(f"ONNX Runtime refuses a part of the captured graph: {error}") from error

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Execute the model once.

        Raises:
            GraphError: ONNX Runtime fails.
        """
        try:
            results = self._session.run(self._outputs, dict(feeds))
        except Exception as error:  # see above
            raise GraphError(f"ONNX Runtime fails on a part of the captured graph: {error}") from error
        return dict(zip(self._outputs, results, strict=True))
