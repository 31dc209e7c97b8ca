"""Every operator, against ONNX Runtime, with XNNPACK and with the builtin kernels."""

from pathlib import Path

import numpy as np
import pytest

from shufflectl.converters.tflite.operators.table import OPERATORS
from shufflectl.errors import UnsupportedOperatorError
from support.tflite import census, compare, graph_of, operators

LIMIT = 2e-6
RNG = np.random.default_rng(7)


def weight(*shape):
    return (RNG.standard_normal(shape) / 3).astype(np.float32)


def check(body, weights=None, shape=(1, 8, 10, 9), **kwargs):
    result = compare(graph_of(body, weights, shape), **kwargs)
    assert result.worst < LIMIT, result.errors
    return operators(result.data)


CONVOLUTIONS = {
    "same at stride 1": ("pads=[1,1,1,1]", (6, 8, 3, 3), ["CONV_2D"]),
    "valid": ("strides=[2,2]", (6, 8, 3, 3), ["CONV_2D"]),
    "begin padding that SAME has not": ("strides=[2,2],pads=[1,1,1,1]", (6, 8, 3, 3), ["PAD", "CONV_2D"]),
    "same upper": ('strides=[2,2],auto_pad="SAME_UPPER"', (6, 8, 3, 3), ["CONV_2D"]),
    "same lower": ('strides=[2,2],auto_pad="SAME_LOWER"', (6, 8, 3, 3), ["PAD", "CONV_2D"]),
    "uneven kernel and padding": ("strides=[2,1],pads=[1,2,0,1]", (6, 8, 5, 3), ["PAD", "CONV_2D"]),
    "dilated": ("dilations=[2,2],pads=[2,2,2,2]", (6, 8, 3, 3), ["CONV_2D"]),
    "grouped": ("group=2,pads=[1,1,1,1]", (6, 4, 3, 3), ["CONV_2D"]),
    "grouped pointwise": ("group=4", (12, 2, 1, 1), ["CONV_2D"]),
    "grouped and dilated": ("group=2,dilations=[2,2]", (8, 4, 3, 3), ["CONV_2D"]),
    "depthwise": ("group=8,pads=[1,1,1,1]", (8, 1, 3, 3), ["DEPTHWISE_CONV_2D"]),
    "depthwise with multiplier 3": ("group=8,strides=[2,2]", (24, 1, 3, 3), ["DEPTHWISE_CONV_2D"]),
    "depthwise, dilated": ("group=8,dilations=[2,3],pads=[2,3,2,3]", (8, 1, 3, 3), ["DEPTHWISE_CONV_2D"]),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case):
    attributes, shape, expected = CONVOLUTIONS[case]
    weights = {"w": weight(*shape), "b": weight(shape[0])}
    assert expected == check(f"y = Conv<{attributes}>(x, w, b)", weights)


def test_stride_2_at_odd_size_is_same():
    assert ["CONV_2D"] == check(
        "y = Conv<strides=[2,2],pads=[1,1,1,1]>(x, w)", {"w": weight(4, 8, 3, 3)}, (1, 8, 9, 11)
    )


WINDOW = "kernel_shape=[3,3],strides=[2,2]"
POOLS = {
    "max of signed numbers": (f"y = MaxPool<{WINDOW},pads=[1,1,1,1]>(x)", ["PADV2", "MAX_POOL_2D"]),
    "max after a ReLU": (
        f"r = Relu(x) y = MaxPool<{WINDOW},pads=[1,1,1,1]>(r)",
        ["RELU", "PAD", "MAX_POOL_2D"],
    ),
    "max, same": ("y = MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>(x)", ["MAX_POOL_2D"]),
    "max, ceil mode": (f"y = MaxPool<{WINDOW},ceil_mode=1>(x)", ["PADV2", "MAX_POOL_2D"]),
    "average without padding in the count": (
        f"y = AveragePool<{WINDOW},pads=[1,1,1,1]>(x)",
        ["PAD", "AVERAGE_POOL_2D", "MUL"],
    ),
    "average with padding in the count": (
        f"y = AveragePool<{WINDOW},pads=[1,1,1,1],count_include_pad=1>(x)",
        ["PAD", "AVERAGE_POOL_2D"],
    ),
    "average, same": ("y = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>(x)", ["AVERAGE_POOL_2D"]),
    "average, ceil mode": (f"y = AveragePool<{WINDOW},ceil_mode=1>(x)", ["PAD", "AVERAGE_POOL_2D", "MUL"]),
    "average, ceil mode, padding in the count": (
        f"y = AveragePool<{WINDOW},pads=[1,1,1,1],ceil_mode=1,count_include_pad=1>(x)",
        ["PAD", "AVERAGE_POOL_2D", "MUL"],
    ),
    "global average": ("y = GlobalAveragePool(x)", ["MEAN"]),
    "global max": ("y = GlobalMaxPool(x)", ["REDUCE_MAX"]),
}


@pytest.mark.parametrize("case", POOLS)
def test_pooling(case):
    body, expected = POOLS[case]
    assert expected == check(body)


@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("axes", [(2, 3), (1,), (-1, 1)])
@pytest.mark.parametrize("keep", [0, 1])
def test_reduction(operator, axes, keep):
    check(f"y = {operator}<keepdims={keep}>(x, axes)", {"axes": np.array(axes)})


@pytest.mark.parametrize("axes", [(1,), (2, 3), (-1, 1)])
@pytest.mark.parametrize("keep", [0, 1])
def test_euclidean_norm(axes, keep):
    expected = ["MUL", "SUM", "SQRT"]
    found = check(f"y = ReduceL2<keepdims={keep}>(x, axes)", {"axes": np.array(axes)})
    assert expected == [name for name in found if name != "TRANSPOSE"]


@pytest.mark.parametrize("keep", [0, 1])
def test_reduction_over_everything(keep):
    check(f"y = ReduceMean<keepdims={keep}>(x)")


UNARY = [
    *("Relu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Gelu"),
    *("Elu<alpha=0.5>", "Elu<alpha=1.7>", "Softplus", "Mish"),
    *("Abs", "Neg", "Floor", "Ceil", "Exp"),
]


@pytest.mark.parametrize("operator", UNARY)
def test_elementwise(operator):
    check(f"y = {operator}(x)", scale=3.0)


@pytest.mark.parametrize("operator", ["Sqrt", "Log", "Reciprocal"])
def test_elementwise_of_positive_numbers(operator):
    check(f"e = Exp(x) y = {operator}(e)")


def test_hard_sigmoid_of_torch_takes_two_operators():
    assert ["ADD", "MUL"] == check("y = HardSigmoid<alpha=0.16666667>(x)", scale=4.0)


def test_gelu_with_tanh():
    assert ["GELU"] == check('y = Gelu<approximate="tanh">(x)')


CLIPS = {
    (0, 6): ["RELU6"],
    (0, None): ["RELU"],
    (-1, 1): ["RELU_N1_TO_1"],
    (0, 1): ["MAXIMUM", "MINIMUM"],
    (-2, 0.5): ["MAXIMUM", "MINIMUM"],
    (None, 1): ["MINIMUM"],
    (-0.5, None): ["MAXIMUM"],
}


def clip_of(source, low, high):
    weights = {k: np.float32(v) for k, v in (("lo", low), ("hi", high)) if v is not None}
    return (
        f"y = Clip({source}, {'lo' if low is not None else ''}{', hi' if high is not None else ''})",
        weights,
    )


@pytest.mark.parametrize("bounds", CLIPS)
def test_clip(bounds):
    body, weights = clip_of("x", *bounds)
    assert CLIPS[bounds] == check(body, weights, scale=4.0)


@pytest.mark.parametrize("bounds", [(0, 6), (-1, 1), (0, None)])
@pytest.mark.parametrize(
    "host",
    [
        "c = Conv(x, w)",
        "c = Add(x, k)",
        "c = Sub(x, k)",
        "c = Mul(x, k)",
        "c = Div(x, k)",
        "c = MaxPool<kernel_shape=[2,2]>(x)",
        "c = AveragePool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]>(x)",
        "c = MatMul(x, m)",
    ],
)
def test_activation_fuses_into(host, bounds):
    body, weights = clip_of("c", *bounds)
    weights |= {"w": weight(8, 8, 1, 1), "k": weight(8, 1, 1) + 2, "m": weight(9, 5)}
    weights = {k: v for k, v in weights.items() if k in ("lo", "hi") or f" {k})" in host}
    assert not {"RELU", "RELU6", "RELU_N1_TO_1"} & set(check(f"{host} {body}", weights, scale=4.0))


def test_activation_with_a_second_reader_of_its_input_does_not_fuse():
    weights = {"w": weight(8, 8, 1, 1)}
    assert ["CONV_2D", "RELU", "ADD"] == check("c = Conv(x, w) r = Relu(c) y = Add(c, r)", weights)


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
@pytest.mark.parametrize("shape", [(), (8, 1, 1), (9,), (1, 8, 10, 9), (10, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("swapped", [False, True])
def test_broadcasting(operator, shape, swapped):
    operands = "c, e" if swapped else "e, c"
    check(f"e = Exp(x) y = {operator}({operands})", {"c": np.abs(weight(*shape)) + 1})


def test_broadcasting_of_two_computed_tensors():
    check("m = ReduceMean<keepdims=0>(x, axes) u = Tanh(m) y = Sub(x, u)", {"axes": np.array([0, 1])})


def test_sum_and_max_of_three():
    expected = ["TANH", "ADD", "ADD", "MAXIMUM", "MAXIMUM"]
    assert expected == check("t = Tanh(x) s = Sum(t, c, x) y = Max(s, x, c)", {"c": weight(8, 1, 1)})


def test_pow():
    check("e = Exp(x) y = Pow(e, c)", {"c": np.float32(1.5)})


@pytest.mark.parametrize("slope", [(8, 1, 1), (1,), (1, 8, 1, 1)])
def test_prelu(slope):
    assert ["PRELU"] == check("y = PRelu(x, s)", {"s": weight(*slope)})


def test_batch_normalization():
    weights = {"a": weight(8), "b": weight(8), "m": weight(8), "v": np.abs(weight(8)) + 0.1}
    assert ["MUL", "ADD"] == check("y = BatchNormalization(x, a, b, m, v)", weights)


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
def test_softmax(operator, axis):
    transposes = census(compare(graph_of(f"y = {operator}<axis={axis}>(x)")).data).get("TRANSPOSE", 0)
    check(f"y = {operator}<axis={axis}>(x)", scale=3.0)
    assert (0 if axis == 1 else 2) == transposes


def test_cast_to_integers_and_back():
    assert ["CAST", "CAST"] == check("i = Cast<to=6>(x) y = Cast<to=1>(i)", scale=5.0)


def test_identity_is_nothing():
    assert ["RELU"] == check("i = Identity(x) y = Relu(i)")


def test_cast_to_the_same_type_is_nothing():
    assert ["RELU"] == check("i = Cast<to=1>(x) y = Relu(i)")


DENSE = {"w": weight(5, 720) / 10, "b": weight(5)}


def test_flattened_image_before_a_dense_layer_is_not_moved():
    assert ["FULLY_CONNECTED"] == check("f = Flatten(x) y = Gemm<transB=1>(f, w, b)", DENSE)


def test_activation_between_flatten_and_dense_layer_moves_nothing():
    body = "f = Flatten(x) d = Dropout(f) r = Relu(d) y = Gemm<transB=1>(r, w, b)"
    assert ["RELU", "FULLY_CONNECTED"] == check(body, DENSE)


def test_flattened_image_with_a_second_reader():
    body = "f = Flatten(x) s = Softmax<axis=1>(f) g = Gemm<transB=1>(f, w, b) h = Gemm<transB=1>(s, w)"
    body += " y = Add(g, h)"
    check(body, DENSE)


def test_gemm_with_factors():
    weights = {"w": weight(8, 5), "b": weight(1, 5)}
    body = "m = GlobalAveragePool(x) f = Flatten(m) y = Gemm<alpha=0.5,beta=2.0>(f, w, b)"
    assert ["MEAN", "FULLY_CONNECTED"] == check(body, weights)


def test_matmul_over_the_last_axis_of_an_image():
    assert "FULLY_CONNECTED" in check("m = MatMul(x, w) y = Relu(m)", {"w": weight(9, 4)})


def test_matmul_of_two_computed_tensors():
    assert "BATCH_MATMUL" in check("t = Transpose<perm=[0,1,3,2]>(x) y = MatMul(x, t)")


MOVEMENTS = {
    "split in equal parts": ("a, b = Split<axis=1,num_outputs=2>(x) y = Sub(a, b)", {}, ["SPLIT", "SUB"]),
    "split in uneven parts": (
        "a, b = Split<axis=1>(x, s) y = Concat<axis=1>(b, a)",
        {"s": np.array([3, 5])},
        ["SLICE", "SLICE", "CONCATENATION"],
    ),
    "split in eight": (
        "a, b, c, d, e, f, g, h = Split<axis=1,num_outputs=8>(x) y = Sub(c, g)",
        {},
        ["SLICE", "SLICE", "SUB"],
    ),
    "split of the width": (
        "a, b, c = Split<axis=3,num_outputs=3>(x) y = Concat<axis=1>(b, a, c)",
        {},
        ["SPLIT", "CONCATENATION"],
    ),
    "concat with a constant": ("y = Concat<axis=1>(x, c)", {"c": weight(1, 3, 10, 9)}, ["CONCATENATION"]),
    "slice": (
        "y = Slice(x, s, e, a)",
        {"s": np.array([2, -4]), "e": np.array([6, 2**62]), "a": np.array([1, -1])},
        ["SLICE"],
    ),
    "slice of every second channel": (
        "y = Slice(x, s, e, a, t)",
        {"s": np.array([1]), "e": np.array([2**62]), "a": np.array([1]), "t": np.array([2])},
        ["STRIDED_SLICE"],
    ),
    "slice backwards": (
        "y = Slice(x, s, e, a, t)",
        {
            "s": np.array([-1, 8]),
            "e": np.array([-(2**62), 1]),
            "a": np.array([1, 3]),
            "t": np.array([-2, -3]),
        },
        ["STRIDED_SLICE"],
    ),
    "gather": ("y = Gather<axis=1>(x, i)", {"i": np.array([7, 0, 3, -1])}, ["GATHER"]),
    "gather of a run": ("y = Gather<axis=1>(x, i)", {"i": np.array([2, 3, 4])}, ["SLICE"]),
    "gather of one row": ("y = Gather<axis=1>(x, i)", {"i": np.int64(-2)}, ["SLICE", "RESHAPE"]),
    "gather by a matrix": ("g = Gather<axis=2>(x, i) y = Relu(g)", {"i": np.array([[2, 9], [0, 1]])}, None),
    "pad": ("y = Pad(x, p)", {"p": np.array([0, 1, 2, 0, 0, 0, 1, 3])}, ["PAD"]),
    "pad with a value": (
        "y = Pad(x, p, v)",
        {"p": np.array([0, 0, 2, 0, 0, 0, 1, 3]), "v": np.float32(-2.5)},
        ["PADV2"],
    ),
    "pad two axes by name": (
        "y = Pad(x, p, v, a)",
        {"p": np.array([1, 2, 3, 0]), "v": np.float32(0), "a": np.array([3, 1])},
        ["PAD"],
    ),
    "pad and cut": ("y = Pad(x, p)", {"p": np.array([0, 0, -2, 1, 0, -1, 1, -3])}, ["SLICE", "PAD"]),
    "cut": ("y = Pad(x, p)", {"p": np.array([0, 0, -2, 0, 0, -1, 0, -3])}, ["SLICE"]),
    "edge": (
        'y = Pad<mode="edge">(x, p)',
        {"p": np.array([0, 1, 2, 1, 0, 0, 1, 3])},
        ["GATHER", "GATHER", "GATHER"],
    ),
    "wrap": ('y = Pad<mode="wrap">(x, p)', {"p": np.array([0, 0, 2, 1, 0, 0, 1, 3])}, ["GATHER", "GATHER"]),
    "cut and edge": (
        'y = Pad<mode="edge">(x, p)',
        {"p": np.array([0, -2, 2, 0, 0, 0, 1, -1])},
        ["SLICE", "GATHER"],
    ),
    "pad nothing": ("r = Pad(x, p) y = Relu(r)", {"p": np.array([0] * 8)}, ["RELU"]),
    "expand": (
        "m = ReduceMean(x, a) y = Expand(m, s)",
        {"a": np.array([2]), "s": np.array([10, 1])},
        ["MEAN", "TILE"],
    ),
    "expand to a higher rank": (
        "m = ReduceMean<keepdims=0>(x, a) y = Expand(m, s)",
        {"a": np.array([0, 1]), "s": np.array([1, 4, 10, 9])},
        None,
    ),
    "tile": ("y = Tile(x, n)", {"n": np.array([1, 2, 1, 3])}, ["TILE"]),
    "reflect": ('y = Pad<mode="reflect">(x, p)', {"p": np.array([0, 0, 2, 1, 0, 0, 1, 3])}, ["MIRROR_PAD"]),
    "unsqueeze and squeeze": (
        "r = Relu(x) u = Unsqueeze(r, a) s = Squeeze(u, b) y = Neg(s)",
        {"a": np.array([2]), "b": np.array([2])},
        ["RELU", "NEG"],
    ),
}


@pytest.mark.parametrize("case", MOVEMENTS)
def test_data_movement(case):
    body, weights, expected = MOVEMENTS[case]
    found = check(body, weights)
    assert expected is None or expected == found


MODES = ["asymmetric", "align_corners", "half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(20, 18), (5, 7), (1, 1)])
def test_linear_resize(mode, size):
    body = f'y = Resize<mode="linear",coordinate_transformation_mode="{mode}">(x, , , s)'
    assert ["RESIZE_BILINEAR"] == check(body, {"s": np.array([1, 8, *size])})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("size", [(20, 18), (5, 7), (1, 1)])
def test_nearest_resize(mode, rounding, size):
    attributes = f'mode="nearest",nearest_mode="{rounding}",coordinate_transformation_mode="{mode}"'
    found = check(f"y = Resize<{attributes}>(x, , , s)", {"s": np.array([1, 8, *size])})
    assert found in (["RESIZE_NEAREST_NEIGHBOR"], ["GATHER", "GATHER"])


def test_resize_by_scales():
    attributes = 'mode="nearest",nearest_mode="floor",coordinate_transformation_mode="asymmetric"'
    scales = {"s": np.array([1, 1, 2, 2], np.float32)}
    assert ["RESIZE_NEAREST_NEIGHBOR"] == check(f"y = Resize<{attributes}>(x, , s)", scales)


def test_squeeze_and_excitation():
    weights = {"w1": weight(4, 8, 1, 1), "w2": weight(8, 4, 1, 1)}
    body = "g = GlobalAveragePool(x) c = Conv(g, w1) r = Relu(c) d = Conv(r, w2) s = HardSigmoid(d)"
    body += " y = Mul(x, s)"
    assert {"MEAN": 1, "CONV_2D": 2, "ADD": 1, "MUL": 3} == census(compare(graph_of(body, weights)).data)
    check(body, weights)


SHUFFLES = {
    "torchvision": (
        "a = Reshape(x, s1) t = Transpose<perm=[0,2,1,3,4]>(a) y = Reshape(t, s2)",
        (1, 2, 4, 10, 9),
    ),
    "rank 4": ("a = Reshape(x, s1) t = Transpose<perm=[0,2,1,3]>(a) y = Reshape(t, s2)", (1, 4, 2, 90)),
    "rank 3": ("a = Reshape(x, s1) t = Transpose<perm=[1,0,2]>(a) y = Reshape(t, s2)", (4, 2, 90)),
}


@pytest.mark.parametrize("case", SHUFFLES)
def test_shuffle_costs_one_transpose(case):
    body, shape = SHUFFLES[case]
    weights = {"s1": np.array(shape), "s2": np.array((1, 8, 10, 9))}
    assert ["RESHAPE", "TRANSPOSE", "RESHAPE"] == check(body, weights)


def test_shuffle_by_folding_the_batch():
    body = (
        "a = Reshape(x, s1) t = Transpose<perm=[1,0,2]>(a) b = Reshape(t, s2) "
        "p = Gather<axis=0>(b, i) q = Gather<axis=0>(b, j) y = Sub(p, q)"
    )
    weights = {
        "s1": np.array((4, 2, 90)),
        "s2": np.array((2, 1, 4, 10, 9)),
        "i": np.int64(0),
        "j": np.int64(1),
    }
    assert "TRANSPOSE" not in check(body, weights)


def test_reshape_across_the_axes():
    weights = {"s1": np.array((6, 4, 30)), "s2": np.array((5, 16, 9))}
    check("a = Reshape(x, s1) r = Relu(a) t = Transpose<perm=[2,0,1]>(r) y = Reshape(t, s2)", weights)


REFUSALS = {
    "unknown operator": ("y = Sinh(x)", {}, "Sinh"),
    "pooling with dilation": ("y = MaxPool<kernel_shape=[2,2],dilations=[2,2]>(x)", {}, "dilated"),
    "infinite padding": (
        "y = Pad(x, p, v)",
        {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "v": np.float32(-np.inf)},
        "infinite",
    ),
    "cubic": ('y = Resize<mode="cubic">(x, , , s)', {"s": np.array([1, 8, 20, 20])}, "cubic"),
    "antialias": (
        'y = Resize<mode="linear",antialias=1>(x, , , s)',
        {"s": np.array([1, 8, 5, 5])},
        "antialias",
    ),
    "scales that the sizes do not give": (
        'y = Resize<mode="linear",coordinate_transformation_mode="asymmetric">(x, , s)',
        {"s": np.array([1, 1, 1.55, 1.55], np.float32)},
        "RESIZE_BILINEAR",
    ),
    "computed weights": ("w = Transpose<perm=[1,0,2,3]>(x) y = Conv(x, w)", {}, "constant"),
    "broadcasting at rank 5": (
        "u = Unsqueeze(x, a) y = Add(u, c)",
        {"a": np.array([0]), "c": weight(8, 1, 1)},
        "rank",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_names_node_operator_and_target(case):
    body, weights, word = REFUSALS[case]
    shape = (1, 1, 3, 3) if case == "computed weights" else (1, 8, 10, 9)
    graph = graph_of(body, weights, shape)
    with pytest.raises(UnsupportedOperatorError) as caught:
        compare(graph)
    error = caught.value
    culprit = graph.nodes[-1]
    assert (culprit.name, culprit.op_type, "tflite") == (error.node, error.operator, error.where)
    assert word in error.message


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_every_operator_of_the_table_is_tested_here(operator):
    assert operator in Path(__file__).read_text(encoding="utf-8")
