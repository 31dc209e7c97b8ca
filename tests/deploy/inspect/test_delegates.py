"""The rules of the TFLite delegates: against LiteRT where it can be asked, against their source where not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from shufflectl.converters.rewrite.lowering import apply
from shufflectl.deploy.inspect.delegates import Delegate, DelegateReport, Support, delegate_nodes, partitions
from shufflectl.deploy.inspect.gpu import GPU, splits_groups
from shufflectl.deploy.inspect.nnapi import API_LEVELS, nnapi
from shufflectl.deploy.inspect.tflite_graph import Node, Tensor, read_nodes
from shufflectl.deploy.inspect.xnnpack import XNNPACK
from shufflectl.deploy.runtimes.litert import delegation
from support.nets import tiny_graph
from support.tflite import emit_bytes, graph_of
from support.tflite_files import Op, tflite_bytes

RNG = np.random.default_rng(0)


def weights(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def nodes_of(path: Path, data: bytes) -> tuple[Node, ...]:
    return read_nodes(saved(path / "a.tflite", data))


def judged(delegate: Delegate, path: Path, data: bytes) -> DelegateReport:
    return delegate_nodes(delegate, nodes_of(path, data))


# Bodies of graphs that the emitter writes, on an input x of 1x8x10x9; whether XNNPACK takes all of it.
BODIES = {
    "dense": ("y = Conv(x, w)", {"w": weights(12, 8, 1, 1)}, True),
    "depthwise": ("y = Conv<group=8>(x, w)", {"w": weights(8, 1, 3, 3)}, True),
    "grouped": ("y = Conv<group=2>(x, w)", {"w": weights(6, 4, 1, 1)}, True),
    "gather": (
        "i = Constant<value_ints=[3,1,2]>() a = Relu(x) b = Gather<axis=1>(a, i) y = Relu(b)",
        {},
        False,
    ),
    "concat 5": ("y = Concat<axis=1>(x, x, x, x, x)", {}, True),
    "concat 6": ("a = Relu(x) b = Concat<axis=1>(a, a, a, a, a, a) y = Relu(b)", {}, False),
    "split 4": ("a, b, c, d = Split<axis=1, num_outputs=4>(x) y = Concat<axis=1>(d, b, c, a)", {}, True),
    "shuffle at rank 5": (
        (
            "s = Constant<value_ints=[1,2,4,10,9]>() t = Constant<value_ints=[1,8,10,9]>() "
            "a = Reshape(x, s) b = Transpose<perm=[0,2,1,3,4]>(a) y = Reshape(b, t)"
        ),
        {},
        True,
    ),
    "shuffle at rank 4": (
        (
            "s = Constant<value_ints=[1,2,4,90]>() t = Constant<value_ints=[1,8,10,9]>() "
            "a = Reshape(x, s) b = Transpose<perm=[0,2,1,3]>(a) y = Reshape(b, t)"
        ),
        {},
        True,
    ),
    "slice": (
        (
            "b = Constant<value_ints=[2]>() e = Constant<value_ints=[6]>() d = Constant<value_ints=[1]>() "
            "y = Slice(x, b, e, d)"
        ),
        {},
        True,
    ),
    "slice with steps": (
        (
            "b = Constant<value_ints=[0]>() e = Constant<value_ints=[8]>() d = Constant<value_ints=[1]>() "
            "s = Constant<value_ints=[2]>() y = Slice(x, b, e, d, s)"
        ),
        {},
        False,
    ),
    "max pool": ("a = Relu(x) y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(a)", {}, True),
    "max pool of negatives": (
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)",
        {},
        False,
    ),
    "max pool with gaps": ("y = MaxPool<kernel_shape=[2,2], strides=[3,3]>(x)", {}, False),
    "average pool": ("y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)", {}, True),
    "mean": ("y = GlobalAveragePool(x)", {}, True),
    "softmax": ("y = Softmax<axis=1>(x)", {}, True),
    "log": ("a = Relu(x) y = Log(a)", {}, True),
    "pow": ("two = Constant<value_float=2.5>() a = Relu(x) y = Pow(a, two)", {}, False),
    "exp": ("y = Exp(x)", {}, True),
    "leaky": ("y = LeakyRelu<alpha=0.1>(x)", {}, True),
    "hard swish": ("y = HardSwish(x)", {}, True),
    "elu": ("y = Elu(x)", {}, True),
    "sigmoid": ("y = Sigmoid(x)", {}, True),
    "multiply": ("a = Relu(x) y = Mul(x, a)", {}, True),
    "maximum": ("a = Neg(x) y = Max(x, a)", {}, True),
    "nearest": (
        (
            'r = Constant<value_floats=[1.0,1.0,2.0,2.0]>() y = Resize<mode="nearest", '
            'coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , r)'
        ),
        {},
        False,
    ),
    "bilinear": (
        'r = Constant<value_floats=[1.0,1.0,2.0,2.0]>() y = Resize<mode="linear">(x, , r)',
        {},
        True,
    ),
    "tile": ("t = Constant<value_ints=[1,1,2,1]>() y = Tile(x, t)", {}, False),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_rules_of_xnnpack_agree_with_litert(name: str, precision: str, tmp_path: Path) -> None:
    body, constants, whole = BODIES[name]
    data = emit_bytes(graph_of(body, constants), precision=precision)
    found = delegation(saved(tmp_path / "a.tflite", data))
    nodes = nodes_of(tmp_path, data)
    report = delegate_nodes(XNNPACK, nodes)
    inside = {place for partition in found.partitions for place in partition}
    assert {n.index for n in nodes if not n.unpacks} - inside == {r.index for r in report.refused}
    assert len(found.partitions) == report.partitions
    assert whole == (not report.refused)


@pytest.mark.parametrize("form", ["native", "rank4", "gather", "fold"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_whole_networks_agree_with_litert(form: str, precision: str, tmp_path: Path) -> None:
    graph, _ = apply(form, tiny_graph().clone())
    data = emit_bytes(graph, precision=precision)
    found = delegation(saved(tmp_path / "a.tflite", data))
    report = judged(XNNPACK, tmp_path, data)
    assert len(found.partitions) == report.partitions
    assert (form == "gather") == (report.partitions > 1)


def test_operators_that_no_emitter_writes_agree_with_litert(tmp_path: Path) -> None:
    shapes = {
        "x": (1, 4, 4, 8),
        "a": (1, 4, 4, 8),
        "b": (1, 4, 4, 3),
        "c": (1, 4, 4, 5),
        "y": (2, 1, 4, 4, 3),
    }
    ops = [
        Op("ABS", ["x"], ["a"]),
        Op("SPLIT_V", ["a", "sizes", "axis"], ["b", "c"], 1, "SplitVOptions", {"numSplits": 2}),
        Op("PACK", ["b", "b"], ["y"], 1, "PackOptions", {"valuesCount": 2, "axis": 0}),
    ]
    constants = {"sizes": np.array([3, 5], np.int32), "axis": np.array(3, np.int32)}
    data = tflite_bytes(ops, shapes, constants, outputs=["y", "c"])
    found = delegation(saved(tmp_path / "a.tflite", data))
    report = judged(XNNPACK, tmp_path, data)
    assert ((0,),) == found.partitions
    assert ["SPLIT_V", "PACK"] == [r.type for r in report.refused]
    assert 1 == report.partitions


UNARY = """
    ABS CEIL COS EXP FLOOR GELU HARD_SWISH LOG NEG RELU_N1_TO_1 RELU_0_TO_1 RELU RELU6 ROUND RSQRT SIN SIGN
    SQRT SQUARE ELU LOGISTIC TANH L2_NORMALIZATION LOG_SOFTMAX
    """.split()  # noqa: SIM905 - one name a line would take a page
SHAPE = (1, 4, 4, 8)


def agrees_with_litert(
    path: Path,
    ops: Sequence[Op],
    shapes: dict[str, Sequence[int]],
    constants: dict[str, Any] | None = None,
    outputs: Sequence[str] = ("y",),
) -> bool:
    """Compare rules with LiteRT; return whether XNNPACK takes all of it."""
    data = tflite_bytes(ops, {"x": SHAPE, "y": SHAPE, **shapes}, constants, outputs=outputs)
    found = delegation(saved(path / "a.tflite", data))
    report = judged(XNNPACK, path, data)
    inside = {place for partition in found.partitions for place in partition}
    assert set(range(len(ops))) - inside == {r.index for r in report.refused}
    return not report.refused


@pytest.mark.parametrize("kind", UNARY)
def test_unary_operators_agree_with_litert(kind: str, tmp_path: Path) -> None:
    agrees_with_litert(tmp_path, [Op(kind, ["x"], ["y"])], {})


@pytest.mark.parametrize(
    "kind", ["MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "POW", "FLOOR_DIV", "FLOOR_MOD"]
)
def test_binary_operators_agree_with_litert(kind: str, tmp_path: Path) -> None:
    agrees_with_litert(tmp_path, [Op("ABS", ["x"], ["a"]), Op(kind, ["x", "a"], ["y"])], {"a": SHAPE})


@pytest.mark.parametrize("activation", range(6))
def test_fused_activations_agree_with_litert(activation: int, tmp_path: Path) -> None:
    op = Op("ADD", ["x", "x"], ["y"], 1, "AddOptions", {"fusedActivationFunction": activation})
    assert (activation < 4) == agrees_with_litert(tmp_path, [op], {})


@pytest.mark.parametrize("count", [2, 4, 5])
def test_splits_agree_with_litert(count: int, tmp_path: Path) -> None:
    names = [f"o{i}" for i in range(count)]
    shapes: dict[str, Sequence[int]] = dict.fromkeys(names, (1, 4, 4, 40 // count))
    op = Op("SPLIT", ["axis", "x"], names, 1, "SplitOptions", {"numSplits": count})
    constants = {"axis": np.array(3, np.int32)}
    whole = agrees_with_litert(tmp_path, [op], {**shapes, "x": (1, 4, 4, 40)}, constants, names)
    assert (count <= 4) == whole


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_concatenations_agree_with_litert(count: int, tmp_path: Path) -> None:
    op = Op("CONCATENATION", ["x"] * count, ["y"], 1, "ConcatenationOptions", {"axis": 3})
    assert (2 <= count <= 5) == agrees_with_litert(tmp_path, [op], {"y": (1, 4, 4, 8 * count)})


@pytest.mark.parametrize("rank", [4, 5, 6, 7])
def test_ranks_agree_with_litert(rank: int, tmp_path: Path) -> None:
    ones = (1,) * (rank - 3)
    turned = np.array([*range(rank - 2), rank - 1, rank - 2], np.int32)
    op = Op("TRANSPOSE", ["x", "perm"], ["y"], 6)
    shapes: dict[str, Sequence[int]] = {"x": (*ones, 4, 4, 8), "y": (*ones, 4, 8, 4)}
    assert (rank <= 6) == agrees_with_litert(tmp_path, [op], shapes, {"perm": turned})


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (2, 3), (1, 2), (1, 1)])
def test_windows_agree_with_litert(size: int, stride: int, tmp_path: Path) -> None:
    fields = {"filterHeight": size, "filterWidth": size, "strideH": stride, "strideW": stride, "padding": 1}
    side = 1 + (4 - size) // stride
    op = Op("MAX_POOL_2D", ["x"], ["y"], 1, "Pool2DOptions", fields)
    assert (stride <= size) == agrees_with_litert(tmp_path, [op], {"y": (1, side, side, 8)})


def test_the_gpu_delegate_refuses_rank_5_and_takes_the_largest_partition(tmp_path: Path) -> None:
    report = judged(GPU, tmp_path, emit_bytes(tiny_graph()))
    assert {"RESHAPE": 8, "TRANSPOSE": 4} == counts(report)
    assert all("rank 5" in r.why for r in report.refused)
    assert report.partitions > 1
    assert report.operators == report.delegated + len(report.fallback)
    assert report.delegated < report.taken


@pytest.mark.parametrize("form", ["rank4", "gather", "fold"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_gpu_delegate_takes_shuffles_at_rank_4_whole(form: str, precision: str, tmp_path: Path) -> None:
    report = judged(GPU, tmp_path, emit_bytes(apply(form, tiny_graph().clone())[0], precision=precision))
    assert (report.operators, 1, ()) == (report.delegated, report.partitions, report.fallback)


def test_weights_that_are_unpacked_are_no_operators(tmp_path: Path) -> None:
    single, half = (
        judged(GPU, tmp_path, emit_bytes(tiny_graph(), precision=precision)) for precision in ("fp32", "fp16")
    )
    assert (single.operators, single.taken) == (half.operators, half.taken)
    assert [r.name for r in single.refused] == [r.name for r in half.refused]
    # The image is padded before the first weights are unpacked, on the CPU: one partition more.
    assert single.partitions + 1 == half.partitions


@pytest.mark.parametrize(("channels", "splits"), [((8, 8), False), ((6, 8), True), ((8, 6), True)])
def test_groups_that_are_no_multiples_of_4_are_split_by_the_gpu_delegate(
    channels: tuple[int, int], splits: bool, tmp_path: Path
) -> None:
    each, made = channels
    shape = (1, 2 * each, 5, 5)
    graph = graph_of("y = Conv<group=2>(x, w)", {"w": weights(2 * made, each, 1, 1)}, shape)
    (node,) = (n for n in nodes_of(tmp_path, emit_bytes(graph)) if n.type == "CONV_2D")
    assert splits == splits_groups(node)
    assert "" == GPU.refuses(node)


def test_a_dense_or_depthwise_convolution_is_not_split(tmp_path: Path) -> None:
    for body, kernel in (("Conv(x, w)", (6, 8, 1, 1)), ("Conv<group=8>(x, w)", (8, 1, 3, 3))):
        data = emit_bytes(graph_of(f"y = {body}", {"w": weights(*kernel)}))
        assert not any(splits_groups(node) for node in nodes_of(tmp_path, data))


def test_nnapi_refuses_grouped_convolutions_by_their_version(tmp_path: Path) -> None:
    data = emit_bytes(graph_of("y = Conv<group=2>(x, w)", {"w": weights(6, 4, 1, 1)}))
    report = judged(nnapi(), tmp_path, data)
    assert ["CONV_2D of version 6, and it takes up to 5"] == [r.why for r in report.refused]


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("dense", 27),
        ("sigmoid", 27),
        ("shuffle at rank 4", 28),
        ("mean", 28),
        ("split 4", 29),
        ("maximum", 29),
        ("leaky", 29),
        ("exp", 29),
        ("elu", 30),
    ],
)
def test_nnapi_takes_operators_from_an_api_level_on(name: str, level: int, tmp_path: Path) -> None:
    body, constants, _ = BODIES[name]
    nodes = nodes_of(tmp_path, emit_bytes(graph_of(body, constants)))
    taken = [not delegate_nodes(nnapi(api), nodes).refused for api in API_LEVELS]
    assert [api >= level for api in API_LEVELS] == taken


def test_nnapi_takes_three_partitions(tmp_path: Path) -> None:
    report = judged(nnapi(), tmp_path, emit_bytes(tiny_graph()))
    assert (5, 3) == (report.partitions, report.most_partitions)
    assert report.left_out


def counts(report: DelegateReport) -> dict[str, int]:
    found: dict[str, int] = {}
    for refusal in report.refused:
        found[refusal.type] = found.get(refusal.type, 0) + 1
    return found


IMAGE = Tensor(0, "x", (1, 4, 4, 8), "float32")
RESULT = Tensor(9, "y", (1, 4, 4, 8), "float32")


def a_node(kind: str, *inputs: Tensor | None, version: int = 1, **options: float) -> Node:
    return Node(0, "y", kind, version, inputs or (IMAGE,), (RESULT,), options)


def number(*values: int, dtype: str = "int32") -> Tensor:
    return Tensor(5, "c", (len(values),), dtype, constant=True, values=values)


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (a_node("GATHER", IMAGE, number(1, 2, dtype="int64")), "indices of type int64"),
        (a_node("GATHER", IMAGE, number(1, 2), version=2), "version 2"),
        (a_node("SOFTMAX", beta=2.0), "beta"),
        (a_node("SLICE", replace(IMAGE, shape=(4, 8)), number(0, 0), number(1, 1)), "rank 2"),
        (a_node("STRIDED_SLICE", IMAGE, *[number(0)] * 3, shrinkAxisMask=1), "shrinkAxisMask"),
        (a_node("PAD", IMAGE, replace(number(0, 0), shape=(5, 2))), "paddings"),
        (a_node("MIRROR_PAD", IMAGE, replace(number(0, 0), shape=(4, 2)), mode=1), "mode"),
        (a_node("ADD", IMAGE, replace(IMAGE, index=1, shape=(4, 8))), "operands of shapes"),
        (a_node("DIV", IMAGE, IMAGE, fusedActivationFunction=5), "SIGN_BIT"),
        (a_node("RELU", replace(IMAGE, dtype="int32")), "type int32"),
        (a_node("UNIQUE"), "it has no UNIQUE"),
        (a_node("CUSTOM:mine"), "it has no CUSTOM:mine"),
        (a_node("MEAN", IMAGE, replace(IMAGE, dtype="int32")), "inputs that are not constant"),
        (a_node("RESIZE_BILINEAR", IMAGE, number(8, 8), alignCorners=1, halfPixelCenters=1), "align_corners"),
    ],
    ids=lambda value: value.type if isinstance(value, Node) else "",
)
def test_the_gpu_delegate_says_why(node: Node, why: str) -> None:
    assert why in GPU.refuses(node)


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (a_node("CONV_2D", IMAGE, IMAGE), "2 inputs"),
        (a_node("CONV_2D", IMAGE, IMAGE, None), "no bias"),
        (a_node("CONV_2D", IMAGE, IMAGE, Tensor(2, "b", (8,), "float32", True)), "not constant"),
        (a_node("ADD", IMAGE, IMAGE, fusedActivationFunction=4), "TANH"),
        (a_node("ADD", IMAGE, replace(IMAGE, dtype="int32")), "type int32"),
        (a_node("RELU", replace(IMAGE, shape=(1,) * 7)), "rank 7"),
        (a_node("RELU", replace(IMAGE, shape=(0, 8))), "no elements"),
        (a_node("LEAKY_RELU", alpha=0.0), "slope of 0"),
        (a_node("TRANSPOSE", IMAGE, replace(number(0, 1), constant=False)), "not constant"),
        (a_node("SLICE", IMAGE, number(0), number(-1)), "not positive"),
        (a_node("SPLIT", number(3), IMAGE), "1 outputs"),
        (a_node("DEPTH_TO_SPACE", blockSize=1), "blocks of 1"),
        (a_node("LOGISTIC", replace(IMAGE, dtype="int8", scales=8, axis=3)), "one scale"),
        (a_node("EXPAND_DIMS", IMAGE, number(0)), "it has no EXPAND_DIMS"),
    ],
    ids=lambda value: value.type if isinstance(value, Node) else "",
)
def test_xnnpack_says_why(node: Node, why: str) -> None:
    assert why in XNNPACK.refuses(node)


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (a_node("RESHAPE", replace(IMAGE, shape=(1, 1, 4, 4, 8))), "rank 5"),
        (a_node("CONCATENATION", IMAGE, IMAGE, fusedActivationFunction=1), "RELU"),
        (a_node("SPLIT_V", IMAGE, number(3, 5), replace(number(3), constant=False)), "not constant"),
        (a_node("PACK", IMAGE, IMAGE, version=2, axis=-1), "last axis"),
        (a_node("RESIZE_NEAREST_NEIGHBOR", IMAGE, IMAGE), "not constant"),
        (a_node("MEAN", replace(IMAGE, dtype="int32"), number(1)), "type int32"),
        (a_node("TRANSPOSE", IMAGE, number(0, 1), version=4), "version 4"),
    ],
    ids=lambda value: value.type if isinstance(value, Node) else "",
)
def test_nnapi_says_why(node: Node, why: str) -> None:
    assert why in nnapi(30).refuses(node)


def test_every_table_names_its_source() -> None:
    for delegate in (GPU, XNNPACK, *map(nnapi, API_LEVELS)):
        assert delegate.source.endswith(".cc")
        assert delegate.operators


def chain(edges: Sequence[Sequence[int]]) -> list[Node]:
    """Return nodes, the inputs of each being the results of earlier ones; no edge reads the model's input."""
    made = [Tensor(100 + i, f"t{i}", (1,), "float32") for i in range(len(edges))]
    return [
        Node(i, f"t{i}", "ANY", 1, tuple(made[j] for j in edge) or (IMAGE,), (made[i],), {})
        for i, edge in enumerate(edges)
    ]


def sweeps(nodes: Sequence[Node], wanted: set[int]) -> list[tuple[bool, set[int]]]:
    """TFLite's partitioner as its source spells it: sweep over all operators until nothing joins the run."""
    made = {t.index for n in nodes for t in n.outputs}
    ready: set[int] = set()
    done: set[int] = set()
    runs: list[tuple[bool, set[int]]] = []
    while len(done) < len(nodes):
        kind: bool | None = None
        run: set[int] = set()
        moved = True
        while moved:
            moved = False
            for node in nodes:
                if node.index in done or any(t.index in made - ready for t in node.given):
                    continue
                kind = node.index in wanted if kind is None else kind
                if (node.index in wanted) == kind:
                    done.add(node.index)
                    run.add(node.index)
                    ready |= {t.index for t in node.outputs}
                    moved = True
        runs.append((bool(kind), run))
    return runs


@st.composite
def tangles(draw: st.DrawFn) -> tuple[list[Node], set[int]]:
    count = draw(st.integers(1, 14))
    edges = [
        draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else [] for i in range(count)
    ]
    return chain(edges), draw(st.sets(st.integers(0, count - 1)))


@given(tangles())
@settings(max_examples=200, deadline=None)
def test_partitions_are_those_of_tflites_own_sweeps(tangle: tuple[list[Node], set[int]]) -> None:
    nodes, wanted = tangle
    assert sweeps(nodes, wanted) == [(run.delegated, set(run.nodes)) for run in partitions(nodes, wanted)]


@given(tangles())
@settings(max_examples=100, deadline=None)
def test_a_report_adds_up(tangle: tuple[list[Node], set[int]]) -> None:
    nodes, wanted = tangle
    picky = Support(None, (lambda node: "" if node.index in wanted else "not wanted",))
    report = delegate_nodes(Delegate("d", "D", "a.cc", {"ANY": picky}, most_partitions=1), nodes)
    assert len(nodes) == report.operators == report.delegated + len(report.fallback)
    assert len(wanted) == report.taken == report.delegated + len(report.left_out)
    assert sorted(r.index for r in report.fallback) == [r.index for r in report.fallback]
