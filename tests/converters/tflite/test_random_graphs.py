"""Random small graphs: whatever mixture of layouts, the file computes what ONNX Runtime computes."""

import math

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.tflite import compare, graph_of

LIMIT = 3e-5  # a dozen convolutions deep, relative to the largest output


@st.composite
def image_networks(draw):
    """Convolutions, pools, shuffles, splits and elementwise operators on an image."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    batch = draw(st.sampled_from([1, 1, 2]))
    channels, height, width = (
        draw(st.sampled_from([4, 6, 12])),
        draw(st.integers(5, 9)),
        draw(st.integers(5, 9)),
    )
    shape, weights, lines, current = (batch, channels, height, width), {}, [], "x"

    def constant(name, value):
        weights[name] = value
        return name

    for i in range(draw(st.integers(2, 6))):
        name = f"t{i}"
        kinds = ["conv", "depthwise", "relu", "add", "shuffle", "swap", "halves", "se", "scale"]
        kind = draw(st.sampled_from([*kinds, "pool"] if min(height, width) > 2 else kinds))
        if kind == "conv":
            groups = draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
            made = groups * draw(st.sampled_from([2, 4]))
            kernel = draw(st.sampled_from([1, 3]))
            stride = draw(st.sampled_from([1, 2]))
            pads = [draw(st.integers(0, 1)) if kernel == 3 else 0 for _ in range(4)]
            after = [
                (n + pads[k] + pads[k + 2] - kernel) // stride + 1 for k, n in enumerate((height, width))
            ]
            if min(after) < 1:
                continue
            w = constant(
                f"w{i}", (rng.standard_normal((made, channels // groups, kernel, kernel)) / 3).astype("f4")
            )
            b = constant(f"b{i}", rng.standard_normal(made).astype("f4"))
            lines.append(
                f"{name} = Conv<group={groups},strides=[{stride},{stride}],pads={pads}>({current}, {w}, {b})"
            )
            channels, (height, width) = made, after
        elif kind == "depthwise":
            times = draw(st.sampled_from([1, 2]))
            w = constant(f"w{i}", (rng.standard_normal((channels * times, 1, 3, 3)) / 3).astype("f4"))
            lines.append(f"{name} = Conv<group={channels},pads=[1,1,1,1]>({current}, {w})")
            channels *= times
        elif kind == "pool":
            operator = draw(st.sampled_from(["MaxPool", "AveragePool"]))
            pads = draw(st.sampled_from([[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]]))
            lines.append(f"{name} = {operator}<kernel_shape=[3,3],strides=[2,2],pads={pads}>({current})")
            height, width = ((n + pads[k] + pads[k + 2] - 3) // 2 + 1 for k, n in enumerate((height, width)))
        elif kind == "shuffle":
            groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
            parts = (batch, groups, channels // groups)
            planar = draw(st.booleans())
            inner = constant(
                f"r{i}", np.array((*parts, height * width) if planar else (*parts, height, width))
            )
            back = constant(f"s{i}", np.array((batch, channels, height, width)))
            perm = [0, 2, 1, 3] if planar else [0, 2, 1, 3, 4]
            lines.append(
                f"a{i} = Reshape({current}, {inner}) p{i} = Transpose<perm={perm}>(a{i}) "
                f"{name} = Reshape(p{i}, {back})"
            )
        elif kind == "swap":
            lines.append(f"{name} = Transpose<perm=[0,1,3,2]>({current})")
            height, width = width, height
        elif kind == "halves" and channels % 2 == 0:
            lines.append(
                f"h{i}, k{i} = Split<axis=1,num_outputs=2>({current}) j{i} = Relu(k{i}) "
                f"{name} = Concat<axis=1>(j{i}, h{i})"
            )
        elif kind == "se":
            lines.append(
                f"g{i} = GlobalAveragePool({current}) e{i} = Sigmoid(g{i}) {name} = Mul({current}, e{i})"
            )
        elif kind == "scale":
            c = constant(f"c{i}", rng.standard_normal((channels, 1, 1)).astype("f4"))
            lines.append(f"{name} = Mul({current}, {c})")
        elif kind == "add":
            lines.append(f"n{i} = Tanh({current}) {name} = Add({current}, n{i})")
        else:
            lines.append(f"{name} = Relu({current})")
        current = name
    tail = draw(st.sampled_from(["image", "dense", "mean"]))
    if tail == "dense":
        w = constant("wd", (rng.standard_normal((3, channels * height * width)) / 10).astype("f4"))
        lines.append(f"f = Flatten({current}) y = Gemm<transB=1>(f, {w})")
    elif tail == "mean":
        axes = constant("axes", np.array([2, 3]))
        w = constant("wd", rng.standard_normal((channels, 3)).astype("f4"))
        lines.append(f"f = ReduceMean<keepdims=0>({current}, {axes}) y = MatMul(f, {w})")
    else:
        lines.append(f"y = Neg({current})")
    return " ".join(lines), weights, shape


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(image_networks(), st.sampled_from(["nhwc", "nchw"]))
def test_image_network_agrees_with_onnx_runtime(network, layout):
    result = compare(graph_of(*network), layout=layout)
    assert result.worst < LIMIT, result.errors


@st.composite
def movements(draw):
    """Reshapes and transposes in any mixture, with work between them that depends on the place."""
    shape = [draw(st.sampled_from([1, 2, 3, 4, 6])) for _ in range(4)]
    current, lines, weights, source = list(shape), [], {}, "x"
    for i in range(draw(st.integers(1, 6))):
        name = f"t{i}"
        kind = draw(st.sampled_from(["reshape", "transpose", "relu", "add", "softmax", "reduce"]))
        if kind == "reshape":
            size, made = math.prod(current), []
            while len(made) < 3 and size > 1:
                made.append(draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0])))
                size //= made[-1]
            current = [*made, size]
            weights[f"s{i}"] = np.array(current)
            lines.append(f"{name} = Reshape({source}, s{i})")
        elif kind == "transpose":
            perm = draw(st.permutations(range(len(current))))
            current = [current[p] for p in perm]
            lines.append(f"{name} = Transpose<perm={list(perm)}>({source})")
        elif kind == "add":
            weights[f"c{i}"] = np.arange(math.prod(current), dtype=np.float32).reshape(current) / 10
            lines.append(f"{name} = Add({source}, c{i})")
        elif kind == "softmax":
            lines.append(f"{name} = Softmax<axis={draw(st.integers(0, len(current) - 1))}>({source})")
        elif kind == "reduce":
            axis = draw(st.integers(0, len(current) - 1))
            weights[f"a{i}"] = np.array([axis])
            lines.append(f"{name} = ReduceMax<keepdims=1>({source}, a{i})")
            current[axis] = 1
        else:
            lines.append(f"{name} = Relu({source})")
        source = name
    return " ".join([*lines, f"y = Neg({source})"]), weights, shape


@settings(max_examples=80, deadline=None)
@given(movements(), st.sampled_from(["nhwc", "nchw"]))
def test_data_movement_agrees_with_onnx_runtime(program, layout):
    result = compare(graph_of(*program), layout=layout)
    assert result.worst < LIMIT, result.errors
