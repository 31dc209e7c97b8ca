"""Shape arithmetic of other exporters becomes constants, exactly or not at all."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from converters.rewrite.nets import run
from shufflectl.converters.capture.adopt import Adopted, adopt
from shufflectl.converters.rewrite.analyze import analyze
from shufflectl.converters.rewrite.lowering import apply
from shufflectl.errors import GraphError, UsageError


def adopted(text: str, opset: int = 17, size: int | None = None) -> Adopted:
    return adopt(model(text, opset), size=size)


def model(text: str, opset: int = 17) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')


def operators(found: Adopted) -> list[str]:
    return [node.op_type for node in found.graph.nodes]


CHAIN = """
g (float[n,6,4,4] x) => (float[n,6,4,4] y)
<int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64[1] first = {0}, int64[2] area = {4, 4}> {
    s = Shape (x)
    b = Gather (s, zero)
    c = Gather (s, one)
    half = Div (c, two)
    b1 = Unsqueeze (b, first)
    h1 = Unsqueeze (half, first)
    c1 = Unsqueeze (c, first)
    t1 = Unsqueeze (two, first)
    wide = Concat <axis = 0> (b1, t1, h1, area)
    narrow = Concat <axis = 0> (b1, c1, area)
    r = Reshape (x, wide)
    t = Transpose <perm = [0, 2, 1, 3, 4]> (r)
    y = Reshape (t, narrow)
}"""


def test_a_shape_that_depends_on_the_batch_alone_becomes_constant() -> None:
    found = adopted(CHAIN)
    assert ["Reshape", "Transpose", "Reshape"] == operators(found)
    assert [-1, 2, 3, 4, 4] == found.graph.constant(found.graph.nodes[0].inputs[1]).tolist()
    (site,) = analyze(found.graph).sites
    assert "channel shuffle g=2 of 6 channels" == site.description
    for batch in (1, 2, 5):
        feeds = {"x": np.random.default_rng(0).standard_normal((batch, 6, 4, 4), dtype=np.float32)}
        expected = run(model(CHAIN), feeds)["y"]
        np.testing.assert_array_equal(expected, run(found.graph, feeds)["y"])


def test_a_shape_that_rounds_the_batch_is_left_as_it_is() -> None:
    # For 2 and 3 images n / 4 is the same number; for 4 it is not.
    found = adopted(
        """
        g (float[n,8,4,4] x) => (float[a,b,c,d] y)
        <int64[1] zero = {0}, int64[1] four = {4}, int64[1] end = {100}, int64[1] one = {1}> {
            s = Shape <end = 1> (x)
            q = Div (s, four)
            k = Add (q, one)
            y = Slice (x, k, end, one)
        }"""
    )
    assert "Div" in operators(found)
    (left,) = analyze(found.graph).left_alone
    assert "computed in the graph" in left.reason


def test_a_batch_that_the_file_bakes_into_its_shuffle_is_told_apart() -> None:
    # TorchScript traces x.data.size() as numbers: the file takes any batch and works for one.
    text = CHAIN.replace("b1 = Unsqueeze (b, first)", "b1 = Constant <value = int64[1] {2}> ()")
    found = adopted(text)
    provenance = analyze(found.graph)
    assert () == tuple(site for site in provenance.sites if site.shuffles)
    assert provenance.left_alone


def test_folded_batches_keep_their_multiple() -> None:
    found = adopted(
        """
        g (float[n,6,4,4] x) => (float[a,b,c] y)
        <int64[3] shape = {-1, 2, 16}> { r = Reshape (x, shape)
            y = Transpose <perm = [1, 0, 2]> (r) }"""
    )
    assert (2, "3*batch", 16) == found.graph.shape(found.graph.outputs[0])


def test_arithmetic_of_weights_is_folded() -> None:
    found = adopted(
        """
        g (float[1,2,4,4] x) => (float[1,2,4,4] y)
        <float[2,2] w = {1, 2, 3, 4}, float[1] two = {2}, int64[4] four = {2, 2, 1, 1}> {
            i = Identity (w)
            m = Mul (i, two)
            k = Reshape (m, four)
            y = Conv (x, k)
        }"""
    )
    assert ["Conv"] == operators(found)
    weight = found.graph.constant(found.graph.nodes[0].inputs[1])
    np.testing.assert_array_equal(np.float32([2, 4, 6, 8]), weight.ravel())


@pytest.mark.parametrize(
    "body",
    [
        "<int64[1] big = {4000000000000}> { c = ConstantOfShape (big)\n y = Relu (c) }",
        "<float[1,2] w = {1, 2}, int64[2] big = {1000000, 1000000}> { c = Tile (w, big)\n y = Relu (c) }",
        (
            "<float[1,2] w = {1, 2}, int64[2] big = {9000000, 2}> { c = Expand (w, big)\n"
            " d = Concat <axis = 1> (c, c, c, c, c, c, c, c)\n y = Relu (d) }"
        ),
    ],
)
def test_constants_that_would_fill_the_memory_are_not_computed(body: str) -> None:
    shape = "[a]" if "OfShape" in body else "[a,b]"
    with pytest.raises(GraphError, match="too large to be followed"):
        adopted(f"g (float[1,2] x) => (float{shape} y) {body}")


def test_nodes_keep_the_names_that_the_file_gives_them() -> None:
    proto = model(CHAIN)
    for index, node in enumerate(proto.graph.node):
        node.name = f"own_{index}"
    found = adopt(proto)
    assert {"r": "own_10", "t": "own_11", "y": "own_12"}.items() <= found.nodes.items()
    assert ["own_10", "own_11", "own_12"] == [node.name for node in found.graph.nodes]


def test_a_function_is_written_out() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 17, "own" : 1]>
        g (float[1,4,4,4] x) => (float[1,4,4,4] y) { y = own.twice (x) }
        <domain: "own", opset_import: ["" : 17]> twice (a) => (c) { b = Relu (a)
            c = Relu (b) }"""
    )
    found = adopt(proto)
    assert ["Relu", "Relu"] == operators(found)
    assert ("1 functions were written out",) == found.changes


def test_control_flow_is_not_rewritten() -> None:
    found = adopted(
        """
        g (float[1,4] x, bool c) => (float[1,4] y) {
            y = If (c) <then_branch = a () => (float[1,4] p) { p = Relu (x) },
                else_branch = b () => (float[1,4] q) { q = Neg (x) }>
        }"""
    )
    assert "holds a graph of its own" in found.frozen


def test_a_free_size_needs_one() -> None:
    text = "g (float[n,3,h,w] x) => (float[n,3,h,w] y) { y = Relu (x) }"
    with pytest.raises(GraphError) as caught:
        adopted(text)
    assert "--input-size" in caught.value.hint
    assert ("batch", 3, 9, 9) == adopted(text, size=9).graph.shape(adopted(text, size=9).graph.outputs[0])
    with pytest.raises(UsageError):
        adopted("g (float[n,3,8,8] x) => (float[n,3,8,8] y) { y = Relu (x) }", size=9)


def test_a_node_that_does_not_fit_is_named() -> None:
    with pytest.raises(GraphError, match=r"'y'.*\(Conv\)"):
        adopted(
            "g (float[1,3,8,8] x) => (float[1,3,8,8] y) <float[2,2] w = {1, 2, 3, 4}> { y = Conv (x, w) }"
        )


def test_what_a_file_states_of_other_symbols_is_not_the_batch() -> None:
    proto = model("g (float[n,3,8,8] x) => (float[batch,3,8,8] y) { y = own.op (x) }")
    proto.opset_import.add(domain="own", version=1)
    found = adopt(proto)
    assert None is found.graph.outputs[0].shape[0].value


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_static_and_dynamic_spellings_of_one_shuffle_give_one_map(data: st.DataObject) -> None:
    groups, size = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 5))
    channels = groups * size
    text = CHAIN.replace("float[n,6,4,4]", f"float[n,{channels},4,4]").replace(
        "two = {2}", f"two = {{{groups}}}"
    )
    dynamic = analyze(adopted(text).graph).sites
    static = analyze(adopted(text.replace("[n,", "[1,")).graph).sites
    assert [s.description for s in static] == [s.description for s in dynamic]
    assert size == 1 or (groups, channels) == (dynamic[0].form.groups, dynamic[0].form.channels)


def test_weights_of_half_precision_stay_half() -> None:
    proto = model("g (float16[1,2,4,4] x) => (float16[1,2,4,4] y) { k = Identity (w)\n y = Conv (x, k) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float16), "w"))
    found = adopt(proto)
    assert np.float16 == found.graph.constant(found.graph.nodes[0].inputs[1]).dtype


def test_a_shuffle_of_a_batch_that_holds_several_parts_is_exact() -> None:
    text = """
    g (float[n,8,4,4] x) => (float[m,4,4,4] z)
    <int64[4] fold = {-1, 4, 4, 4}, int64[5] wide = {-1, 2, 2, 4, 4}> {
        a = Reshape (x, fold)
        b = Relu (a)
        r = Reshape (b, wide)
        t = Transpose <perm = [0, 2, 1, 3, 4]> (r)
        y = Reshape (t, fold)
        z = Neg (y)
    }"""
    found = adopted(text)
    assert [(2, 4)] == [(s.form.groups, s.form.channels) for s in analyze(found.graph).sites if s.form]
    after, report = apply("rank4", found.graph)
    assert report.changed
    for batch in (1, 3):
        feeds = {"x": np.random.default_rng(0).standard_normal((batch, 8, 4, 4), dtype=np.float32)}
        np.testing.assert_array_equal(run(model(text), feeds)["z"], run(after, feeds)["z"])


@pytest.mark.parametrize("shape", ["1,8000000,1,1", "1,3,1000000,1000000", "n,9000000000000,1"])
def test_a_tensor_that_would_fill_the_memory_is_refused(shape: str) -> None:
    with pytest.raises(GraphError, match="'x' is too large to be followed"):
        adopted(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Relu (x) }}")


def test_weights_for_other_channels_are_refused() -> None:
    with pytest.raises(GraphError, match="do not fit its 3 channels"):
        adopted("g (float[1,3,8,8] x) => (float[1,1,8,8] y) <float[1,2,1,1] w = {1, 2}> { y = Conv (x, w) }")
