"""ONNX files say nothing twice, and runtimes read them as before."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from converters.quantize.nets import images, runner
from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.onnx.emit import build
from shufflectl.converters.onnx.slim import drop_implied, share_constants
from shufflectl.converters.quantize.annotate import annotated
from shufflectl.converters.quantize.calibrate import calibrate
from shufflectl.converters.quantize.qdq import with_qdq
from shufflectl.converters.quantize.recipe import Recipe
from shufflectl.converters.rewrite.lowering import Options, apply
from shufflectl.converters.targets import EmitOptions
from support.graphs import graph_from_text
from support.nets import tiny_graph

INFO = ModelInfo(name="tiny")

SLICES = """
g (float[1,4,2,2] x) => (float[1,2,2,2] y)
<int64[1] a = {0}, int64[1] b = {2}, int64[1] c = {1}, int64[1] d = {0}, int64[1] e = {2}, int64[1] f = {1},
 int64[1] g = {4}, int64 h = {2}>
{
    left = Slice (x, a, b, c)
    right = Slice (x, b, g, f)
    again = Slice (x, d, e, f)
    sum = Add (left, right)
    y = Add (sum, again)
}
"""


@pytest.fixture(scope="module")
def graph() -> Graph:
    plain = tiny_graph()
    found = calibrate(plain, runner(images(plain, 4)), Recipe(), source="", images=4, seed=0)
    prepared = found.prepare(plain)
    return annotated(apply("fold", prepared, Options())[0], prepared, found.scales(prepared))


@pytest.fixture(scope="module")
def proto(graph: Graph) -> onnx.ModelProto:
    return build(graph, INFO, EmitOptions("int8"))


def test_equal_constants_are_one() -> None:
    graph = graph_from_text(SLICES, {})
    before = {name: t.const_value for name, t in graph.model.graph.initializers.items()}
    assert share_constants(graph.model.graph)
    assert ["a", "b", "c", "g"] == [name for name in graph.model.graph.initializers if name != "h"]
    # A scalar is another shape; what nothing reads is as it was.
    assert "h" in before.keys() & graph.model.graph.initializers.keys()
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 2, 2)
    (y,) = ReferenceEvaluator(graph.to_proto()).run(None, {"x": x})
    np.testing.assert_array_equal(2 * x[:, :2] + x[:, 2:], y)


def test_constants_of_one_value_and_two_types_stay_two() -> None:
    text = "g (float[2] x) => (float[2] y, int32[2] z) <float[2] a = {0, 0}, int32[2] b = {0, 0}> "
    text += "{ y = Add (x, a) z = Identity (b) }"
    graph = graph_from_text(text, {})
    assert not share_constants(graph.model.graph)
    assert {"a", "b"} == set(graph.model.graph.initializers)


def test_no_file_states_the_shapes_of_its_constants(graph: Graph) -> None:
    made = build(tiny_graph(), INFO, EmitOptions())
    assert made.graph.value_info
    assert not {v.name for v in made.graph.value_info} & {t.name for t in made.graph.initializer}


def test_shapes_that_a_file_with_codes_leaves_out_are_inferred(graph: Graph, proto: onnx.ModelProto) -> None:
    assert not proto.graph.value_info
    found = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*found.value_info, *found.output)
    }
    for node in with_qdq(graph).nodes:
        for value in node.outputs:
            if value.shape is not None:
                assert list(Graph.shape(value)) == shapes[str(value.name)], value.name
    assert {name for node in proto.graph.node for name in node.output} == shapes.keys()


def test_nodes_that_round_have_no_name_and_no_other_repeats_its_results(proto: onnx.ModelProto) -> None:
    assert not any(n.name == n.output[0] for n in proto.graph.node)
    assert not any(n.name for n in proto.graph.node if "QuantizeLinear" in n.op_type)


def test_attributes_that_are_left_out_change_no_convolution() -> None:
    graph = onnx.parser.parse_graph(
        "g (float[1,4,6,6] x, float[4,1,3,3] w) => (float[1,4,6,6] y) {"
        " a = Conv <strides = [1, 1], dilations = [1, 1], pads = [1, 1, 1, 1], group = 4> (x, w)"
        " b = Conv <strides = [2, 1], dilations = [1, 2], pads = [0, 0, 0, 0], group = 4> (a, w)"
        " y = Conv <kernel_shape = [3, 3], pads = [0, 0, 0, 0], group = 1> (b, w) }"
    )
    drop_implied(graph)
    kept = [{a.name for a in node.attribute} for node in graph.node]
    assert [{"pads", "group"}, {"strides", "dilations", "group"}, {"kernel_shape"}] == kept


def test_onnx_runtime_replaces_every_layer_by_an_integer_kernel(
    proto: onnx.ModelProto, tmp_path: Path
) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    before = Counter(node.op_type for node in proto.graph.node)
    after = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    assert before["Conv"] == after["QLinearConv"]
    assert before["Gemm"] == after["QGemm"]
    assert not {"Conv", "Gemm", "Relu"} & after.keys()


def test_the_official_evaluator_reads_biases_without_zero_points(
    graph: Graph, proto: onnx.ModelProto
) -> None:
    biases = {t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT32}
    readers = [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in biases]
    assert biases
    assert {2} == {len(n.input) for n in readers}
    feeds = {str(graph.inputs[0].name): images(graph, 1)[0]}
    (made,) = ReferenceEvaluator(proto).run(None, feeds)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (right,) = session.run(None, feeds)
    scale = np.abs(right).max()
    np.testing.assert_allclose(right, made, atol=0.02 * scale)
