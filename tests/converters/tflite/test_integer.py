"""Integer operators compute what the graph in codes does, in LiteRT and in tflite-runtime 2.14."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters.quantize.nets import images
from converters.rewrite.nets import captured
from converters.rewrite.random_nets import Net, nets
from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.recipe import Recipe
from shufflectl.converters.quantize.scales import Scale
from shufflectl.converters.rewrite.choose import Candidate
from shufflectl.converters.rewrite.lowering import Options
from shufflectl.deploy.quantization import layers
from shufflectl.deploy.runtimes.litert import delegation
from shufflectl.deploy.runtimes.tflite_runtime import TfliteRuntime
from shufflectl.models.shufflenet_v1 import ShuffleNetV1
from support.integers import Coded, coded, pairs
from support.nets import randomise, tiny_graph
from support.tflite import NAMES, model_of, operators

FOLD = Candidate("fold", Options())


def net(build: Callable[[Net, str], str], batch: int | str = 1) -> Graph:
    made = Net(3, batch=batch)
    made.outputs.append(build(made, made.input(3, 8)))
    return made.finish()


def layer(n: Net, x: str, kind: str = "Relu") -> str:
    return n.act(n.conv(x, 8), kind)


def activation(kind: str) -> Callable[[Net, str], str]:
    return lambda n, x: n.conv(layer(n, x, kind), 4)


def residual(n: Net, x: str) -> str:
    x = layer(n, x)
    return n.act(n.op("Add", [x, n.conv(layer(n, x), 8)], 8)[0])


def average(include: int) -> Callable[[Net, str], str]:
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": include}
    return lambda n, x: n.conv(n.op("AveragePool", [layer(n, x)], 8, 4, **window)[0], 4)


def resized(mode: str, **attributes: str) -> Callable[[Net, str], str]:
    def build(n: Net, x: str) -> str:
        sizes = n.constant(np.asarray([1, 8, 16, 16], np.int64))
        return n.conv(n.op("Resize", [layer(n, x), "", "", sizes], 8, 16, mode=mode, **attributes)[0], 4)

    return build


def product(n: Net, x: str) -> str:
    pooled = n.op("GlobalAveragePool", [layer(n, x)], 8, 1)[0]
    return n.op("MatMul", [n.reshape(pooled, -1, 8, channels=8), n.weight(8, 5)], 5)[0]


def clipped(low: float, high: float) -> Callable[[Net, str], str]:
    def build(n: Net, x: str) -> str:
        bounds = [n.constant(np.float32(low)), n.constant(np.float32(high))]
        return n.conv(n.op("Clip", [n.conv(x, 8), *bounds], 8)[0], 4)

    return build


def shuffled(n: Net, x: str) -> str:
    kept, worked = n.split(n.shuffle(layer(n, x), 2, 5), 4, 4)
    return n.shuffle(n.join(kept, n.act(n.conv(worked, 4))), 2, 4)


def unequal_rows(n: Net, x: str) -> str:
    pooled = n.reshape(n.op("GlobalAveragePool", [layer(n, x)], 8, 1)[0], -1, 8, channels=8)
    rows = n.rng.standard_normal((5, 8)) * np.asarray([[100], [10], [1], [0.1], [0.01]])
    bias = n.constant(np.arange(5, dtype=np.float32))
    return n.op("Gemm", [pooled, n.constant(rows.astype(np.float32)), bias], 5, transB=1)[0]


CONV = {"QUANTIZE": 1, "CONV_2D": 2, "DEQUANTIZE": 1}
FLOAT_STEP = {"QUANTIZE": 2, "CONV_2D": 2, "DEQUANTIZE": 2}
RESIZED = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}

# A graph, the operators of its file, and those among them that XNNPACK leaves to LiteRT's own kernels.
CASES: dict[str, tuple[Callable[[Net, str], str], dict[str, int], set[str]]] = {
    "squeeze and excitation": (
        lambda n, x: n.excite(layer(n, x)),
        {**CONV, "CONV_2D": 3, "MEAN": 1, "LOGISTIC": 1, "MUL": 1},
        set(),
    ),
    "tanh": (activation("Tanh"), {**CONV, "TANH": 1}, set()),
    "softmax": (
        lambda n, x: n.op("Softmax", [product(n, x)], 5)[0],
        {**CONV, "CONV_2D": 1, "MEAN": 1, "FULLY_CONNECTED": 1, "SOFTMAX": 1},
        {"SOFTMAX"},
    ),
    "hard swish": (activation("HardSwish"), {**FLOAT_STEP, "HARD_SWISH": 1}, set()),
    "prelu": (activation("PRelu"), {**FLOAT_STEP, "PRELU": 1}, set()),
    "residual": (residual, {**CONV, "CONV_2D": 3, "ADD": 1}, set()),
    "average, padding counted": (
        average(1),
        {**CONV, "PAD": 1, "AVERAGE_POOL_2D": 1},
        {"AVERAGE_POOL_2D"},
    ),
    "average, padding left out": (
        average(0),
        {**FLOAT_STEP, "PAD": 1, "AVERAGE_POOL_2D": 1, "MUL": 1},
        set(),
    ),
    "bilinear": (resized("linear"), {**CONV, "RESIZE_BILINEAR": 1}, set()),
    "nearest": (
        resized("nearest", **RESIZED),
        {**CONV, "RESIZE_NEAREST_NEIGHBOR": 1},
        {"RESIZE_NEAREST_NEIGHBOR"},
    ),
    "product without a bias": (product, {**CONV, "CONV_2D": 1, "MEAN": 1, "FULLY_CONNECTED": 1}, set()),
    "rows of any size": (unequal_rows, {**CONV, "CONV_2D": 1, "MEAN": 1, "FULLY_CONNECTED": 1}, set()),
    "clip where codes end": (clipped(-0.3, 0.9), CONV, set()),
    "clip above codes' end": (clipped(0.25, 0.75), {**FLOAT_STEP, "MAXIMUM": 1}, set()),
    "shuffle": (
        shuffled,
        {**CONV, "RESHAPE": 4, "TRANSPOSE": 2, "SPLIT": 1, "CONCATENATION": 1},
        set(),
    ),
    "relu of the input": (lambda n, x: n.conv(n.act(x), 4), {**FLOAT_STEP, "CONV_2D": 1, "RELU": 1}, set()),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Coded, dict[str, int], set[str]]:
    build, census, left = CASES[request.param]
    return coded(net(build)), census, left


def test_operators(case: tuple[Coded, dict[str, int], set[str]]) -> None:
    made, census, _ = case
    assert census == made.census
    assert 0 == pairs(made.data)


def agrees(made: Coded, image: np.ndarray, *, most: int) -> None:
    """XNNPACK rounds once, as Q/DQ does: what differs are a few codes, of sums between two of them."""
    for name, (wanted, found) in made.both(image, delegate=True).items():
        off = np.abs(wanted - found)
        assert off.max() <= most, name
        assert np.mean(off > 0) <= (0.02 if most == 1 else 0.1), name


def test_xnnpack_gives_the_codes_of_onnx_runtime(
    case: tuple[Coded, dict[str, int], set[str]], request: pytest.FixtureRequest
) -> None:
    made, _, _ = case
    bilinear = "RESIZE_BILINEAR" in made.census  # its weights have 11 bits, and a convolution follows
    for image in images(made.quantized.graph, 3, seed=9):
        agrees(made, image, most=2 if bilinear else 1)


def test_every_layer_of_builtin_kernels_is_a_step_off_at_most(
    case: tuple[Coded, dict[str, int], set[str]], tmp_path: Path
) -> None:
    made, _, _ = case
    found = made.examined(images(made.quantized.graph, 1, seed=9)[0], tmp_path)
    assert found.divergence is None
    assert not found.blind


def test_xnnpack_takes_the_file(case: tuple[Coded, dict[str, int], set[str]], tmp_path: Path) -> None:
    made, _, left = case
    assert left == left_out(made, tmp_path)


def left_out(made: Coded, folder: Path) -> set[str]:
    path = folder / "net.tflite"
    path.write_bytes(made.data)
    taken = {place for part in delegation(path).partitions for place in part}
    return {name for place, name in enumerate(operators(made.data)) if place not in taken}


@pytest.mark.integration
def test_tflite_runtime_gives_the_same_codes(
    case: tuple[Coded, dict[str, int], set[str]], tflite_python: Path, tmp_path: Path
) -> None:
    made, census, _ = case
    path = tmp_path / "net.tflite"
    path.write_bytes(made.data)
    # Its QUANTIZE rounds numbers between two codes away from 0, which weights of a convolution multiply.
    most = 4 if "MUL" in census and "AVERAGE_POOL_2D" in census else 1
    with TfliteRuntime(tflite_python).load(path) as session:
        for image in images(made.quantized.graph, 3, seed=9):
            given = session.run({"image": made.to_file(image)})
            for name, (_, wanted) in made.both(image, delegate=False).items():
                assert np.abs(wanted - made.from_file(name, given[name])).max() <= most


@pytest.mark.parametrize("form", [Candidate("native", Options()), FOLD], ids=lambda c: c.form)
def test_v2_with_any_batch(form: Candidate, tmp_path: Path) -> None:
    graph = tiny_graph(dynamic_batch=True)
    made = coded(graph, form=form, recipe=Recipe())
    three = np.concatenate(images(graph, 3, seed=9))
    agrees(made, three, most=1)
    assert made.examined(three, tmp_path).divergence is None
    assert set() == left_out(made, tmp_path)
    assert {"QUANTIZE": 1, "DEQUANTIZE": 1} == {
        name: count for name, count in made.census.items() if name.endswith("QUANTIZE")
    }


@pytest.mark.parametrize("form", [Candidate("native", Options()), FOLD], ids=lambda c: c.form)
def test_v1_with_groups(form: Candidate, tmp_path: Path) -> None:
    small = ShuffleNetV1(2, None, 5, stem=8, stages=(16, 32, 48), units=(2, 1, 1))
    graph = captured(randomise(small), size=64)
    made = coded(graph, form=form)
    image = images(graph, 1, seed=9)[0]
    agrees(made, image, most=1)
    assert made.examined(image, tmp_path).divergence is None
    assert {"AVERAGE_POOL_2D"} == left_out(made, tmp_path)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize(("io", "border"), [("float", 1), ("int8", 0), ("uint8", 1)])
def test_the_border_is_what_was_asked_for(io: str, border: int, layout: str) -> None:
    made = coded(net(shuffled), io=io, layout=layout)
    kind = {"float": "FLOAT32", "int8": "INT8", "uint8": "UINT8"}[io]
    graph = model_of(made.data).subgraphs[0]
    wanted = getattr(schema.TensorType, kind)
    assert {wanted} == {graph.tensors[t].type for t in (*graph.inputs, *graph.outputs)}
    assert ["image"] == [graph.tensors[t].name.decode() for t in graph.inputs]
    assert border == made.census.get("QUANTIZE", 0) - (io == "uint8")
    for image in images(made.quantized.graph, 2, seed=9):
        agrees(made, image, most=1)


def stack(n: Net, x: str) -> str:
    return n.classify(layer(n, layer(n, layer(n, x))), 4)


STACK = ("relu1_0", "relu3_0", "relu5_0", "gemm")


@pytest.mark.parametrize(
    ("kept", "roundings"),
    [((0,), 1), ((1,), 1), ((0, 1), 1), ((1, 2), 1), ((3,), 0), ((0, 1, 2), 1), ((0, 2), 2)],
    ids=str,
)
def test_layers_that_are_kept_in_floats(kept: tuple[int, ...], roundings: int, tmp_path: Path) -> None:
    graph = net(stack)
    names = [str(v.name) for node in graph.nodes for v in node.outputs]
    chosen = [next(name for name in names if name.startswith(STACK[place])) for place in kept]
    made = coded(graph, floats=chosen)
    # One QUANTIZE for the input, and one behind each run of neighbours that codes follow.
    assert 1 + roundings == made.census["QUANTIZE"]
    assert 0 == pairs(made.data)
    model = model_of(made.data)
    weighted = [
        op
        for op in model.subgraphs[0].operators
        if NAMES[model.operatorCodes[op.opcodeIndex].builtinCode] in ("CONV_2D", "FULLY_CONNECTED")
    ]
    types = [model.subgraphs[0].tensors[op.inputs[1]].type == 0 for op in weighted]
    assert [place in kept for place in range(4)] == types
    image = images(graph, 1, seed=9)[0]
    assert made.examined(image, tmp_path).divergence is None
    assert set() == left_out(made, tmp_path)


def test_nodes_without_names_are_kept_one_by_one() -> None:
    graph = net(stack)
    for node in graph.nodes:
        node.name = None
    assert coded(net(stack), floats=["relu3_0"]).census == coded(graph, floats=["relu3_0"]).census


def test_versions_and_the_oldest_runtime() -> None:
    made = coded(net(lambda n, x: n.op("Softmax", [product(n, n.excite(layer(n, x)))], 5)[0]))
    assert {
        "CONV_2D": {3},
        "DEQUANTIZE": {2},
        "FULLY_CONNECTED": {4},
        "LOGISTIC": {2},
        "MEAN": {2},
        "MUL": {2},
        "QUANTIZE": {1},
        "SOFTMAX": {2},
    } == made.versions
    assert "2.14.0" == made.minimum_runtime
    assert "1.14.0" == coded(net(lambda n, x: n.excite(layer(n, x)))).minimum_runtime


def grids(made: Coded) -> dict[str, Scale]:
    return dict(made.quantized.in_codes)


def test_bounded_functions_have_the_grid_that_kernels_ask_for() -> None:
    found = grids(coded(net(lambda n, x: n.excite(layer(n, x)))))
    assert Scale(1 / 256, -128) == next(s for name, s in found.items() if name.startswith("sigmoid"))


@pytest.mark.parametrize(("factor", "fixed"), [(0.01, True), (10.0, False)])
def test_what_is_tied_to_a_bounded_function_decides(factor: float, fixed: bool) -> None:
    def joined(n: Net, x: str) -> str:
        other = n.op("Abs", [n.op("Mul", [x, n.constant(np.float32(factor))], 3)[0]], 3)[0]
        return n.conv(n.join(other, n.act(n.conv(x, 4), "Sigmoid")), 4)

    made = coded(net(joined))
    (found,) = {s for name, s in grids(made).items() if name.startswith(("sigmoid", "abs", "concat"))}
    assert fixed == (Scale(1 / 256, -128) == found)
    assert ({2} if fixed else {1}) == made.versions["LOGISTIC"]  # 1: in floats


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nets(), st.data())
def test_any_network(graph: Graph, data: st.DataObject) -> None:
    names = layers(graph)
    floats = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=2)) if names else []
    layout = data.draw(st.sampled_from(["nhwc", "nchw"]))
    rng = np.random.default_rng(0)
    shape = [d if isinstance(d, int) else 2 for d in graph.shape(graph.inputs[0])]
    batches = [rng.standard_normal(shape, dtype=np.float32) for _ in range(4)]
    made = coded(graph, floats=floats, layout=layout, batches=batches)
    assert 0 == pairs(made.data)
    found = made.examination(batches[0]).divergence
    assert (
        found is None or found.kind == "gradual"
    )  # no layer is wrong; together they may be far from the floats
