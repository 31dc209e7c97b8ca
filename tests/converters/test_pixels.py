"""A folded preprocessing computes what the preprocessing and the network compute one after the other."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shufflectl.converters.graph import Graph, TensorRecord
from shufflectl.converters.pixels import fold_preprocess, image_inputs, take_bytes
from shufflectl.errors import GraphError
from shufflectl.models.preprocess import DIGITS, IMAGENET, MEGVII, PIXELS, Preprocess
from support.graphs import graph_from_text
from support.nets import tiny_graph

SIZE = 9


def run(graph: Graph, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
    session = onnxruntime.InferenceSession(graph.to_proto().SerializeToString())
    results: list[NDArray[Any]] = session.run(None, inputs)
    return results


def weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pixels(count: int = 2, size: int = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


def convolution(
    *, pads: int = 0, stride: int = 1, bias: bool = True, kernel: int = 3, attributes: str = ""
) -> Graph:
    given = ", b" if bias else ""
    padding = attributes or f"pads=[{pads},{pads},{pads},{pads}]"
    held = {"w": weights(5, 3, kernel, kernel)} | ({"b": weights(5, seed=2)} if bias else {})
    size = (SIZE + 2 * pads - kernel) // stride + 1
    area = "H,W" if attributes else f"{size},{size}"
    return graph_from_text(
        f"g (float[N,3,{SIZE},{SIZE}] image) => (float[N,5,{area}] y) {{\n"
        f"  c = Conv<{padding}, strides=[{stride},{stride}]>(image, w{given})\n  y = Relu(c)\n}}",
        held,
    )


def assert_same(graph: Graph, preprocess: Preprocess, *, as_bytes: bool = False) -> tuple[Any, Graph]:
    """Assert that the folded graph makes of pixels what the graph makes of prepared images."""
    folded, (fold,) = fold_preprocess(graph, preprocess)
    images = pixels()
    raw = images.transpose(0, 3, 1, 2)
    if as_bytes:
        folded = take_bytes(folded)
    expected = run(graph, image=preprocess.apply(images))
    actual = run(folded, image=np.ascontiguousarray(raw if as_bytes else raw.astype(np.float32)))
    for want, have in zip(expected, actual, strict=True):
        np.testing.assert_allclose(have, want, atol=2e-5 * max(1.0, float(np.abs(want).max())))
    return fold, folded


def operators(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.nodes]


figures = st.floats(-3, 3, width=32)
deviations = st.floats(0.0625, 4, width=32)


@st.composite
def specifications(draw: st.DrawFn) -> Preprocess:
    scale = draw(st.sampled_from([1 / 255, 1.0, 0.017]))
    unit = 255 * scale
    mean = draw(st.just((0.0, 0.0, 0.0)) | st.tuples(figures, figures, figures))
    std = draw(st.just((1.0, 1.0, 1.0)) | st.tuples(deviations, deviations, deviations))
    return Preprocess(
        draw(st.sampled_from(["rgb", "bgr"])),
        scale,
        tuple(v * unit for v in mean),  # type: ignore[arg-type]
        tuple(v * unit for v in std),  # type: ignore[arg-type]
    )


@settings(deadline=None, max_examples=60)
@given(
    specifications(),
    st.integers(0, 2),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([1, 3]),
    st.booleans(),
)
def test_any_preprocessing_folds_exactly(
    preprocess: Preprocess, pads: int, stride: int, bias: bool, kernel: int, as_bytes: bool
) -> None:
    graph = convolution(pads=pads, stride=stride, bias=bias, kernel=kernel)
    fold, folded = assert_same(graph, preprocess, as_bytes=as_bytes)
    if preprocess.takes_pixels and preprocess.color == "rgb":
        expected = "nothing"
    else:
        expected = "shift" if pads and any(preprocess.mean) else "weights"
    assert expected == fold.how
    assert (expected == "shift") == ("Sub" in operators(folded))
    assert as_bytes == ("Cast" in operators(folded))


@pytest.mark.parametrize(
    ("attributes", "how"),
    [('auto_pad="VALID"', "weights"), ('auto_pad="SAME_UPPER"', "shift"), ('auto_pad="SAME_LOWER"', "shift")],
)
def test_automatic_padding_is_told(attributes: str, how: str) -> None:
    fold, _ = assert_same(convolution(attributes=attributes), IMAGENET)
    assert how == fold.how


def test_a_mean_of_zero_needs_no_operator_in_front_of_padding() -> None:
    fold, folded = assert_same(convolution(pads=1), MEGVII)
    assert ("weights", ["Conv", "Relu"]) == (fold.how, operators(folded))
    assert "weights of conv_0" in fold.why


def test_the_padding_is_named_where_it_keeps_the_mean_out_of_the_bias() -> None:
    fold, folded = assert_same(convolution(pads=1), IMAGENET)
    assert ["Sub", "Conv", "Relu"] == operators(folded)
    assert "conv_0 pads the prepared image with zeros" in fold.why


def test_the_graph_itself_is_not_changed() -> None:
    graph = convolution(pads=1)
    before = graph.to_bytes()
    take_bytes(fold_preprocess(graph, IMAGENET)[0])
    assert before == graph.to_bytes()


def test_several_convolutions_each_take_it() -> None:
    graph = graph_from_text(
        "g (float[N,3,9,9] image) => (float[N,4,9,9] y, float[N,4,9,9] z) {\n"
        "  y = Conv<pads=[1,1,1,1]>(image, w)\n  z = Conv(image, v, b)\n}",
        {"w": weights(4, 3, 3, 3), "v": weights(4, 3, 1, 1), "b": weights(4)},
    )
    fold, folded = assert_same(graph, Preprocess("bgr", 1 / 255, *[(0.4, 0.5, 0.6)] * 2))
    assert "shift" == fold.how  # one of the two is padded, and both read the same tensor
    assert ["Sub", "Conv", "Conv"] == operators(folded)


def test_weights_that_others_share_stay_theirs() -> None:
    graph = graph_from_text(
        "g (float[N,3,9,9] image) => (float[N,3,9,9] y) {\n  h = Conv(image, w, b)\n  y = Conv(h, w, b)\n}",
        {"w": weights(3, 3, 1, 1), "b": weights(3)},
    )
    fold, _ = assert_same(graph, Preprocess("bgr", 1 / 255, *[(0.4, 0.5, 0.6)] * 2))
    assert "weights" == fold.how


def test_an_image_in_nhwc_folds_through_its_transposition() -> None:
    graph = graph_from_text(
        "g (float[N,9,9,3] image) => (float[N,4,9,9] y) {\n"
        "  t = Transpose<perm=[0,3,1,2]>(image)\n  y = Conv<pads=[1,1,1,1]>(t, w)\n}",
        {"w": weights(4, 3, 3, 3)},
    )
    folded, (fold,) = fold_preprocess(graph, IMAGENET)
    assert ("shift", ["Sub", "Transpose", "Conv"]) == (fold.how, operators(folded))
    images = pixels()
    (expected,) = run(graph, image=IMAGENET.apply(images).transpose(0, 2, 3, 1))
    (actual,) = run(folded, image=images.astype(np.float32))
    np.testing.assert_allclose(actual, expected, atol=1e-4)


# What reads the image, and the words of the reason.
FALLBACKS = {
    "not a convolution": ("y = Relu(image)", "float[N,3,9,9] y", {}, "relu_0 (Relu) reads it"),
    "read twice": (
        "c = Conv(image, w)\n  s = Sigmoid(image)\n  y = Add(c, s)",
        "float[N,3,9,9] y",
        {"w": weights(3, 3, 1, 1)},
        "(Sigmoid) reads it",
    ),
    "groups": (
        "y = Conv<group=3, pads=[1,1,1,1]>(image, w)",
        "float[N,3,9,9] y",
        {"w": weights(3, 1, 3, 3)},
        "has groups",
    ),
    "computed weights": (
        "v = Abs(w)\n  y = Conv(image, v)",
        "float[N,4,9,9] y",
        {"w": weights(4, 3, 1, 1)},
        "are computed",
    ),
    "padded by itself": (
        "q = Pad(image, p)\n  y = Conv(q, w)",
        "float[N,4,9,9] y",
        {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w": weights(4, 3, 3, 3)},
        "(Pad) reads it",
    ),
}


@pytest.mark.parametrize(
    "preprocess", [IMAGENET, MEGVII, DIGITS, Preprocess("bgr", 1.0, (1, 2, 3), (4, 5, 6))]
)
@pytest.mark.parametrize("case", FALLBACKS)
def test_operators_prepare_what_no_convolution_reads(case: str, preprocess: Preprocess) -> None:
    body, output, held, why = FALLBACKS[case]
    graph = graph_from_text(f"g (float[N,3,9,9] image) => ({output}) {{\n  {body}\n}}", held)
    fold, folded = assert_same(graph, preprocess)
    assert ("operators", True) == (fold.how, why in fold.why)
    expected = ["Gather"] * (preprocess.color == "bgr") + ["Sub"] * any(preprocess.mean)
    assert expected + ["Mul"] * (not preprocess.takes_pixels) == operators(folded)[: -len(graph.nodes)]
    prepared = [name for name, record in folded.records.items() if record == TensorRecord("image")]
    assert 1 == len(prepared)  # the captured input is still in the file, under another name


def test_nothing_is_done_where_pixels_are_what_the_network_takes() -> None:
    fold, folded = assert_same(convolution(pads=1), PIXELS)
    assert ("nothing", ["Conv", "Relu"]) == (fold.how, operators(folded))


def test_pixels_go_on_record_and_survive_the_way_to_another_process() -> None:
    folded, _ = fold_preprocess(tiny_graph(), IMAGENET)
    again = Graph.from_bytes(take_bytes(folded).to_bytes())
    name = str(tiny_graph().inputs[0].name)
    assert f"{name}::pixels" == again.record(name).origin
    assert "UINT8" == again.inputs[0].dtype.name  # type: ignore[union-attr]


def test_bytes_without_a_fold_are_the_captured_input_behind_the_cast() -> None:
    taken = take_bytes(convolution())
    assert TensorRecord("image") == taken.record("image.float")
    assert TensorRecord("image::pixels") == taken.record("image")


@pytest.mark.parametrize("change", [lambda g: fold_preprocess(g, IMAGENET), take_bytes])
def test_a_graph_without_images_is_refused(change: Any) -> None:
    graph = graph_from_text("g (float[N,5] x) => (float[N,5] y) { y = Relu(x) }")
    assert [] == image_inputs(graph)
    with pytest.raises(GraphError, match="three colours"):
        change(graph)


@pytest.mark.parametrize("change", [lambda g: fold_preprocess(g, IMAGENET), take_bytes])
def test_an_image_that_is_an_output_is_refused(change: Any) -> None:
    graph = graph_from_text("g (float[N,3,9,9] image) => (float[N,3,9,9] y) { y = Relu(image) }")
    graph.model.graph.outputs.append(graph.inputs[0])
    with pytest.raises(GraphError, match="an output as well"):
        change(graph)
