import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from converters.rewrite.nets import MegviiV2, captured, run
from shufflectl.converters.graph import Graph
from shufflectl.converters.rewrite.analyze import analyze
from shufflectl.converters.rewrite.provenance import Channel, Shuffle
from support.graphs import graph_from_text
from support.nets import ShuffleNetV2, tiny_graph


def held(graph: Graph, outputs: list[str]) -> None:
    """Assert by running the graph that every map of an output says which channels it holds."""
    provenance = analyze(graph)
    proto = graph.to_proto()
    rng = np.random.default_rng(0)
    feeds = {
        str(v.name): rng.standard_normal(
            [d if isinstance(d, int) else 4 for d in graph.shape(v)], dtype=np.float32
        )
        for v in graph.inputs
    }
    values = {**feeds, **run(proto, feeds)}
    for name in outputs:
        channels = provenance.maps[name].channels
        expected = np.stack([values[c.source][:, c.number] for c in channels], axis=1)
        np.testing.assert_array_equal(expected.reshape(values[name].shape), values[name])


class Build:
    """A graph of data movement over `x` [N, C, H, W], grown one operator at a time."""

    def __init__(self, channels: int, *, dynamic: bool, height: int = 2, width: int = 3) -> None:
        self.height, self.width = height, width
        batch = "batch" if dynamic else 2
        self.inputs = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, channels, height, width])
        ]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, array: object, dtype: type = np.int64) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> list[str]:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    def reshape(self, x: str, *shape: int) -> str:
        return self.node("Reshape", x, self.constant(shape))[0]

    def transpose(self, x: str, *perm: int) -> str:
        return self.node("Transpose", x, perm=perm)[0]

    def finish(self, outputs: list[str]) -> Graph:
        graph = helper.make_graph(
            self.nodes,
            "g",
            self.inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        return Graph(ir.from_proto(model))


@st.composite
def moved(draw: st.DrawFn) -> tuple[Graph, list[str]]:
    """Random channel movement in mixed spellings; every output is a channel map by construction."""
    channels = draw(st.integers(1, 12))
    build = Build(channels, dynamic=draw(st.booleans()))
    tensors = [("x", channels)]
    h, w = build.height, build.width
    for _ in range(draw(st.integers(1, 6))):
        name, count = draw(st.sampled_from(tensors))
        divisors = [g for g in range(1, count + 1) if count % g == 0]
        group = draw(st.sampled_from(divisors))
        kind = draw(
            st.sampled_from(
                [
                    "shuffle5",
                    "shuffle4",
                    "folded",
                    "split",
                    "slice",
                    "strided",
                    "gather",
                    "concat",
                    "stack",
                    "squeeze",
                    "reverse",
                ]
            )
        )
        if kind == "shuffle5":
            y = build.reshape(name, -1, group, count // group, h, w)
            made = [(build.reshape(build.transpose(y, 0, 2, 1, 3, 4), -1, count, h, w), count)]
        elif kind == "shuffle4":
            y = build.reshape(name, 0, group, count // group, h * w)
            made = [(build.reshape(build.transpose(y, 0, 2, 1, 3), -1, count, h, w), count)]
        elif kind == "folded":
            y = build.reshape(name, -1, group, h * w)  # [N * C / g, g, H * W]
            y = build.reshape(build.transpose(y, 1, 0, 2), group, -1, count // group, h, w)
            made = [
                (build.node("Gather", y, build.constant(i), axis=0)[0], count // group)
                for i in range(min(group, 3))
            ]
        elif kind == "split":
            sizes = [group] * (count // group)
            names = build.node("Split", name, build.constant(sizes), outputs=len(sizes), axis=1)
            made = [(n, group) for n in names]
        elif kind in ("slice", "strided", "reverse"):
            start = draw(st.integers(0, count - 1))
            step = 1 if kind == "slice" else draw(st.integers(1, 3)) * (-1 if kind == "reverse" else 1)
            end = (1 << 62) * (1 if step > 0 else -1)
            bounds = [build.constant([v]) for v in (start, end, 1, step)]
            made = [(build.node("Slice", name, *bounds)[0], len(range(count)[slice(start, None, step)]))]
        elif kind == "gather":
            index = draw(st.lists(st.integers(-count, count - 1), min_size=1, max_size=6))
            made = [(build.node("Gather", name, build.constant(index), axis=1)[0], len(index))]
        elif kind == "concat":
            others = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=3))
            total = count + sum(c for _, c in others)
            made = [(build.node("Concat", name, *(n for n, _ in others), axis=1)[0], total)]
        elif kind == "stack":
            other = draw(st.sampled_from([t for t in tensors if t[1] == count]))
            parts = [build.node("Unsqueeze", n, build.constant([2]))[0] for n in (name, other[0])]
            y = build.node("Concat", *parts, axis=2)[0]
            made = [(build.reshape(y, -1, 2 * count, h, w), 2 * count)]
        else:
            y = build.node("Unsqueeze", name, build.constant([1, -1]))[0]
            made = [(build.node("Squeeze", y, build.constant([1, 5]))[0], count)]
        tensors += [t for t in made if t[1] <= 48]
    outputs = [name for name, _ in tensors[1:]] or [build.node("Identity", "x")[0]]
    return build.finish(outputs), outputs


@settings(max_examples=60, deadline=None)
@given(moved())
def test_maps_say_which_channels_every_tensor_holds(case: tuple[Graph, list[str]]) -> None:
    graph, outputs = case
    held(graph, outputs)
    assert () == analyze(graph).left_alone


def test_torchvision_form_has_one_site_a_unit() -> None:
    provenance = analyze(tiny_graph())
    assert ["shuffle"] * 4 == [site.kind for site in provenance.sites]
    assert "concat of 8 + 8, channel shuffle g=2 of 16 channels, split into 8 + 8" == (
        provenance.sites[0].description
    )
    assert "concat of 12 + 12, channel shuffle g=2 of 24 channels" == provenance.sites[3].description
    assert () == provenance.left_alone
    assert 2 == len(provenance.regions)


def test_dynamic_batch_gives_the_same_sites() -> None:
    assert analyze(tiny_graph()).sites == analyze(tiny_graph(dynamic_batch=True)).sites


@pytest.mark.parametrize(
    ("parts", "dynamic_batch"), [("index", False), ("index", True), ("chunk", False), ("unbind", True)]
)
def test_megvii_form_has_one_site_a_unit(parts: str, dynamic_batch: bool) -> None:
    graph = captured(MegviiV2((2, 3), (8, 24, 36, 32), parts=parts), dynamic_batch=dynamic_batch)
    provenance = analyze(graph)
    assert ["shuffle", "concat", "shuffle", "shuffle", "concat"] == [s.kind for s in provenance.sites]
    assert Shuffle(12, 24) == provenance.sites[0].form  # even channels, then odd ones
    assert "concat of 8 + 16, channel shuffle g=12 of 24 channels, split into 12 + 12" == (
        provenance.sites[0].description
    )
    assert () == provenance.left_alone


def test_megvii_maps_reach_through_units() -> None:
    provenance = analyze(captured(MegviiV2((3,), (8, 24, 32))))
    final = provenance.sites[-1].outputs[-1]
    channels = provenance.maps[final.name].channels
    # Even channels pass: of the even channels of cat(proj [8], main [16]) the even ones again, and so on.
    assert 24 == len(channels)
    assert [0, 4] == [c.number for c in channels if c.source == channels[0].source]
    assert 4 == len(provenance.maps[final.name].sources)


class _Library(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 1)
        self.shuffle = nn.ChannelShuffle(groups)
        self.last = nn.Conv2d(24, 4, 1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.shuffle(self.conv(x)))


@pytest.mark.parametrize("groups", [3])
def test_torchs_own_channel_shuffle_is_a_shuffle(groups: int) -> None:
    (site,) = analyze(captured(_Library(groups), size=8)).sites
    assert Shuffle(groups, 24) == site.form


def test_official_export_of_a_file_is_understood() -> None:
    # TorchScript's exporter writes Constant nodes for shapes, and Slice or Split for chunk.
    text = """
    g (float[1,6,4,4] x) => (float[1,3,4,4] a, float[1,3,4,4] b) {
        s = Constant <value = int64[5] {1,2,3,4,4}> ()
        r = Reshape (x, s)
        t = Transpose <perm = [0,2,1,3,4]> (r)
        u = Constant <value = int64[4] {1,6,4,4}> ()
        y = Reshape (t, u)
        z0 = Constant <value = int64[1] {0}> ()
        z3 = Constant <value = int64[1] {3}> ()
        z6 = Constant <value = int64[1] {6}> ()
        ax = Constant <value = int64[1] {1}> ()
        a = Slice (y, z0, z3, ax)
        b = Slice (y, z3, z6, ax)
    }"""
    graph = graph_from_text(text)
    (site,) = analyze(graph).sites
    assert "channel shuffle g=2 of 6 channels, split into 3 + 3" == site.description
    held(graph, ["a", "b"])


@pytest.mark.parametrize("opset", [9, 11, 13])
def test_attribute_forms_of_older_operator_sets_are_read(opset: int) -> None:
    nodes = [
        helper.make_node("Slice", ["x"], ["s"], axes=[1], starts=[2], ends=[100])
        if opset < 10
        else helper.make_node("Slice", ["x", "two", "many", "one"], ["s"]),
        helper.make_node("Unsqueeze", ["s"], ["u"], axes=[2])
        if opset < 13
        else helper.make_node("Unsqueeze", ["s", "axis2"], ["u"]),
        helper.make_node("Squeeze", ["u"], ["q"], axes=[2])
        if opset < 13
        else helper.make_node("Squeeze", ["u", "axis2"], ["q"]),
        helper.make_node("Split", ["q"], ["a", "b"], axis=1, split=[1, 3])
        if opset < 13
        else helper.make_node("Split", ["q", "sizes"], ["a", "b"], axis=1),
    ]
    constants = {"two": [2], "many": [100], "one": [1], "axis2": [2], "sizes": [1, 3]}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6, 2, 2])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "ab"],
        [numpy_helper.from_array(np.asarray(v, np.int64), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    provenance = analyze(Graph(ir.from_proto(onnx.shape_inference.infer_shapes(model))))
    assert (Channel("x", 2),) == provenance.maps["a"].channels
    assert (Channel("x", 3), Channel("x", 4), Channel("x", 5)) == provenance.maps["b"].channels


def test_flatten_of_one_position_is_a_channel_map() -> None:
    graph = graph_from_text("g (float[1,6,1,1] x) => (float[1,6] y) { y = Flatten <axis = 1> (x) }")
    (site,) = analyze(graph).sites
    assert "identity" == site.kind
    assert site.outputs[0].reshaped


def test_flatten_of_many_positions_is_left_alone_with_the_reason() -> None:
    graph = graph_from_text("g (float[1,6,2,2] x) => (float[1,24] y) { y = Flatten <axis = 1> (x) }")
    provenance = analyze(graph)
    assert () == provenance.sites
    (left,) = provenance.left_alone
    assert "'y' [1, 24] does not have the batch and positions of 'x' [1, 6, 2, 2]" in left.reason


def test_spatial_transpose_is_left_alone_with_the_element_that_proves_it() -> None:
    graph = graph_from_text(
        "g (float[1,6,2,2] x) => (float[1,6,2,2] y) { y = Transpose <perm = [0,1,3,2]> (x) }"
    )
    (left,) = analyze(graph).left_alone
    assert (
        "'y' is not a channel map: its channel 0 holds, at batch index 0 and position 1, "
        "the element [0, 0, 1, 0] of 'x'"
    ) == left.reason


def test_a_batch_that_moves_into_channels_is_left_alone() -> None:
    graph = graph_from_text(
        "g (float[2,2,2,2] x) => (float[2,2,2,2] y) { y = Transpose <perm = [1,0,2,3]> (x) }"
    )
    assert 1 == len(analyze(graph).left_alone)


def test_computed_shapes_are_left_alone_with_the_reason() -> None:
    text = """
    g (float[1,4,2,2] x, int64[4] s) => (float[1,4,2,2] y) {
        r = Reshape (x, s)
        y = Relu (r)
    }"""
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]>' + text)
    provenance = analyze(Graph(ir.from_proto(model)))
    (left,) = provenance.left_alone
    assert "Reshape 'r': its shape are computed in the graph, not constant" == left.reason


def test_a_bound_that_only_two_batches_fit_is_refused() -> None:
    # [N * 2, HW] cut at 6: all of it for N = 2 and 3, not for N = 4.
    build = Build(2, dynamic=True, height=1, width=1)
    folded = build.reshape("x", -1, 1, 1, 1)
    bounds = [build.constant([v]) for v in (0, 6, 0, 1)]
    cut = build.node("Slice", folded, *bounds)[0]
    out = build.reshape(cut, -1, 2, 1, 1)
    provenance = analyze(build.finish([out]))
    assert out not in provenance.maps
    assert "depends on the batch" in provenance.left_alone[0].reason


def test_a_huge_expand_is_not_executed() -> None:
    build = Build(2, dynamic=False)
    big = build.node("Expand", "x", build.constant([2, 2, 2, 3]))[0]
    wide = build.node("Expand", build.reshape(big, 2, 2, 1, 6), build.constant([2, 2, 1 << 26, 6]))[0]
    (left,) = analyze(build.finish([wide])).left_alone
    assert "too many to follow" in left.reason


def test_a_channel_that_is_repeated_is_a_map_but_no_shuffle() -> None:
    graph = graph_from_text(
        "g (float[1,1,2,2] x, int64[4] s) => (float[1,3,2,2] y) { y = Concat <axis = 1> (x, x, x) }"
    )
    (site,) = analyze(graph).sites
    assert "permutation" == site.kind
    assert site.form is None
    held_channels = analyze(graph).maps["y"].channels
    assert (Channel("x", 0),) * 3 == held_channels


def test_a_tap_inside_the_shuffle_leaves_the_site_known_and_the_tap_on_record() -> None:
    text = """
    g (float[1,6,4,4] x) => (float[1,3,2,4,4] t, float[1,6,4,4] y) {
        s = Constant <value = int64[5] {1,2,3,4,4}> ()
        r = Reshape (x, s)
        t = Transpose <perm = [0,2,1,3,4]> (r)
        u = Constant <value = int64[4] {1,6,4,4}> ()
        y = Reshape (t, u)
    }"""
    provenance = analyze(graph_from_text(text))
    (site,) = provenance.sites
    assert ("t",) == site.opaque
    assert Shuffle(2, 6) == site.form
    assert 1 == len(provenance.left_alone)


def test_all_sites_of_v2_x1_0_in_both_forms() -> None:
    repeats, channels = (4, 8, 4), (24, 116, 232, 464, 64)
    torchvision = analyze(captured(ShuffleNetV2(repeats, channels, 10), size=64))
    megvii = analyze(captured(MegviiV2(repeats, channels, 10), size=64))
    assert 16 == len(torchvision.sites) == sum(s.kind == "shuffle" for s in torchvision.sites)
    assert 16 == len(megvii.sites)
    assert 13 == sum(s.kind == "shuffle" for s in megvii.sites)
