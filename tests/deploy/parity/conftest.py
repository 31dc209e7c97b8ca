from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.trace import TensorView, Trace
from shufflectl.deploy.runtimes.base import Arrays, Integers, TensorSpec
from shufflectl.models.preprocess import DIGITS
from support.graphs import graph_from_text

SMALL = """
small (float[N,3,12,12] image) => (float[N,6] logits) {
  stem_0 = Conv<pads=[1,1,1,1], strides=[2,2]>(image, stem_w, stem_b)
  stem_1 = Relu(stem_0)
  stage_0 = Conv(stem_1, pw_w, pw_b)
  stage_1 = Relu(stage_0)
  stage_2 = Conv<group=8, pads=[1,1,1,1]>(stage_1, dw_w, dw_b)
  stage_3 = Conv(stage_2, pw2_w, pw2_b)
  stage_4 = Relu(stage_3)
  stage_concat = Concat<axis=1>(stem_1, stage_4)
  pool = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1]>(stage_concat)
  mean = ReduceMean<keepdims=0>(pool, axes)
  logits = Gemm<transB=1>(mean, fc_w, fc_b)
}
"""
FUSED = ("stem_0", "stage_0", "stage_3")


def small_weights() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    weights = {"axes": np.array([2, 3], np.int64)}
    shapes = {
        "stem": (8, 3, 3, 3),
        "pw": (8, 8, 1, 1),
        "dw": (8, 1, 3, 3),
        "pw2": (8, 8, 1, 1),
        "fc": (6, 16),
    }
    for name, shape in shapes.items():
        weights[f"{name}_w"] = normal(*shape)
        weights[f"{name}_b"] = rng.uniform(0.05, 0.3, shape[0]).astype(np.float32)
    return weights


@pytest.fixture(scope="session")
def small() -> Graph:
    """A graph with the pieces of a ShuffleNet unit."""
    return graph_from_text(SMALL, small_weights())


@pytest.fixture(scope="session")
def images() -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal((4, 3, 12, 12), dtype=np.float32)


@dataclass
class FakeSession:
    """A file made of a graph: renamed, in NHWC, in half precision or spoilt on purpose."""

    proto: onnx.ModelProto
    trace: Trace
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    info: ModelInfo | None = None
    spoil: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]] = field(default_factory=dict)
    before: Callable[[NDArray[Any]], NDArray[Any]] = lambda x: x
    batches: list[int] = field(default_factory=list)
    views: dict[str, TensorView] = field(default_factory=dict)
    integers: Integers = field(default_factory=Integers)

    def run(self, inputs: Mapping[str, NDArray[Any]], taps: Sequence[str] = ()) -> Arrays:
        held = inputs[self.inputs[0].name]
        assert held.dtype == self.inputs[0].dtype
        image = self.before(self.views["image"].to_logical(held).astype(np.float32))
        self.batches.append(len(image))
        by_file = {view.name: logical for logical, view in self.views.items()}
        wanted = [by_file[name] for name in (*taps, *(spec.name for spec in self.outputs))]
        tensors = self._tensors(image)
        return {self.views[name].name: self.views[name].to_file(tensors[name]) for name in wanted}

    def _tensors(self, image: NDArray[np.float32]) -> Arrays:
        tensors: Arrays = {"image": image}
        names = [name for node in self.proto.graph.node for name in node.output if "::" not in name]
        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        del model.graph.output[:]
        model.graph.output.extend(
            helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names
        )
        extra = []
        for name in self.spoil:
            for node in model.graph.node:
                for position, source in enumerate(node.input):
                    if source == name:
                        node.input[position] = name + "::spoilt"
            extra.append(name)
        if not extra:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), providers=["CPUExecutionProvider"]
            )
            return {**tensors, **dict(zip(names, session.run(names, {"image": image}), strict=True))}
        return {**tensors, **self._spoilt(image, names)}

    def _spoilt(self, image: NDArray[np.float32], names: list[str]) -> Arrays:
        """Run node by node, changing what `spoil` names."""
        constants = {t.name: numpy_helper.to_array(t) for t in self.proto.graph.initializer}
        tensors: Arrays = {"image": image}
        for node in self.proto.graph.node:
            sources = {n: tensors[n] for n in node.input if n in tensors}
            kept = [t for t in self.proto.graph.initializer if t.name in node.input]
            graph = helper.make_graph(
                [node],
                "one",
                [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in sources],
                [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in node.output],
                kept,
            )
            model = helper.make_model(graph, opset_imports=self.proto.opset_import, ir_version=10)
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), providers=["CPUExecutionProvider"]
            )
            for name, value in zip(node.output, session.run(None, sources), strict=True):
                tensors[name] = np.asarray(self.spoil.get(name, lambda x: x)(value), np.float32)
        assert set(names) <= {*tensors, *constants}
        return tensors


def half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose weights and every result are rounded to fp16."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(proto)
    for tensor in rounded.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16).astype(np.float32), tensor.name))
    nodes = []
    for node in rounded.graph.node:
        (name,) = node.output
        node.output[0] = name + "::full"
        nodes += [
            node,
            helper.make_node("Cast", [name + "::full"], [name + "::half"], to=onnx.TensorProto.FLOAT16),
            helper.make_node("Cast", [name + "::half"], [name], to=onnx.TensorProto.FLOAT),
        ]
    del rounded.graph.node[:]
    rounded.graph.node.extend(nodes)
    return rounded


@pytest.fixture(scope="session")
def make_session(small: Graph) -> Callable[..., FakeSession]:
    """Build sessions from the small graph.

    ``weights`` maps initialisers, ``nodes`` changes node protos by output name, ``spoil`` maps tensors.
    """

    def make(
        *,
        weights: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]] | None = None,
        nodes: Mapping[str, Callable[[onnx.NodeProto], None]] | None = None,
        spoil: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]] | None = None,
        before: Callable[[NDArray[Any]], NDArray[Any]] = lambda x: x,
        fp16: bool = False,
        nhwc: bool = False,
        traced: bool = True,
        batch: int | None = None,
        dtype: Any = np.float32,
        hidden: Sequence[str] = FUSED,
    ) -> FakeSession:
        proto = small.to_proto()
        for tensor in proto.graph.initializer:
            if weights and tensor.name in weights:
                changed = np.ascontiguousarray(weights[tensor.name](numpy_helper.to_array(tensor).copy()))
                tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
        for node in proto.graph.node:
            if nodes and node.output[0] in nodes:
                nodes[node.output[0]](node)
        if fp16:
            proto = half(proto)
        ranks = {"mean": 2, "logits": 2}
        names = ["image", *(node.output[0] for node in small.to_proto().graph.node)]
        views = {
            name: TensorView(f"file/{name}", (0, 2, 3, 1) if nhwc and ranks.get(name, 4) == 4 else None)
            for name in names
        }
        shape = (batch, 12, 12, 3) if nhwc else (batch, 3, 12, 12)
        return FakeSession(
            proto,
            Trace({n: v for n, v in views.items() if n not in hidden}) if traced else Trace(),
            (TensorSpec("file/image", shape, np.dtype(dtype)),),
            (TensorSpec("file/logits", (batch, 6), np.dtype(np.float32)),),
            ModelInfo("small", preprocess=DIGITS) if traced else None,
            dict(spoil or {}),
            before,
            views=views,
        )

    return make
