"""Every operator, at fp32 and fp16, against ONNX Runtime: outputs and all tensors that the trace names."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shufflectl.converters.coreml.operators.table import OPERATORS
from shufflectl.errors import UnsupportedOperatorError
from support.coreml import differences, package
from support.graphs import graph_from_text


def weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def integers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """One graph: ``x`` and, where ``y`` is used, ``y`` of the same shape are its inputs."""

    label: str
    shape: tuple[int, ...]
    body: str
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    positive: bool = False
    two: bool = False

    def graph_text(self) -> str:
        kind = f"float[{','.join(map(str, self.shape))}]"
        inputs = f"{kind} x, {kind} y" if self.two else f"{kind} x"
        return f"g ({inputs}) => (float[] o) {{ {self.body} }}"

    def inputs(self) -> dict[str, NDArray[np.float32]]:
        drawn = {
            name: weights(*self.shape, seed=seed) for seed, name in enumerate("xy" if self.two else "x", 7)
        }
        return {name: np.abs(a) + 0.1 if self.positive else a for name, a in drawn.items()}


W = weights
IMAGE = (2, 6, 9, 7)
CASES = [
    Case("conv", IMAGE, "o = Conv<pads=[1,1,1,1]>(x, w, b)", {"w": W(8, 6, 3, 3), "b": W(8)}),
    Case("conv no bias", IMAGE, "o = Conv<strides=[2,1]>(x, w)", {"w": W(8, 6, 3, 3)}),
    Case(
        "conv depthwise",
        IMAGE,
        "o = Conv<group=6, pads=[1,1,1,1], strides=[2,2]>(x, w)",
        {"w": W(6, 1, 3, 3)},
    ),
    Case("conv grouped", IMAGE, "o = Conv<group=3>(x, w, b)", {"w": W(9, 2, 1, 1), "b": W(9)}),
    Case("conv dilated", IMAGE, "o = Conv<dilations=[2,3], pads=[2,3,2,3]>(x, w)", {"w": W(4, 6, 3, 3)}),
    Case("conv uneven pads", IMAGE, "o = Conv<pads=[0,1,2,3], strides=[2,2]>(x, w)", {"w": W(4, 6, 3, 3)}),
    Case(
        "conv same upper", IMAGE, 'o = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', {"w": W(4, 6, 4, 3)}
    ),
    Case(
        "conv same lower", IMAGE, 'o = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)', {"w": W(4, 6, 4, 3)}
    ),
    Case("conv valid", IMAGE, 'o = Conv<auto_pad="VALID">(x, w)', {"w": W(4, 6, 3, 3)}),
    Case("conv 1-D", (2, 4, 11), "o = Conv<pads=[1,2], strides=[2]>(x, w)", {"w": W(3, 4, 3)}),
    Case("conv 3-D", (1, 2, 4, 5, 6), "o = Conv<pads=[1,1,1,1,1,1]>(x, w)", {"w": W(3, 2, 3, 3, 3)}),
    Case("relu", IMAGE, "o = Relu(x)"),
    Case("relu6", IMAGE, "o = Clip(x, l, h)", {"l": np.float32(0), "h": np.float32(6)}),
    Case("clip", IMAGE, "o = Clip(x, l, h)", {"l": np.float32(-0.5), "h": np.float32(0.75)}),
    Case("clip low", IMAGE, "o = Clip(x, l)", {"l": np.float32(-0.5)}),
    Case("clip high", IMAGE, 'o = Clip(x, "", h)', {"h": np.float32(0.5)}),
    Case("clip zero", IMAGE, "o = Clip(x, l)", {"l": np.float32(0)}),
    Case("clip nothing", IMAGE, "t = Clip(x) o = Abs(t)"),
    Case("max pool", IMAGE, "o = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)"),
    Case("max pool uneven", IMAGE, "o = MaxPool<kernel_shape=[3,2], strides=[2,1], pads=[0,1,2,0]>(x)"),
    Case("max pool ceil", IMAGE, "o = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)"),
    Case(
        "max pool ceil wide",
        IMAGE,
        "o = MaxPool<kernel_shape=[3,2], strides=[3,3], pads=[1,0,1,0], ceil_mode=1>(x)",
    ),
    Case("max pool same", IMAGE, 'o = MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">(x)'),
    Case("max pool 1-D", (1, 3, 10), "o = MaxPool<kernel_shape=[3], strides=[2], pads=[1,1]>(x)"),
    Case("average pool", IMAGE, "o = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)"),
    Case(
        "average pool padded",
        IMAGE,
        "o = AveragePool<kernel_shape=[3,3], pads=[0,1,1,2], count_include_pad=1>(x)",
    ),
    Case("average pool ceil", IMAGE, "o = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)"),
    Case(
        "average pool padded ceil",
        IMAGE,
        "o = AveragePool<kernel_shape=[3,2], strides=[3,2], pads=[1,0,1,0], count_include_pad=1,"
        " ceil_mode=1>(x)",
    ),
    Case("average pool 1-D", (1, 3, 10), "o = AveragePool<kernel_shape=[3], strides=[2], pads=[1,1]>(x)"),
    Case("global average pool", IMAGE, "o = GlobalAveragePool(x)"),
    Case("global max pool", IMAGE, "o = GlobalMaxPool(x)"),
    Case("reduce mean", IMAGE, "o = ReduceMean<keepdims=0>(x, a)", {"a": integers(2, 3)}),
    Case("reduce mean last", IMAGE, "o = ReduceMean(x, a)", {"a": integers(-1)}),
    Case("reduce mean all", IMAGE, "o = ReduceMean(x)"),
    Case("reduce max", IMAGE, "o = ReduceMax<keepdims=0>(x, a)", {"a": integers(1)}),
    Case("reduce min", IMAGE, "o = ReduceMin<keepdims=0>(x, a)", {"a": integers(2, 3)}),
    Case("reduce l2", IMAGE, "n = ReduceL2(x, a) o = Div(x, n)", {"a": integers(1)}),
    Case("reduce sum", IMAGE, "o = ReduceSum(x, a)", {"a": integers(1, -1)}),
    Case("gemm", (3, 5), "o = Gemm<transB=1>(x, w, b)", {"w": W(4, 5), "b": W(4)}),
    Case("gemm no bias", (3, 5), "o = Gemm(x, w)", {"w": W(5, 4)}),
    Case("gemm scaled", (3, 5), "o = Gemm<alpha=0.5, beta=2.0>(x, w, b)", {"w": W(5, 4), "b": W(1, 4)}),
    Case("gemm transposed", (3, 5), "o = Gemm<transA=1, alpha=2.0>(x, w, b)", {"w": W(3, 4), "b": W(5, 4)}),
    Case("gemm of two", (3, 3), "o = Gemm<transB=1, beta=0.5>(x, y, b)", {"b": W(3)}, two=True),
    Case("matmul", (2, 3, 4), "o = MatMul(x, w)", {"w": W(4, 5)}),
    Case("matmul and add", (3, 4), "t = MatMul(x, w) o = Add(t, b)", {"w": W(4, 5), "b": W(5)}),
    Case("matmul of two", (2, 3, 3), "o = MatMul(x, y)", two=True),
    Case("add", IMAGE, "o = Add(x, y)", two=True),
    Case("add channel", IMAGE, "o = Add(c, x)", {"c": W(6, 1, 1)}),
    Case("sub", IMAGE, "o = Sub(x, y)", two=True),
    Case("mul", IMAGE, "o = Mul(x, y)", two=True),
    Case("div", IMAGE, "o = Div(x, y)", positive=True, two=True),
    Case("div constant", IMAGE, "o = Div(x, c)", {"c": np.float32(3)}),
    Case("max min", IMAGE, "t = Max(x, y) o = Min(t, x, c)", {"c": np.float32(0.2)}, two=True),
    Case("pow", IMAGE, "o = Pow(x, c)", {"c": np.float32(2)}),
    Case("unary", IMAGE, "a = Neg(x) b = Abs(a) c = Sqrt(b) d = Tanh(c) e = Erf(d) o = Exp(e)"),
    Case("sigmoid", IMAGE, "o = Sigmoid(x)"),
    Case(
        "rounding",  # of numbers between 2 and 3, far from where rounding to fp16 would change the result
        IMAGE,
        "s = Sigmoid(x) t = Add(s, c) a = Floor(t) b = Ceil(t) o = Mul(b, a)",
        {"c": np.array(2, np.float32)},
    ),
    Case("logarithm", IMAGE, "o = Log(x)", positive=True),
    Case("reciprocal", IMAGE, "o = Reciprocal(x)", positive=True),
    Case("sum", IMAGE, "o = Sum(x, y, x, c)", {"c": W(6, 1, 1)}, two=True),
    Case("gelu", IMAGE, "o = Gelu(x)"),
    Case("gelu with tanh", IMAGE, 'o = Gelu<approximate="tanh">(x)'),
    Case("softplus", IMAGE, "o = Softplus(x)"),
    Case("mish", IMAGE, "o = Mish(x)"),
    Case("silu", IMAGE, "t = Sigmoid(x) o = Mul(x, t)"),
    Case("hard sigmoid", IMAGE, "o = HardSigmoid<alpha=0.16666667, beta=0.5>(x)"),
    Case("hard swish", IMAGE, "o = HardSwish(x)"),
    Case("softmax", (3, 5), "o = Softmax(x)"),
    Case("log softmax", (3, 5), "o = LogSoftmax(x)"),
    Case("log softmax of channels", IMAGE, "s = Mul(x, c) o = LogSoftmax<axis=1>(s)", {"c": np.float32(9)}),
    Case("softmax of channels", IMAGE, "o = Softmax<axis=1>(x)"),
    Case("leaky relu", IMAGE, "o = LeakyRelu<alpha=0.2>(x)"),
    Case("prelu", IMAGE, "o = PRelu(x, s)", {"s": np.abs(W(6, 1, 1))}),
    Case("prelu of one slope", IMAGE, "o = PRelu(x, s)", {"s": np.full(1, 0.25, np.float32)}),
    Case("prelu of features", (3, 5), "o = PRelu(x, s)", {"s": W(5)}),
    Case("prelu of rank 3", (2, 3, 5), "o = PRelu(x, s)", {"s": W(3, 1)}),
    Case("prelu of places", IMAGE, "o = PRelu(x, s)", {"s": W(9, 7)}),
    Case("elu", IMAGE, "o = Elu<alpha=0.5>(x)"),
    Case(
        "batch norm",
        IMAGE,
        "o = BatchNormalization<epsilon=0.01>(x, g, b, m, v)",
        {"g": W(6), "b": W(6, seed=1), "m": W(6, seed=2), "v": np.abs(W(6, seed=3)) + 0.5},
    ),
    Case(
        "conv batch norm",
        IMAGE,
        "t = Conv(x, w) u = Mul(t, s) o = Add(u, b)",
        {"w": W(4, 6, 1, 1), "s": W(4, 1, 1), "b": W(4, 1, 1, seed=1)},
    ),
    Case("concat", IMAGE, "o = Concat<axis=1>(x, y, x)", two=True),
    Case("concat of one", IMAGE, "t = Concat<axis=1>(x) o = Relu(t)"),
    Case("split", IMAGE, "a, b = Split<axis=1, num_outputs=2>(x) c = Relu(a) o = Sub(c, b)"),
    Case(
        "split sizes",
        IMAGE,
        "a, b = Split<axis=-1>(x, n) c = Sigmoid(a) o = Concat<axis=-1>(b, c)",
        {"n": integers(3, 4)},
    ),
    Case("split uneven", IMAGE, "a, b = Split<axis=3, num_outputs=2>(x) o = Concat<axis=3>(b, a)"),
    Case("slice", IMAGE, "o = Slice(x, s, e, a)", {"s": integers(1), "e": integers(-1), "a": integers(1)}),
    Case(
        "slice strided",
        IMAGE,
        "o = Slice(x, s, e, a, t)",
        {"s": integers(1, 0), "e": integers(2**62, 7), "a": integers(2, 3), "t": integers(2, 3)},
    ),
    Case(
        "slice backwards",
        IMAGE,
        "o = Slice(x, s, e, a, t)",
        {"s": integers(-1), "e": integers(-(2**62)), "a": integers(1), "t": integers(-2)},
    ),
    Case("gather", IMAGE, "o = Gather<axis=1>(x, i)", {"i": integers(5, 0, -2, 3)}),
    Case("gather of one", IMAGE, "o = Gather<axis=-1>(x, i)", {"i": np.array(-2, np.int64)}),
    Case("gather matrix", IMAGE, "o = Gather<axis=2>(x, i)", {"i": integers(0, 1, 2, 3).reshape(2, 2)}),
    Case("reshape", IMAGE, "t = Reshape(x, s) o = Relu(t)", {"s": integers(0, 2, -1, 7)}),
    Case("transpose", IMAGE, "t = Transpose<perm=[0,2,3,1]>(x) o = Sigmoid(t)"),
    Case("transpose reversed", IMAGE, "o = Transpose(x)"),
    Case("flatten", IMAGE, "o = Flatten(x)"),
    Case("flatten all", IMAGE, "o = Flatten<axis=0>(x)"),
    Case("squeeze", (1, 4, 1, 3), "t = Squeeze(x) o = Relu(t)"),
    Case("squeeze axis", (1, 4, 1, 3), "o = Squeeze(x, a)", {"a": integers(-2)}),
    Case("unsqueeze", (3, 4), "o = Unsqueeze(x, a)", {"a": integers(0, -1)}),
    Case("pad", IMAGE, "o = Pad(x, p, v)", {"p": integers(0, 1, 2, 0, 0, 0, 1, 3), "v": np.float32(0.5)}),
    Case("pad axes", IMAGE, 'o = Pad(x, p, "", a)', {"p": integers(1, 2), "a": integers(-1)}),
    Case("pad reflect", IMAGE, 'o = Pad<mode="reflect">(x, p)', {"p": integers(0, 0, 2, 0, 0, 0, 1, 3)}),
    Case("pad edge", IMAGE, 'o = Pad<mode="edge">(x, p)', {"p": integers(0, 0, 2, 0, 0, 0, 1, 3)}),
    Case(
        "pad conv",
        IMAGE,
        "t = Pad(x, p) o = Conv(t, w)",
        {"p": integers(0, 0, 0, 0, 0, 0, 1, 1), "w": W(4, 6, 3, 3)},
    ),
    Case(
        "pad and cut",
        IMAGE,
        "o = Pad(x, p, v)",
        {"p": integers(0, -1, 2, -2, 0, 0, -3, 1), "v": np.array(0.5, np.float32)},
    ),
    Case("cut", IMAGE, "o = Pad(x, p)", {"p": integers(0, -1, -2, 0, 0, 0, -3, -1)}),
    Case(
        "expand", IMAGE, "m = ReduceMean(x, a) o = Expand(m, s)", {"a": integers(2, 3), "s": integers(5, 1)}
    ),
    Case("expand to a higher rank", (3, 5), "r = Relu(x) o = Expand(r, s)", {"s": integers(2, 3, 5)}),
    Case("tile", IMAGE, "o = Tile(x, n)", {"n": integers(1, 2, 1, 3)}),
    Case("pad nothing", IMAGE, "t = Pad(x, p) o = Relu(t)", {"p": integers(*[0] * 8)}),
    Case("identity", IMAGE, "t = Identity(x) u = Dropout(t) o = Relu(u)"),
    Case("identity output", IMAGE, "t = Relu(x) o = Identity(t)"),
    Case("cast", IMAGE, "t = Cast<to=1>(x) u = Cast<to=6>(t) v = Cast<to=1>(u) o = Add(v, x)"),
    Case(
        "squeeze and excitation",
        IMAGE,
        "p = GlobalAveragePool(x) a = Conv(p, v, b) r = Relu(a) c = Conv(r, w) s = HardSigmoid(c)"
        " o = Mul(x, s)",
        {"v": W(3, 6, 1, 1), "b": W(3), "w": W(6, 3, 1, 1, seed=1)},
    ),
    Case(
        "layer norm spelled out",
        (2, 5, 8),
        "m = ReduceMean(x, a) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, a) e = Add(v, c)"
        " s = Sqrt(e) o = Div(d, s)",
        {"a": integers(-1), "c": np.float32(1e-3)},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.label)
def test_operator_agrees_with_onnx_runtime(case: Case, tmp_path: Path) -> None:
    graph = graph_from_text(case.graph_text(), case.constants)
    full = differences(graph, package(graph, tmp_path), case.inputs())
    half = differences(graph, package(graph, tmp_path, precision="fp16"), case.inputs())
    assert [] == [(name, db) for name, db in full.items() if db < 110]
    assert [] == [(name, db) for name, db in half.items() if db < 50]
    assert "o" in full


def test_every_operator_has_a_case() -> None:
    tested = {n.op_type for case in CASES for n in graph_from_text(case.graph_text(), case.constants).nodes}
    assert set(OPERATORS) - {"Resize"} == tested


RESIZES = {
    "nearest twice": (
        '<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">',
        2,
        2,
    ),
    "nearest default": ("", 2, 3),
    "nearest fractional": (
        '<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">',
        1.5,
        2,
    ),
    "nearest ceil": ('<nearest_mode="ceil", coordinate_transformation_mode="align_corners">', 2, 1.7),
    "nearest down": ('<nearest_mode="round_prefer_ceil">', 0.5, 0.5),
    "linear": ('<mode="linear">', 2, 3),
    "linear down": ('<mode="linear", coordinate_transformation_mode="pytorch_half_pixel">', 0.5, 0.75),
    "linear corners": ('<mode="linear", coordinate_transformation_mode="align_corners">', 2, 3),
    "linear asymmetric": ('<mode="linear", coordinate_transformation_mode="asymmetric">', 2, 3),
}


@pytest.mark.parametrize("label", RESIZES)
def test_resize_samples_the_same_points(label: str, tmp_path: Path) -> None:
    attributes, height, width = RESIZES[label]
    scales = np.array([1, 1, height, width], np.float32)
    graph = graph_from_text(
        f'g (float[1,3,4,8] x) => (float[] o) {{ o = Resize{attributes}(x, "", s) }}', {"s": scales}
    )
    found = differences(graph, package(graph, tmp_path), {"x": weights(1, 3, 4, 8)})
    assert found["o"] > 110


REFUSED = {
    "Einsum": ('o = Einsum<equation="nchw->nhwc">(x)', {}, ""),
    "MaxPool": ("o = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x)", {}, "no dilation"),
    "Resize": ('o = Resize<mode="cubic">(x, "", s)', {"s": np.array([1, 1, 2, 2], np.float32)}, "no cubic"),
    "Conv": ("w = Relu(x) o = Conv(x, w)", {}, "weight must be constant"),
    "Slice": ("o = Slice(x, s, e, a)", {"s": integers(3), "e": integers(3), "a": integers(1)}, "empty"),
    "Clip": ("o = Clip(x, h, l)", {"l": np.float32(0), "h": np.float32(6)}, "not below"),
    "Pad": ('o = Pad<mode="reflect">(x, p)', {"p": integers(0, 1, 0, 0, 0, 0, 0, 0)}, "before the last two"),
    "Gather": ("o = Gather<axis=1>(x, i)", {"i": integers(9)}, "outside a dimension of 6"),
    "Reshape": ("o = Reshape(x, s)", {"s": integers(1, 1, 2, 6, 9, 7)}, "has rank 6"),
    "Tile": ("o = Tile(x, n)", {"n": integers(1, 0, 1, 1)}, "empty"),
}


@pytest.mark.parametrize("operator", REFUSED)
def test_what_mil_cannot_express_is_refused_by_name(operator: str, tmp_path: Path) -> None:
    body, constants, why = REFUSED[operator]
    graph = graph_from_text(f"g (float[2,6,9,7] x) => (float[] o) {{ {body} }}", constants)
    name = graph.nodes[-1].name
    with pytest.raises(UnsupportedOperatorError) as caught:
        package(graph, tmp_path)
    assert (name, operator, "coreml") == (caught.value.node, caught.value.operator, caught.value.where)
    assert why in caught.value.message
    assert [] == list(tmp_path.iterdir())


def test_linear_resize_with_other_points_is_refused(tmp_path: Path) -> None:
    # A scale that is not the ratio of the sizes samples points that no mode of MIL has.
    graph = graph_from_text(
        'g (float[1,3,5,5] x) => (float[] o) { o = Resize<mode="linear">(x, "", s) }',
        {"s": np.array([1, 1, 1.5, 1.5], np.float32)},
    )
    with pytest.raises(UnsupportedOperatorError, match="same points"):
        package(graph, tmp_path)
