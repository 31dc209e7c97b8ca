"""The file as a whole: names, trace, metadata, precision, batch, bytes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from shufflectl.converters.capture import capture
from shufflectl.converters.graph import TensorRecord
from shufflectl.converters.metadata import METADATA_KEY, ModelInfo
from shufflectl.converters.targets import TARGETS, EmitOptions
from shufflectl.converters.tflite.emit import to_bytes
from shufflectl.deploy.runtimes.litert import LiteRT
from shufflectl.errors import UnsupportedOperatorError
from support import nets
from support.graphs import graph_from_text
from support.tflite import (
    INFO,
    census,
    compare,
    emit_bytes,
    graph_of,
    metadata,
    model_of,
    operators,
    random_inputs,
    shapes,
    trace_of,
)

FP32, FP16 = 3e-6, 3e-3


@pytest.fixture(scope="module")
def tiny():
    return capture(nets.tiny_v2(), (nets.example(),), name="tiny")


@pytest.fixture(scope="module")
def dynamic():
    return capture(nets.tiny_v2(), (nets.example(),), name="tiny", dynamic_batch=True)


def test_shufflenet_has_no_transpose_but_its_shuffles(tiny):
    expected = {
        "PAD": 5,
        "CONV_2D": 12,
        "MAX_POOL_2D": 1,
        "DEPTHWISE_CONV_2D": 6,
        "CONCATENATION": 4,
        "RESHAPE": 8,
        "TRANSPOSE": 4,
        "SPLIT": 2,
        "MEAN": 1,
        "FULLY_CONNECTED": 1,
    }
    assert expected == census(emit_bytes(tiny))


@pytest.mark.parametrize(("precision", "limit"), [("fp32", FP32), ("fp16", FP16)])
@pytest.mark.parametrize("layout", [None, "nhwc", "nchw"])
def test_shufflenet_agrees_with_onnx_runtime(tiny, precision, limit, layout):
    result = compare(tiny, precision=precision, layout=layout)
    assert result.worst < limit, result.errors


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_dynamic_batch_agrees_with_onnx_runtime(dynamic, batch):
    result = compare(dynamic, batch=batch)
    assert result.worst < FP32, result.errors


def test_dynamic_batch_is_in_the_signature_and_the_shapes_have_one(dynamic):
    data = emit_bytes(dynamic)
    inputs = {
        t.name.decode(): list(t.shapeSignature) for t in model_of(data).subgraphs[0].tensors if t.buffer == 0
    }
    assert [-1, 32, 32, 3] == inputs["image"]
    assert (1, 32, 32, 3) == shapes(data)["image"]


def test_nchw_costs_one_transpose_an_image(tiny):
    assert operators(emit_bytes(tiny)) == operators(emit_bytes(tiny, layout="nchw"))[1:]
    assert (1, 3, 32, 32) == shapes(emit_bytes(tiny, layout="nchw"))["image"]


def test_nchw_output_image_is_transposed_once():
    body = "y = Conv(x, w)"
    data = emit_bytes(graph_of(body, {"w": np.ones((4, 8, 1, 1), np.float32)}), layout="nchw")
    assert ["TRANSPOSE", "CONV_2D", "TRANSPOSE"] == operators(data)
    assert ((1, 8, 10, 9), (1, 4, 10, 9)) == (shapes(data)["x"], shapes(data)["y"])


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_traced_tensor_is_the_graphs(tiny, tmp_path, layout, shuffle):
    graph = tiny
    if not shuffle:
        body = "f = Flatten(x) r = Relu(f) s = Softmax(f) i = Identity(r) d = Add(i, s) y = Gemm(d, w)"
        graph = graph_of(body, {"w": np.ones((720, 2), np.float32)})
    proto = graph.clone()
    inner = [v for node in proto.nodes for v in node.outputs if v.name and not v.is_graph_output()]
    proto.model.graph.outputs.extend(v for v in inner if v.producer().op_type != "Constant")
    inputs = random_inputs(graph)
    session = onnxruntime.InferenceSession(proto.to_proto().SerializeToString())
    wanted = (
        dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True)) | inputs
    )
    path = tmp_path / "m.tflite"
    path.write_bytes(emit_bytes(graph, layout=layout))
    with LiteRT().load(path) as opened:
        given = {opened.trace[k].name: opened.trace[k].to_file(v) for k, v in inputs.items()}
        found = opened.run(given, taps=sorted({v.name for v in opened.trace.values()}))
        assert len(opened.trace) > (30 if shuffle else 4)
        for name, view in opened.trace.items():
            np.testing.assert_allclose(view.to_logical(found[view.name]), wanted[name], rtol=1e-4, atol=1e-5)


def test_trace_is_in_graph_order_and_leaves_out_fused_tensors(tiny):
    trace = trace_of(emit_bytes(tiny))
    order = ["image", *(v.name for node in tiny.nodes for v in node.outputs)]
    assert [name for name in order if name in trace] == list(trace)
    fused = [n.inputs[0].name for n in tiny.nodes if n.op_type == "Relu"]
    assert not set(fused) & set(trace)


def test_trace_names_what_a_rewritten_tensor_stands_for():
    graph = graph_of("r = Relu(x) y = Neg(r)")
    graph.records["r"] = TensorRecord("stage2.relu", (1, 0, 2, 3, 4, 5, 6, 7))
    view = trace_of(emit_bytes(graph))["stage2.relu"]
    assert ("r", (0, 2, 3, 1), (1, 0, 2, 3, 4, 5, 6, 7)) == (view.name, view.axes, view.channels)


def test_metadata_says_what_the_model_is(tiny):
    info = ModelInfo(
        "shufflenet", "digits", "00ff", labels=("zéro", "one"), author="A", version="1", license="MIT"
    )
    data = to_bytes(tiny, info, EmitOptions())
    assert info == ModelInfo.from_json(json.loads(metadata(data, METADATA_KEY)))
    assert b"1.6.0" == metadata(
        emit_bytes(graph_of("y = Transpose<perm=[0,1,3,2]>(x)")), "min_runtime_version"
    ).rstrip(b"\0")


def test_signature_names_inputs_and_outputs(tiny):
    data = emit_bytes(tiny)
    (signature,) = model_of(data).signatureDefs
    assert b"serving_default" == signature.signatureKey
    assert ([b"image"], [b"logits"]) == (
        [i.name for i in signature.inputs],
        [o.name for o in signature.outputs],
    )


def test_same_graph_gives_the_same_bytes(tiny):
    assert emit_bytes(tiny) == emit_bytes(tiny.clone())


def test_fp16_weights_lie_behind_dequantize(tiny):
    half, full = emit_bytes(tiny, precision="fp16"), emit_bytes(tiny)
    graph = model_of(half).subgraphs[0]
    constants = [
        t
        for t in graph.tensors
        if t.buffer and t.type in (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16)
    ]
    assert {schema.TensorType.FLOAT16} == {t.type for t in constants}
    assert census(half)["DEQUANTIZE"] == len(constants)
    assert [name for name in operators(half) if name != "DEQUANTIZE"] == operators(full)


def test_weight_beyond_float16_stays_float32():
    weights = {"w": np.full((4, 8, 1, 1), 1e6, np.float32), "b": np.ones(4, np.float32)}
    result = compare(graph_of("y = Conv(x, w, b)", weights), precision="fp16")
    assert result.worst < FP32
    assert ["DEQUANTIZE", "CONV_2D"] == operators(result.data)


def test_constants_are_aligned_and_held_once():
    weights = {"a": np.ones((8, 8, 1, 1), np.float32), "b": np.ones((8, 8, 1, 1), np.float32)}
    data = emit_bytes(graph_of("c = Conv(x, a) y = Conv(c, b)", weights))
    root = schema.Model.GetRootAs(data, 0)
    starts = []
    for i in range(root.BuffersLength()):
        buffer = root.Buffers(i)
        if buffer.DataLength():
            starts.append(buffer._tab.Vector(buffer._tab.Offset(4)))
    assert {0} == {start % 16 for start in starts}
    assert 1 == sum(t.shape.size == 4 and t.buffer != 0 for t in model_of(data).subgraphs[0].tensors)


@pytest.mark.parametrize(
    ("body", "weights", "version"),
    [
        ("y = Conv(x, w)", {"w": np.ones((4, 8, 1, 1), np.float32)}, 1),
        ("y = Conv<group=2>(x, w)", {"w": np.ones((4, 4, 1, 1), np.float32)}, 6),
        ("y = Conv<group=8,dilations=[2,2]>(x, w)", {"w": np.ones((8, 1, 3, 3), np.float32)}, 2),
        (
            "a = Reshape(x, s) t = Transpose<perm=[0,2,1,3,4]>(a) y = Reshape(t, r)",
            {"s": np.array([1, 2, 4, 10, 9]), "r": np.array([1, 8, 10, 9])},
            4,
        ),
        ("y = MatMul(x, w)", {"w": np.ones((9, 4), np.float32)}, 5),
        (
            'y = Resize<mode="linear",coordinate_transformation_mode="half_pixel">(x, , , s)',
            {"s": np.array([1, 8, 20, 18])},
            3,
        ),
    ],
)
def test_operator_version_is_the_lowest_that_has_what_is_asked(body, weights, version):
    assert version == max(
        code.version for code in model_of(emit_bytes(graph_of(body, weights))).operatorCodes
    )


def test_output_that_is_an_input_or_another_output():
    graph = graph_from_text(
        "g (float[1,2,3,4] x) => (float[1,2,3,4] a, float[1,2,3,4] b, float[1,2,3,4] c)"
        "{ a = Identity(x) b = Relu(x) c = Identity(b) }"
    )
    for layout in ("nhwc", "nchw"):
        assert compare(graph, layout=layout).worst == 0


def test_output_that_is_read_within_the_graph():
    graph = graph_from_text(
        "g (float[1,2,3,4] x) => (float[1,2,3,4] a, float[1,24] b)"
        "{ a = Tanh(x) s = Flatten(a) b = Softmax(s) }"
    )
    for layout in ("nhwc", "nchw"):
        assert compare(graph, layout=layout).worst < FP32


def test_two_inputs_of_any_rank():
    graph = graph_from_text("g (float[1,2,3,4] x, float[3,4] z) => (float[1,2,3,4] y) { y = Add(x, z) }")
    assert compare(graph).worst == 0


def test_zero_bytes_and_unicode_in_names_survive():
    graph = graph_of("r = Relu(x) y = Neg(r)")
    graph.nodes[0].outputs[0].name = "schicht.ä/1"
    assert "schicht.ä/1" in trace_of(emit_bytes(graph))


def test_target_row_emits_this(tiny, tmp_path):
    path = tmp_path / "m.tflite"
    TARGETS["tflite"].emit(tiny, INFO, EmitOptions(), path)
    assert emit_bytes(tiny) == path.read_bytes()


def test_type_that_a_file_cannot_hold_is_refused():
    graph = graph_from_text("g (double[1,2] x) => (double[1,2] y) { y = Neg(x) }")
    with pytest.raises(UnsupportedOperatorError, match="float64"):
        emit_bytes(graph)


@pytest.mark.parametrize("package", ["ai_edge_litert", "flatbuffers"])
def test_missing_package_is_named_with_its_extra(package):
    program = f"""
import sys
sys.modules[{package!r}] = None
from shufflectl.converters.tflite.emit import to_bytes
from shufflectl.errors import MissingDependencyError
try:
    to_bytes(None, None, None)
except MissingDependencyError as e:
    print(e.package, e.extra, e.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert f"{package.replace('_', '-')} tflite 8\n" == done.stdout


def test_readable_description(tiny):
    data = to_bytes(tiny, ModelInfo("v2", description="Digits."), EmitOptions())
    assert re.search(rb"v2, Digits\.", data)


def test_other_hash_seeds_give_the_same_bytes(tmp_path):
    program = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np\n"
        "from support.tflite import emit_bytes, graph_of\n"
        "body = 'a, b = Split<axis=1,num_outputs=2>(x) c = Concat<axis=1>(b, a) y = Conv(c, w)'\n"
        "graph = graph_of(body, {'w': np.ones((4, 8, 1, 1), np.float32)})\n"
        "print(hashlib.sha256(emit_bytes(graph, precision='fp16')).hexdigest())\n"
    )
    argv = [sys.executable, "-c", program, str(Path(__file__).parents[2])]
    digests = {
        subprocess.run(
            argv, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert 1 == len(digests)


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("a, b = Split<axis=1>(x, s) y = Concat<axis=1>(b, a)", {"s": np.array([3, 5])}),
        ("y = Slice(x, s, e, a)", {"s": np.array([1, 2]), "e": np.array([7, -1]), "a": np.array([1, 2])}),
        ("y = Gather<axis=1>(x, i)", {"i": np.int64(3)}),
        ("y = Pad(x, p)", {"p": np.array([0, -1, 1, 0, 0, 0, 2, -3])}),
        ("f = Flatten(x) y = Gemm<transB=1>(f, w)", {"w": np.ones((3, 720), np.float32)}),
        ("y = Flatten(x)", {}),
        ("g = GlobalAveragePool(x) s = Sigmoid(g) y = Mul(x, s)", {}),
        ('y = Resize<mode="linear">(x, , k)', {"k": np.array([1, 1, 2, 2], np.float32)}),
        ("y = Softmax<axis=2>(x)", {}),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_operator_with_a_dynamic_batch(body, weights, batch):
    result = compare(graph_of(body, weights, ("batch", 8, 10, 9)), batch=batch)
    assert result.worst < FP32, result.errors


def delegated(data):
    """Return how many nodes the interpreter adds: one for each part of the graph that XNNPACK takes."""
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    return len(interpreter._get_ops_details()) - len(operators(data))


@pytest.mark.parametrize("batch", [1, "batch"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_xnnpack_takes_a_shufflenet_whole(tiny, dynamic, batch, precision):
    assert 1 == delegated(emit_bytes(tiny if batch == 1 else dynamic, precision=precision))


@pytest.mark.parametrize("batch", [1, "batch"])
def test_xnnpack_takes_slices_and_bounds(batch):
    weights = {"s": np.array([3, 5]), "lo": np.float32(0), "hi": np.float32(1)}
    body = "a, b = Split<axis=1>(x, s) c = Concat<axis=1>(b, a) d = Clip(c, lo, hi) y = HardSigmoid(d)"
    assert 1 == delegated(emit_bytes(graph_of(body, weights, (batch, 8, 10, 9))))
