"""Packages in fewer bits: the codes of every other format, rounded where the graph says so."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from converters.quantize.nets import images, runner
from converters.rewrite.nets import captured
from shufflectl.converters.coreml import toolkit
from shufflectl.converters.coreml.palette import SMALLEST
from shufflectl.converters.graph import Graph, Quantization
from shufflectl.converters.quantize.annotate import annotated
from shufflectl.converters.quantize.calibrate import Recipe, calibrate
from shufflectl.converters.quantize.operators import weighted
from shufflectl.converters.quantize.qdq import with_qdq
from shufflectl.converters.quantize.scales import Scale, bias_codes, weight_codes
from shufflectl.converters.rewrite.lowering import Options, apply
from shufflectl.converters.targets import EmitOptions
from shufflectl.converters.worker import EmitterProcess
from shufflectl.deploy.inspect import summarize
from shufflectl.deploy.inspect.ane import read_neural_engine
from shufflectl.deploy.runtimes.coreml_reference import CoreMLReference
from shufflectl.deploy.runtimes.coreml_reference.package import read_model
from shufflectl.deploy.runtimes.coreml_reference.program import read_program
from shufflectl.errors import GraphError, UsageError
from shufflectl.models.mobilenet_v2 import MobileNetV2
from shufflectl.models.shufflenet_v1 import ShuffleNetV1
from support.coreml import INFO, execute, onnx_values, package, sqnr
from support.graphs import graph_from_text
from support.nets import randomise, tiny_graph

MODEL = "Data/com.apple.CoreML/model.mlmodel"
FORMS = {
    "native": Options(),
    "interleave": Options(),
    "two-stream": Options(),
    "fold": Options(max_concat=3),
    "fold-split": Options(align=8),
}


def scaled(graph: Graph, form: str = "native") -> Graph:
    """Return a captured graph, calibrated on noise, in one form."""
    found = calibrate(graph, runner(images(graph, 4)), Recipe(), source="", images=4, seed=0)
    prepared = found.prepare(graph)
    rewritten = apply(form, prepared, FORMS[form])[0]
    return annotated(rewritten, prepared, found.scales(prepared))


def int8(graph: Graph, folder: Path, **options: Any) -> Path:
    return package(graph, folder, precision="int8", minimum_deployment_target="iOS17", **options)


def operations(path: Path) -> list[Any]:
    spec, _ = read_model(path)
    function = spec.mlProgram.functions["main"]
    return [op for op in function.block_specializations[function.opset].operations if op.type != "const"]


def census(path: Path) -> Counter[str]:
    return Counter(op.type for op in operations(path))


def differences(graph: Graph, path: Path, image: NDArray[np.float32]) -> dict[str, NDArray[np.intp]]:
    """Return for each tensor with a scale by how many codes a package and the graph with Q/DQ differ."""
    name = str(graph.inputs[0].name)
    wanted = onnx_values(with_qdq(graph, "int8"), {name: image})
    assert graph.quantization is not None
    found = {}
    with CoreMLReference().load(path) as session:
        views = session.trace
        taps = [v.name for view in views.values() for v in (view, *view.rest)]
        values = session.run({views[name].name: image}, taps)
        for tensor, scale in graph.quantization.scales.items():
            view = views.get(graph.record(tensor).origin)
            if view is None or view.rest or tensor == name or tensor not in wanted:
                continue
            actual = values[view.name]
            if actual.shape == wanted[tensor].shape:
                codes = scale.codes(actual.astype(np.float32)).astype(int)
                found[tensor] = np.abs(codes - scale.codes(wanted[tensor]))
    return found


def compute_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let coremltools write programs that compute in fp32 around codes: the same but for fp16's rounding."""
    ct = toolkit.load().ct
    full = ct.precision.FLOAT32
    monkeypatch.setattr(ct, "precision", SimpleNamespace(FLOAT16=full, FLOAT32=full))


@pytest.fixture
def in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_in_full_precision(monkeypatch)


# --- the same codes ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_full_precision")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_codes_of_onnx(form: str, tmp_path: Path) -> None:
    graph = scaled(tiny_graph(), form)
    path = int8(graph, tmp_path)
    found = np.concatenate(
        [
            d.reshape(-1)
            for image in images(graph, 3, seed=1)
            for d in differences(graph, path, image).values()
        ]
    )
    assert found.size > 3 * 5000
    # Sums in another order may round a code in thousands otherwise.
    assert np.mean(found > 0) < 1e-3


@pytest.mark.usefixtures("in_full_precision")
@pytest.mark.parametrize("kind", ["v1", "mobilenet"])
def test_other_networks_have_the_codes_of_onnx(kind: str, tmp_path: Path) -> None:
    # Residual additions, average pooling of what is joined, ReLU6, shuffles of one tensor.
    nets = {
        "v1": lambda: ShuffleNetV1(2, None, 5, stem=8, stages=(16, 32, 48), units=(2, 1, 1)),
        "mobilenet": lambda: MobileNetV2(0.25, 5),
    }
    graph = scaled(captured(randomise(nets[kind]()), size=64))
    found = differences(graph, int8(graph, tmp_path), images(graph, 1, seed=1)[0])
    joined = np.concatenate([d.reshape(-1) for d in found.values()])
    assert np.mean(joined > 0) < 1e-3


UNITS = {
    "conv": "{o} = Conv<pads=[1,1,1,1]>({a}, w)",
    "depthwise": "{o}d = Conv<group=4, pads=[1,1,1,1]>({a}, d) {o} = Relu({o}d)",
    "relu": "{o} = Relu({a})",
    "swish": "{o}g = HardSigmoid({a}) {o} = Mul({a}, {o}g)",
    "add": "{o} = Add({a}, {b})",
    "shuffle": "{o}r = Reshape({a}, s) {o}t = Transpose<perm=[0,2,1,3,4]>({o}r) {o} = Reshape({o}t, u)",
    "turn": "{o} = Transpose<perm=[0,1,3,2]>({a})",
    "join": "{o}h, {o}i = Split<axis=1, num_outputs=2>({a}) {o} = Concat<axis=1>({o}i, {o}h)",
    "most": "{o} = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({a})",
    "mean": "{o} = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>({a})",
    "gather": "{o} = Gather<axis=1>({a}, p)",
    "bias": "{o} = Add({a}, c)",
}


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_random_graphs_have_the_codes_of_onnx(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors, lines = ["x"], []
    for index in range(data.draw(st.integers(2, 9))):
        unit = data.draw(st.sampled_from(sorted(UNITS)))
        names = {key: data.draw(st.sampled_from(tensors[-3:])) for key in "ab"}
        lines.append(UNITS[unit].format(o=f"m{index}", **names))
        tensors.append(f"m{index}")
    body = " ".join(lines) + f" y = Conv({tensors[-1]}, w)"
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "w": rng.standard_normal((4, 4, 3, 3)).astype(np.float32) / 6,
        "d": rng.standard_normal((4, 1, 3, 3)).astype(np.float32) / 3,
        "c": rng.standard_normal((4, 1, 1)).astype(np.float32),
        "s": np.array([1, 2, 2, 5, 5], np.int64),
        "u": np.array([1, 4, 5, 5], np.int64),
        "p": np.array([3, 0, 2, 1], np.int64),
    }
    text = f"g (float[1,4,5,5] x) => (float[1,4,3,3] y) {{ {body} }}"
    graph = scaled(graph_from_text(text, {k: v for k, v in arrays.items() if f", {k})" in body}))
    with pytest.MonkeyPatch.context() as patch:
        compute_in_full_precision(patch)
        path = int8(graph, tmp_path_factory.mktemp("random"))
    for image in images(graph, 2, seed=1):
        found = differences(graph, path, image)
        joined = np.concatenate([d.reshape(-1) for d in found.values()])
        # A sum that ends halfway between two codes may end on either side.
        assert joined.max() <= 1
        assert np.mean(joined > 0) < 0.01


def test_fp16_around_codes_moves_them_by_one_at_most(tmp_path: Path) -> None:
    text = """g (float[1,8,6,6] x) => (float[1,8,6,6] c, float[1,8,2,2] m) {
      a = Conv(x, w, b)
      r = Relu(a)
      p, q = Split<axis=1, num_outputs=2>(r)
      c = Concat<axis=1>(q, p)
      m = MaxPool<kernel_shape=[3,3], strides=[3,3]>(c)
    }"""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((8, 8, 1, 1)).astype(np.float32) / 3,
        "b": rng.standard_normal(8).astype(np.float32),
    }
    graph = scaled(graph_from_text(text, constants))
    path = int8(graph, tmp_path)
    for image in images(graph, 4, seed=1):
        found = differences(graph, path, image)
        joined = np.concatenate([d.reshape(-1) for d in found.values()])
        assert joined.max() <= 1
        assert np.mean(joined == 0) > 0.9


def test_fp16_around_codes_costs_no_more_than_the_codes(tmp_path: Path) -> None:
    plain = tiny_graph()
    graph = scaled(plain)
    path = int8(graph, tmp_path)
    name, output = str(plain.inputs[0].name), str(plain.outputs[0].name)
    for image in images(graph, 4, seed=1):
        full = onnx_values(plain, {name: image})[output]
        codes = onnx_values(with_qdq(graph, "int8"), {name: image})[output]
        assert sqnr(full, execute(path, {name: image})[output]) > sqnr(full, codes) - 6


# --- weights ----------------------------------------------------------------------------------------


def constants(path: Path) -> dict[str, NDArray[Any]]:
    """Return the weights and biases of convolutions and matrices, by the names of the results."""
    spec, folder = read_model(path)
    found = {}
    for op in read_program(spec, folder).operations:
        for key in ("weight", "bias"):
            if op.type in ("conv", "linear", "matmul") and op.has(key):
                found[f"{op.name}:{key}"] = op.constant(key)
    return found


def stored_codes(path: Path) -> list[NDArray[np.int8]]:
    """Return the codes that a package holds, in order."""
    _, folder = read_model(path)
    weights = (folder / "weights" / "weight.bin").read_bytes()
    found = []
    for op in operations(path):
        if op.type == "constexpr_affine_dequantize":
            value = op.attributes["quantized_data"]
            shape = [d.constant.size for d in value.type.tensorType.dimensions]
            record = value.blobFileValue.offset
            start = int.from_bytes(weights[record + 16 : record + 24], "little")
            found.append(np.frombuffer(weights, np.int8, int(np.prod(shape)), start).reshape(shape))
    return found


@pytest.mark.parametrize("precision", ["int8", "int8-weights"])
def test_weights_are_the_codes_of_every_format(precision: str, tmp_path: Path) -> None:
    graph = scaled(tiny_graph())
    path = package(graph, tmp_path, precision=precision, minimum_deployment_target="iOS17")
    assert graph.quantization is not None
    expected = []
    for found in filter(None, map(weighted, graph.nodes)):
        source = graph.quantization.scales[str(found.data.name)] if precision == "int8" else None
        expected.append(weight_codes(found.weights, found.axis, source, found.bias).codes)
    actual = stored_codes(path)
    assert len(expected) == len(actual)
    for wanted in expected:
        assert any(wanted.shape == codes.shape and (wanted == codes).all() for codes in actual)


def test_biases_are_what_the_codes_of_other_formats_stand_for(tmp_path: Path) -> None:
    text = "g (float[1,4,2,2] x) => (float[1,3,2,2] y) { y = Conv(x, w, b) }"
    rng = np.random.default_rng(0)
    bias = np.float32([0.1, -2.0, 1e-4])
    given_weights = rng.standard_normal((3, 4, 1, 1)).astype(np.float32)
    graph = scaled(graph_from_text(text, {"w": given_weights, "b": bias}))
    assert graph.quantization is not None
    (found,) = filter(None, map(weighted, graph.nodes))
    assert found.bias is not None
    source = graph.quantization.scales["x"]
    codes = weight_codes(found.weights, found.axis, source, found.bias)
    wanted = bias_codes(found.bias, source, codes) * source.scale * codes.scales.astype(np.float64)
    (actual,) = [v for name, v in constants(int8(graph, tmp_path)).items() if name.endswith("bias")]
    np.testing.assert_array_equal(wanted.astype(np.float16), actual)


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
@pytest.mark.parametrize("precision", ["palette4", "palette6", "palette8"])
def test_large_weights_get_a_palette(precision: str, target: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = """g (float[1,48,4,4] x) => (float[1,10] o) {
      a = Conv(x, w)
      s = Conv<group=48>(a, d)
      f = GlobalAveragePool(s)
      g = Flatten(f)
      o = Gemm(g, m)
    }"""
    arrays = {
        "w": rng.standard_normal((48, 48, 1, 1)).astype(np.float32),
        "d": rng.standard_normal((48, 1, 1, 1)).astype(np.float32),
        "m": rng.standard_normal((48, 10)).astype(np.float32),
    }
    assert arrays["m"].size <= SMALLEST < arrays["w"].size
    graph = graph_from_text(text, arrays)
    path = package(graph, tmp_path, precision=precision, minimum_deployment_target=target)
    assert 1 == census(path)["constexpr_lut_to_dense"]
    for key, array in constants(path).items():
        if array.size > SMALLEST:
            assert len(np.unique(array)) <= 1 << int(precision[-1])
        elif "weight" in key:
            assert any(np.array_equal(array, a.astype(np.float16)) for a in (arrays["d"], arrays["m"].T))
    x = {"x": rng.standard_normal((1, 48, 4, 4)).astype(np.float32)}
    least = {"palette4": 15, "palette6": 25, "palette8": 35}[precision]
    assert sqnr(onnx_values(graph, x)["o"], execute(path, x)["o"]) > least
    spec, _ = read_model(path)
    held = spec.description.metadata.userDefined["compression"]
    assert f"{precision}: the weights of 1 of 3 operators" == held


def test_a_matrix_product_has_codes_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = """g (float[2,3,5,4] x, float[3,4] t) => (float[2,3,5,6] y, float[3,6] u) {
      y = MatMul(x, w)
      u = MatMul(t, w)
    }"""
    graph = graph_from_text(text, {"w": rng.standard_normal((4, 6)).astype(np.float32)})
    x = {
        "x": rng.standard_normal((2, 3, 5, 4)).astype(np.float32),
        "t": rng.standard_normal((3, 4)).astype(np.float32),
    }
    path = package(graph, tmp_path, precision="int8-weights")
    assert {"matmul": 1, "linear": 1}.items() <= census(path).items()
    found, wanted = execute(path, x), onnx_values(graph, x)
    assert min(sqnr(wanted[name], found[name]) for name in ("y", "u")) > 38


def test_nodes_in_floating_point_keep_their_weights(tmp_path: Path) -> None:
    graph = scaled(tiny_graph())
    assert graph.quantization is not None
    last = str(next(n for n in reversed(graph.nodes) if n.op_type == "Gemm").name)
    whole = census(int8(graph, tmp_path))
    graph.quantization = Quantization(graph.quantization.scales, frozenset({last}))
    kept = census(int8(graph, tmp_path))
    assert whole["constexpr_affine_dequantize"] - 1 == kept["constexpr_affine_dequantize"]


def test_tiny_weights_keep_a_scale_that_fp16_has(tmp_path: Path) -> None:
    arrays = {"w": np.float32([[[[1e-9]]], [[[2e-6]]], [[[0.5]]]])}
    graph = graph_from_text("g (float[1,1,1,1] x) => (float[1,3,1,1] y) { y = Conv(x, w) }", arrays)
    found = execute(
        package(graph, tmp_path, precision="int8-weights"), {"x": np.ones((1, 1, 1, 1), np.float32)}
    )
    assert np.isfinite(found["y"]).all()
    np.testing.assert_allclose(found["y"].reshape(-1), [0, 2e-6, 0.5], rtol=1e-3, atol=2**-25)


# --- where tensors are rounded ----------------------------------------------------------------------


def sources(path: Path) -> Counter[str]:
    """Return what makes the tensors that are rounded."""
    made = {out.name: op.type for op in operations(path) for out in op.outputs}
    return Counter(
        made.get(op.inputs["input"].arguments[0].name, "input")
        for op in operations(path)
        if op.type == "quantize"
    )


def test_movement_costs_no_pairs_but_for_integer_kernels(tmp_path: Path) -> None:
    # What coremltools' linear_quantize_activations makes of the same network: one before each convolution.
    found = sources(int8(scaled(tiny_graph()), tmp_path))
    assert {"split": 2, "concat": 2, "max_pool": 1} == {
        k: v for k, v in found.items() if k in ("split", "concat", "max_pool")
    }


def test_a_moved_tensor_that_no_kernel_reads_is_not_rounded_again(tmp_path: Path) -> None:
    text = """g (float[1,4,2,2] x) => (float[1,8,2,2] y) {
      r = Relu(x)
      p, q = Split<axis=1, num_outputs=2>(r)
      y = Concat<axis=1>(q, p, r)
    }"""
    assert {"cast": 1, "relu": 1} == sources(int8(scaled(graph_from_text(text)), tmp_path))


def test_codes_are_moved_where_mil_moves_integers(tmp_path: Path) -> None:
    text = """g (float[1,4,2,2] x) => (float[1,3] y, float[1,2,4,2] z) {
      r = Sigmoid(x)
      t = Transpose<perm=[0,2,1,3]>(r)
      f = Flatten(t)
      y = Gemm<transB=1>(f, w)
      s = Slice(r, start, end, axis)
      u = Conv(s, k)
      z = Transpose<perm=[0,2,1,3]>(u)
    }"""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "w": rng.standard_normal((3, 16)).astype(np.float32),
        "k": rng.standard_normal((4, 2, 1, 1)).astype(np.float32),
        "start": np.int64([2]),
        "end": np.int64([4]),
        "axis": np.int64([1]),
    }
    graph = scaled(graph_from_text(text, arrays))
    path = int8(graph, tmp_path)
    assert {"cast": 1, "sigmoid": 1, "linear": 1, "conv": 1} == sources(path)
    codes = {
        out.name
        for op in operations(path)
        if op.type in ("quantize", "transpose", "reshape")
        for out in op.outputs
    }
    moved = [op for op in operations(path) if op.type in ("slice_by_index", "reshape")]
    assert all(op.inputs["x"].arguments[0].name in codes for op in moved)
    found = differences(graph, path, images(graph, 1, seed=1)[0])
    assert max(d.max() for d in found.values()) <= 1


def test_a_constant_that_is_no_code_is_rounded_with_what_it_joins(tmp_path: Path) -> None:
    text = "g (float[1,2,2,2] x) => (float[1,4,2,2] y) { r = Relu(x) y = Concat<axis=1>(r, c) }"
    graph = graph_from_text(text, {"c": np.full((1, 2, 2, 2), 0.123, np.float32)})
    scale = Scale(0.25, -128)
    graph.quantization = Quantization({"x": Scale(0.5, 0), "r": scale, "y": scale})
    y = execute(int8(graph, tmp_path), {"x": np.full((1, 2, 2, 2), 1.0, np.float32)})["y"]
    np.testing.assert_array_equal(y, scale.values(scale.codes(y)))
    assert {0.0, 1.0} == set(y.reshape(-1).tolist())


def test_scales_in_the_file_are_the_graphs(tmp_path: Path) -> None:
    # coremltools would divide the scales of an addition by one another.
    text = """g (float[1,4,2,2] x, float[1,4,2,2] t) => (float[1,4,2,2] y) {
      a = Relu(x)
      b = Sigmoid(t)
      y = Add(a, b)
    }"""
    graph = graph_from_text(text)
    scales = {
        "x": Scale(0.25, 0),
        "t": Scale(0.125, 3),
        "a": Scale(0.0625, -128),
        "b": Scale(2**-8, -128),
        "y": Scale(0.5, -5),
    }
    graph.quantization = Quantization(scales)
    spec, folder = read_model(int8(graph, tmp_path))
    found = [
        (op.number("scale"), op.integer("zero_point", 0), op.outputs[0].kind)
        for op in read_program(spec, folder).operations
        if op.type == "quantize"
    ]
    wanted = [
        (s.scale, 0, "UINT8") if s.zero_point == -128 else (s.scale, s.zero_point, "INT8")
        for s in scales.values()
    ]
    assert sorted(wanted) == sorted(found)


def test_the_trace_names_rounded_tensors(tmp_path: Path) -> None:
    graph = scaled(tiny_graph())
    path = int8(graph, tmp_path)
    assert graph.quantization is not None
    image = images(graph, 1)[0]
    with CoreMLReference().load(path) as session:
        views = session.trace
        # Movement inside the shuffles is one operation, as in fp16.
        lost = {graph.record(name).origin for name in graph.quantization.scales} - set(views)
        assert all(name.rpartition(".")[2] in ("concat", "reshape", "transpose") for name in lost)
        values = session.run({views["image"].name: image}, [view.name for view in views.values()])
        for name, scale in graph.quantization.scales.items():
            if name in views and name != "image":
                value = values[views[name].name].astype(np.float32)
                numbers = scale.values(scale.codes(value)).astype(np.float16)
                np.testing.assert_array_equal(numbers, value, err_msg=name)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("half_io", [False, True])
def test_layouts_and_fp16_interfaces(layout: str, half_io: bool, tmp_path: Path) -> None:
    graph = scaled(tiny_graph())
    path = int8(graph, tmp_path, layout=layout, half_io=half_io)
    image = images(graph, 1)[0]
    with CoreMLReference().load(path) as session:
        view = session.trace["image"]
        kind = session.inputs[0].dtype
        assert (np.float16 if half_io else np.float32) == kind
        found = session.run({view.name: view.to_file(image).astype(kind)})["logits"]
    assert sqnr(onnx_values(with_qdq(graph), {"image": image})["logits"], found) > 20


def test_a_batch_of_any_size_and_the_newest_system(tmp_path: Path) -> None:
    graph = scaled(tiny_graph(dynamic_batch=True))
    path = package(graph, tmp_path, precision="int8", minimum_deployment_target="iOS18")
    batch = {"image": np.concatenate(images(graph, 3, seed=1))}
    wanted = onnx_values(with_qdq(graph, "int8"), batch)["logits"]
    assert sqnr(wanted, execute(path, batch)["logits"]) > 20


def test_a_picture_becomes_codes_where_it_becomes_numbers(tmp_path: Path) -> None:
    text = "g (uint8[1,3,4,4] x) => (float[1,3,4,4] y) { c = Cast<to=1>(x) n = Mul(c, s) y = Conv(n, w) }"
    arrays = {
        "s": np.full((1, 1, 1), 2.0**-8, np.float32),
        "w": np.random.default_rng(0).standard_normal((3, 3, 1, 1)).astype(np.float32),
    }
    graph = graph_from_text(text, arrays)
    graph.quantization = Quantization(
        {"c": Scale(1.0, -128), "n": Scale(2.0**-8, -128), "y": Scale(2.0**-5, 0)}
    )
    x = {"x": np.random.default_rng(1).integers(0, 256, (1, 3, 4, 4), dtype=np.uint8)}
    found = execute(int8(graph, tmp_path), x)["y"]
    assert np.abs(found - onnx_values(with_qdq(graph, "int8"), x)["y"]).max() <= 2.0**-5


@pytest.mark.parametrize("part", ["scale", "zero_point"])
def test_a_changed_grid_changes_the_result(part: str, tmp_path: Path) -> None:
    text = "g (float[1,4,2,2] x) => (float[1,4,2,2] y) { y = Elu(x) }"
    graph = scaled(graph_from_text(text))
    path = int8(graph, tmp_path)
    x = {"x": images(graph, 1)[0]}
    before = execute(path, x)["y"]
    spec, _ = read_model(path)
    function = spec.mlProgram.functions["main"]
    listed = function.block_specializations[function.opset].operations
    last = [op for op in listed if op.type == "dequantize"][-1]
    place = [op.outputs[0].name for op in listed].index(last.inputs[part].arguments[0].name)
    constant = type(last).FromString(listed[place].SerializeToString())  # one of its own
    constant.outputs[0].name = last.inputs[part].arguments[0].name = "changed"
    listed.insert(place, constant)
    constant = listed[place]
    tensor = constant.attributes["val"].immediateValue.tensor
    dtype = np.float16 if part == "scale" else np.int8
    number = np.frombuffer(tensor.bytes.values, dtype)
    tensor.bytes.values = (number * 2 if part == "scale" else number + np.int8(1)).astype(dtype).tobytes()
    (path / MODEL).write_bytes(spec.SerializeToString())
    after = execute(path, x)["y"]
    assert np.abs(after - before).max() > 0.005


# --- the file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int8", "int8-weights", "palette4"])
def test_the_same_bytes_every_time(precision: str, tmp_path: Path) -> None:
    graph = scaled(tiny_graph())
    first, second = (
        package(graph, tmp_path, precision=precision, minimum_deployment_target="iOS17") for _ in range(2)
    )
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    # It gets the graph as bytes, scales included, and coremltools without the frameworks around it.
    graph = scaled(tiny_graph())
    first, second = int8(graph, tmp_path), tmp_path / "other.mlpackage"
    options = EmitOptions(precision="int8", minimum_deployment_target="iOS17")
    with EmitterProcess("coreml") as process:
        process.emit(graph, INFO, options, second)
    files = [p.relative_to(first) for p in first.rglob("*") if p.is_file()]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)


def test_inspect_takes_codes_for_weights_and_not_for_operators(tmp_path: Path) -> None:
    plain = tiny_graph()
    half, eight = (package(plain, tmp_path, precision=kind) for kind in ("fp16", "int8-weights"))
    before, after = summarize(half), summarize(eight)
    assert before.histogram == after.histogram
    assert before.parameters == after.parameters
    assert {"float16": before.parameters} == before.parameters_by_type
    weights = sum(f.weights.size for f in map(weighted, plain.nodes) if f is not None)
    assert weights == after.parameters_by_type["int8"]
    assert read_neural_engine(half).operations == read_neural_engine(eight).operations


@pytest.mark.parametrize(("target", "kind"), [("iOS16", "uint6"), ("iOS18", "uint6")])
def test_inspect_says_how_many_bits_a_palette_has(target: str, kind: str, tmp_path: Path) -> None:
    arrays = {"w": np.random.default_rng(0).standard_normal((64, 64, 1, 1)).astype(np.float32)}
    graph = graph_from_text("g (float[1,64,1,1] x) => (float[1,64,1,1] y) { y = Conv(x, w) }", arrays)
    path = package(graph, tmp_path, precision="palette6", minimum_deployment_target=target)
    assert {kind: 4096} == summarize(path).parameters_by_type


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "target", "needed"),
    [("int8", "iOS16", "iOS 17"), ("int8-weights", "iOS15", "iOS 16"), ("palette4", "iOS15", "iOS 16")],
)
def test_an_older_system_is_refused(precision: str, target: str, needed: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=needed) as caught:
        package(tiny_graph(), tmp_path, precision=precision, minimum_deployment_target=target)
    assert needed.replace(" ", "") in caught.value.hint


def test_a_precision_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no precision int8-dynamic"):
        package(tiny_graph(), tmp_path, precision="int8-dynamic")


def test_a_graph_without_scales_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="no scales"):
        int8(tiny_graph(), tmp_path)


def test_a_scale_that_fp16_has_not_is_refused(tmp_path: Path) -> None:
    graph = graph_from_text("g (float[1,2] x) => (float[1,2] y) { y = Relu(x) }")
    graph.quantization = Quantization({"x": Scale(2.0**-30, 0), "y": Scale(2.0**-30, -128)})
    with pytest.raises(GraphError, match="none in fp16"):
        int8(graph, tmp_path)


def test_weights_beyond_fp16_are_refused(tmp_path: Path) -> None:
    graph = graph_from_text(
        "g (float[1,1,1,1] x) => (float[1,1,1,1] y) { y = Conv(x, w) }", {"w": np.float32([[[[1e8]]]])}
    )
    with pytest.raises(GraphError, match="fp16 ends at 65504"):
        package(graph, tmp_path, precision="int8-weights")
