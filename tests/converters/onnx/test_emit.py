"""ONNX files: precision, layout, metadata, trace, determinism."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import shufflectl
from shufflectl.converters.graph import Graph, TensorRecord
from shufflectl.converters.metadata import METADATA_KEY, TRACE_KEY, ModelInfo
from shufflectl.converters.onnx.emit import emit
from shufflectl.converters.targets import EmitOptions
from shufflectl.converters.trace import TensorView, Trace
from shufflectl.errors import GraphError, OutputError
from support.graphs import graph_from_text
from support.nets import example, tiny_graph

INFO = ModelInfo(
    name="tiny",
    weights="random:0",
    labels=("zero, or nought", "eins", "δύο"),
    description="A test model",
    author="The authors",
    version="1.2",
    license="Apache-2.0",
)
OPTIONS = [
    EmitOptions(precision, layout, half_io)
    for precision, layout, half_io in product(("fp32", "fp16"), (None, "nchw", "nhwc"), (False, True))
]

IMAGES = """
g (float[1,3,4,5] image) => (float[1,2,4,5] map, float[1,2] scores)
<int64[2] axes = {2, 3}>
{
    c = Conv (image, w)
    map = Relu (c)
    scores = ReduceMean <keepdims: int = 0> (map, axes)
}
"""
W = np.random.default_rng(0).normal(size=(2, 3, 1, 1)).astype(np.float32)


def written(graph: Graph, options: EmitOptions, folder: Path, info: ModelInfo = INFO) -> onnx.ModelProto:
    path = folder / "model.onnx"
    path.unlink(missing_ok=True)
    emit(graph, info, options, path)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def properties(proto: onnx.ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in proto.metadata_props}


def run(proto: onnx.ModelProto, image: np.ndarray) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options)
    dtype = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": image.astype(dtype)}), strict=True))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.precision}-{o.layout}-{o.half_io}")
def test_every_precision_and_layout_computes_the_same(options: EmitOptions, tmp_path: Path) -> None:
    graph = tiny_graph()
    image = example(seed=1).numpy()
    expected = run(graph.to_proto(), image)["logits"]
    proto = written(graph, options, tmp_path)
    fed = image.transpose(0, 2, 3, 1) if options.layout == "nhwc" else image
    actual = run(proto, fed)["logits"].astype(np.float32)
    tolerance = 1e-5 if options.precision == "fp32" else 2e-2
    np.testing.assert_allclose(actual, expected, atol=tolerance)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.precision}-{o.layout}-{o.half_io}")
def test_inputs_and_outputs_have_the_promised_type_and_layout(options: EmitOptions, tmp_path: Path) -> None:
    proto = written(graph_from_text(IMAGES, {"w": W}), options, tmp_path)
    half = options.precision == "fp16" and options.half_io
    kind = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    ends = (*proto.graph.input, *proto.graph.output)
    declared = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in ends}
    nhwc = options.layout == "nhwc"
    expected = {
        "image": [1, 4, 5, 3] if nhwc else [1, 3, 4, 5],
        "map": [1, 4, 5, 2] if nhwc else [1, 2, 4, 5],
        "scores": [1, 2],
    }
    assert expected == declared
    assert {kind} == {v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)}


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.precision}-{o.layout}-{o.half_io}")
def test_an_output_that_other_nodes_read_stays_right(options: EmitOptions, tmp_path: Path) -> None:
    graph = graph_from_text(IMAGES, {"w": W})
    image = np.random.default_rng(1).normal(size=(1, 3, 4, 5)).astype(np.float32)
    expected = run(graph.to_proto(), image)
    proto = written(graph, options, tmp_path)
    nhwc = options.layout == "nhwc"
    actual = run(proto, image.transpose(0, 2, 3, 1) if nhwc else image)
    back = actual["map"].transpose(0, 3, 1, 2) if nhwc else actual["map"]
    np.testing.assert_allclose(back, expected["map"], atol=1e-2)
    np.testing.assert_allclose(actual["scores"], expected["scores"], atol=1e-2)


def test_fp32_nchw_adds_no_node(tmp_path: Path) -> None:
    proto = written(tiny_graph(), EmitOptions(), tmp_path)
    assert [n.name for n in tiny_graph().nodes] == [n.name for n in proto.graph.node]


def test_fp16_adds_one_cast_an_end(tmp_path: Path) -> None:
    proto = written(tiny_graph(), EmitOptions("fp16"), tmp_path)
    kinds = [n.op_type for n in proto.graph.node]
    assert ["Cast", "Conv"] == kinds[:2]
    assert ["Gemm", "Cast"] == kinds[-2:]
    assert 2 == kinds.count("Cast")
    assert 0 == [
        n.op_type for n in written(tiny_graph(), EmitOptions("fp16", None, True), tmp_path).graph.node
    ].count("Cast")


def test_nhwc_adds_one_transpose_an_image(tmp_path: Path) -> None:
    plain = [n.op_type for n in written(tiny_graph(), EmitOptions(), tmp_path).graph.node].count("Transpose")
    proto = written(tiny_graph(), EmitOptions(layout="nhwc"), tmp_path)
    assert plain + 1 == [n.op_type for n in proto.graph.node].count("Transpose")


def test_node_names_stay_unique(tmp_path: Path) -> None:
    for options in OPTIONS:
        names = [n.name for n in written(graph_from_text(IMAGES, {"w": W}), options, tmp_path).graph.node]
        assert len(set(names)) == len(names)


def test_fp16_leaves_no_fp32_tensor_inside(tmp_path: Path) -> None:
    proto = written(tiny_graph(), EmitOptions("fp16"), tmp_path)
    stored = {t.data_type for t in proto.graph.initializer}
    assert {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64} == stored
    inner = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph.value_info
    assert onnx.TensorProto.FLOAT not in {v.type.tensor_type.elem_type for v in inner}


def test_the_metadata_reads_back(tmp_path: Path) -> None:
    found = properties(written(tiny_graph(), EmitOptions(), tmp_path))
    assert INFO == ModelInfo.from_json(json.loads(found[METADATA_KEY]))


def test_the_metadata_is_there_in_plain_words_too(tmp_path: Path) -> None:
    proto = written(tiny_graph(), EmitOptions(), tmp_path)
    found = properties(proto)
    assert ("The authors", "1.2", "Apache-2.0") == (found["author"], found["version"], found["license"])
    assert list(INFO.labels) == json.loads(found["labels"])
    assert INFO.preprocess.to_json() == json.loads(found["preprocess"])
    assert ("shufflectl", shufflectl.__version__) == (proto.producer_name, proto.producer_version)
    assert ("tiny", "A test model") == (proto.graph.name, proto.graph.doc_string)


def test_unknown_metadata_is_left_out(tmp_path: Path) -> None:
    found = properties(written(tiny_graph(), EmitOptions(), tmp_path, ModelInfo("tiny")))
    assert {"model", "preprocess", METADATA_KEY, TRACE_KEY} == set(found)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.precision}-{o.layout}-{o.half_io}")
def test_the_trace_finds_every_float_tensor(options: EmitOptions, tmp_path: Path) -> None:
    graph = tiny_graph()
    proto = written(graph, options, tmp_path)
    trace = Trace.from_json(properties(proto)[TRACE_KEY])
    expected = ["image", *(str(v.name) for n in graph.nodes for v in n.outputs)]
    assert expected == list(trace)
    tensors = {v.name for v in proto.graph.input} | {name for n in proto.graph.node for name in n.output}
    assert {view.name for view in trace.values()} <= tensors
    axes = (0, 2, 3, 1) if options.layout == "nhwc" else None
    assert TensorView("image", axes) == trace["image"]
    assert TensorView("stage2.0.concat") == trace["stage2.0.concat"]


def test_the_trace_speaks_of_captured_tensors_through_a_rewrite(tmp_path: Path) -> None:
    graph = graph_from_text(IMAGES, {"w": W})
    graph.records["c"] = TensorRecord("conv", (1, 0))
    trace = Trace.from_json(properties(written(graph, EmitOptions(), tmp_path))[TRACE_KEY])
    assert TensorView("c", None, (1, 0)) == trace["conv"]
    assert "c" not in trace


def test_emitting_does_not_change_the_graph(tmp_path: Path) -> None:
    graph = graph_from_text(IMAGES, {"w": W})
    before = graph.to_bytes()
    for options in OPTIONS:
        written(graph, options, tmp_path)
    assert before == graph.to_bytes()


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=["fp32", "fp16"])
def test_two_files_of_one_graph_are_identical(options: EmitOptions, tmp_path: Path) -> None:
    emit(tiny_graph(), INFO, options, tmp_path / "a.onnx")
    emit(tiny_graph().clone(), INFO, options, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_dynamic_batch_stays_symbolic(tmp_path: Path) -> None:
    proto = written(tiny_graph(dynamic_batch=True), EmitOptions("fp16", "nhwc"), tmp_path)
    assert {"batch"} == {
        v.type.tensor_type.shape.dim[0].dim_param for v in (*proto.graph.input, *proto.graph.output)
    }
    assert (3, 10) == run(proto, example(32, 3).numpy().transpose(0, 2, 3, 1))["logits"].shape


@pytest.mark.parametrize("value", [65520.0, -7e4, np.inf, np.nan])
def test_a_weight_that_does_not_fit_fp16_is_refused_by_name(value: float, tmp_path: Path) -> None:
    heavy = W.copy()
    heavy[1, 2] = value
    with pytest.raises(GraphError, match="tensor 'w' does not fit fp16") as caught:
        emit(graph_from_text(IMAGES, {"w": heavy}), INFO, EmitOptions("fp16"), tmp_path / "m.onnx")
    assert "fp32" in caught.value.hint
    assert [] == list(tmp_path.iterdir())


def test_the_largest_and_the_smallest_weights_round_as_fp16_does(tmp_path: Path) -> None:
    edge = W.copy()
    edge.flat[:4] = [65504.0, 65519.0, 1e-7, 1e-9]
    proto = written(graph_from_text(IMAGES, {"w": edge}), EmitOptions("fp16"), tmp_path)
    half = numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == "w"))
    assert [65504.0, 65504.0] == half.flat[:2].tolist()
    assert 1e-7 == pytest.approx(float(half.flat[2]), abs=3e-8)
    assert 0.0 == half.flat[3]


def test_resize_keeps_its_scales_in_fp32(tmp_path: Path) -> None:
    text = """
    g (float[1,3,4,5] image) => (float[1,3,8,10] y) <float[4] k = {1, 1, 2, 2}>
    {
        r = Resize <mode: string = "nearest"> (image, , k)
        y = Relu (r)
    }
    """
    proto = written(graph_from_text(text), EmitOptions("fp16"), tmp_path)
    assert [onnx.TensorProto.FLOAT] == [t.data_type for t in proto.graph.initializer]
    assert (1, 3, 8, 10) == run(proto, np.ones((1, 3, 4, 5), np.float32))["y"].shape


def test_a_constant_shared_by_resize_and_arithmetic_is_split(tmp_path: Path) -> None:
    text = """
    g (float[1,1,4,4] image) => (float[1,1,8,4] y) <float[4] k = {1, 1, 2, 1}>
    {
        m = Mul (image, k)
        y = Resize <mode: string = "nearest"> (m, , k)
    }
    """
    proto = written(graph_from_text(text), EmitOptions("fp16"), tmp_path)
    kinds = {t.name: t.data_type for t in proto.graph.initializer}
    assert {"k": onnx.TensorProto.FLOAT16, "k.fp32": onnx.TensorProto.FLOAT} == kinds


def test_casts_and_constants_inside_the_graph_become_fp16(tmp_path: Path) -> None:
    text = """
    g (float[1,1,2,2] image) => (float[1,1,2,2] y)
    {
        n = Cast <to: int = 7> (image)
        f = Cast <to: int = 1> (n)
        c = Constant <value: tensor = float[1] {0.5}> ()
        s = Constant <value_float: float = 2.0> ()
        v = Constant <value_floats: floats = [1.0, 3.0]> ()
        m = Mul (f, c)
        a = Add (m, s)
        y = Mul (a, v)
    }
    """
    graph = graph_from_text(text)
    image = np.asarray([[[[1, 2], [3, 4.0]]]], np.float32)
    expected = run(graph.to_proto(), image)["y"]
    np.testing.assert_array_equal(run(written(graph, EmitOptions("fp16"), tmp_path), image)["y"], expected)


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write m\.onnx"):
        emit(tiny_graph(), INFO, EmitOptions(), tmp_path / "missing" / "m.onnx")


def test_a_graph_that_is_not_valid_onnx_is_refused(tmp_path: Path) -> None:
    graph = graph_from_text(IMAGES, {"w": W}).clone()
    graph.model.graph[0].op_type = "NoSuchOperator"
    with pytest.raises(GraphError, match="not valid ONNX"):
        emit(graph, INFO, EmitOptions(), tmp_path / "m.onnx")
    assert [] == list(tmp_path.iterdir())
