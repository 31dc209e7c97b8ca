"""Random networks of ShuffleNet-like units, drawn and built as ONNX graphs without torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from shufflectl.converters.graph import Graph


@dataclass
class Net:
    """A graph that is grown one operator at a time; every tensor is [N, C, H, W] of known C."""

    seed: int
    batch: int | str = 2
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    channels: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def input(self, channels: int, size: int) -> str:
        self.channels["image"], self.sizes["image"] = channels, size
        return "image"

    def constant(self, array: NDArray | Sequence[int], name: str = "") -> str:
        found = np.asarray(array)
        name = name or f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(found), name))
        return name

    def weight(self, *shape: int) -> str:
        scale = (2 / max(int(np.prod(shape[1:])), 1)) ** 0.5
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def vector(self, *shape: int, low: float = -0.5, high: float = 0.5) -> str:
        return self.constant(self.rng.uniform(low, high, shape).astype(np.float32))

    def op(
        self,
        op: str,
        inputs: Sequence[str],
        channels: int | Sequence[int],
        size: int | None = None,
        **attributes: object,
    ) -> list[str]:
        counts = [channels] if isinstance(channels, int) else list(channels)
        names = [f"{op.lower()}{len(self.nodes)}_{i}" for i in range(len(counts))]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=names[0], **attributes))
        for name, count in zip(names, counts, strict=True):
            self.channels[name] = count
            self.sizes[name] = self.sizes[inputs[0]] if size is None else size
        return names

    def conv(
        self, x: str, out: int, *, kernel: int = 1, stride: int = 1, group: int = 1, weight: str = ""
    ) -> str:
        size = (self.sizes[x] + stride - 1) // stride
        w = weight or self.weight(out, self.channels[x] // group, kernel, kernel)
        inputs = [x, w, self.vector(out)] if self.rng.random() < 0.8 else [x, w]
        pads, strides, sides = [kernel // 2] * 4, [stride] * 2, [kernel] * 2
        return self.op(
            "Conv",
            inputs,
            out,
            size,
            group=group,
            strides=strides,
            pads=pads,
            kernel_shape=sides,
        )[0]

    def depthwise(self, x: str, stride: int = 1) -> str:
        return self.conv(x, self.channels[x], kernel=3, stride=stride, group=self.channels[x])

    def act(self, x: str, kind: str = "Relu") -> str:
        c = self.channels[x]
        if kind == "Clip":
            bounds = [self.constant(np.float32(0)), self.constant(np.float32(6))]
            return self.op("Clip", [x, *bounds], c)[0]
        if kind == "PRelu":
            return self.op("PRelu", [x, self.vector(c, 1, 1)], c)[0]
        if kind == "BatchNormalization":
            stats = [self.vector(c), self.vector(c), self.vector(c), self.vector(c, low=0.5, high=1.5)]
            return self.op(kind, [x, *stats], c)[0]
        if kind == "affine":
            y = self.op("Mul", [x, self.vector(1, c, 1, 1)], c)[0]
            return self.op("Add", [y, self.vector(c, 1, 1)], c)[0]
        if kind == "pool":
            return self.op("MaxPool", [x], c, kernel_shape=[3, 3], pads=[1, 1, 1, 1])[0]
        return self.op(kind, [x], c)[0]

    def join(self, *values: str) -> str:
        if len(values) == 1:
            return values[0]
        return self.op("Concat", values, sum(self.channels[v] for v in values), axis=1)[0]

    def reshape(self, x: str, *shape: int, channels: int) -> str:
        return self.op("Reshape", [x, self.constant(np.asarray(shape, np.int64))], channels)[0]

    def shuffle(self, x: str, groups: int, rank: int) -> str:
        c, s = self.channels[x], self.sizes[x]
        space = (s, s) if rank == 5 else (s * s,)
        y = self.reshape(x, -1, groups, c // groups, *space, channels=groups)
        perm = [0, 2, 1, *range(3, rank)]
        y = self.op("Transpose", [y], c // groups, perm=perm)[0]
        return self.reshape(y, -1, c, s, s, channels=c)

    def split(self, x: str, *sizes: int) -> list[str]:
        return self.op("Split", [x, self.constant(np.asarray(sizes, np.int64))], sizes, axis=1)

    def slice(self, x: str, first: int, end: int, step: int = 1) -> str:
        bounds = [self.constant(np.asarray([v], np.int64)) for v in (first, end, 1, step)]
        return self.op("Slice", [x, *bounds], len(range(first, end, step)))[0]

    def excite(self, x: str) -> str:
        c = self.channels[x]
        y = self.op("GlobalAveragePool", [x], c, 1)[0]
        y = self.act(self.conv(y, max(c // 2, 1)))
        y = self.act(self.conv(y, c), "Sigmoid")
        return self.op("Mul", [x, y], c)[0]

    def classify(self, x: str, classes: int) -> str:
        c = self.channels[x]
        y = self.op("GlobalAveragePool", [x], c, 1)[0]
        if self.rng.random() < 0.5:
            y = self.op("Flatten", [y], c, 1, axis=1)[0]
        else:
            y = self.reshape(y, -1, c, channels=c)
        return self.op("Gemm", [y, self.weight(classes, c), self.vector(classes)], classes, transB=1)[0]

    def finish(self) -> Graph:
        size = self.sizes["image"]
        shape = [self.batch, self.channels["image"], size, size]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in dict.fromkeys(self.outputs)],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model)
        return Graph(ir.from_proto(model))


_ACTIVATIONS = ["Relu", "Clip", "HardSwish", "PRelu", "BatchNormalization", "affine", "pool", "Sigmoid"]


@st.composite
def nets(draw: st.DrawFn) -> Graph:
    """A random network: units of V1 and V2 in mixed spellings, taps, shared weights, odd widths."""
    net = Net(draw(st.integers(0, 1 << 16)), draw(st.sampled_from([1, 2, "batch"])))
    x = net.input(draw(st.integers(1, 4)), draw(st.sampled_from([5, 8])))
    x = net.act(net.conv(x, draw(st.integers(2, 12)), kernel=3), draw(st.sampled_from(_ACTIVATIONS)))
    shared: dict[tuple[int, int], str] = {}

    def branch(x: str, out: int, stride: int) -> str:
        key = (net.channels[x], out)
        weight = shared.get(key, "") if draw(st.booleans()) else ""
        y = net.conv(x, out, weight=weight)
        shared.setdefault(key, net.nodes[-1].input[1])
        if draw(st.booleans()):
            y = net.act(y)
        y = net.conv(net.depthwise(y, stride), out)
        return net.act(y, draw(st.sampled_from(_ACTIVATIONS)))

    def moved(x: str) -> str:
        c = net.channels[x]
        groups = draw(st.sampled_from([g for g in range(1, c + 1) if c % g == 0]))
        return net.shuffle(x, groups, draw(st.sampled_from([4, 5])))

    def basic(x: str) -> str:
        c = net.channels[x]
        if c < 2:
            return branch(x, c, 1)
        form = draw(st.sampled_from(["split", "slice", "even", "residual"]))
        half = c // 2 if draw(st.booleans()) else draw(st.integers(1, c - 1))
        if form == "even":
            kept, worked = net.slice(x, 0, c, 2), net.slice(x, 1, c, 2)
        elif form == "slice":
            kept, worked = net.slice(x, 0, half), net.slice(x, half, c)
        else:
            kept, worked = net.split(x, half, c - half)
        made = branch(worked, net.channels[worked], 1)
        if form == "residual":
            if draw(st.booleans()):
                made = net.excite(made)
            made = net.act(net.op("Add", [worked, made], net.channels[worked])[0])
        joined = net.join(kept, made) if draw(st.booleans()) else net.join(made, kept)
        return moved(joined) if draw(st.integers(0, 3)) else joined

    def down(x: str) -> str:
        out = draw(st.integers(1, 8))
        left = net.act(net.conv(net.depthwise(x, 2), out))
        return moved(net.join(left, branch(x, out, 2)))

    def grouped(x: str) -> str:
        c = net.channels[x]
        groups = draw(st.sampled_from([g for g in (1, 2, 3, 4) if c % g == 0]))
        y = net.act(net.conv(x, groups * draw(st.integers(1, 4)), group=groups))
        y = moved(y)
        y = net.depthwise(y)
        back = [g for g in (1, 2, 3, 4) if net.channels[y] % g == 0 and c % g == 0]
        y = net.conv(y, c, group=draw(st.sampled_from(back)))
        return net.act(net.op("Add", [x, y], c)[0])

    def tap(x: str) -> str:
        net.outputs.append(x)
        return x

    units: list[Callable[[str], str]] = [basic, basic, basic, down, grouped, moved, tap]
    for _ in range(draw(st.integers(1, 6))):
        x = draw(st.sampled_from(units))(x)
        if net.channels[x] > 40:
            x = net.conv(x, 9)
    if draw(st.booleans()):
        x = net.act(net.conv(x, draw(st.integers(1, 10))))
    net.outputs.append(net.classify(x, 3) if draw(st.integers(0, 3)) else x)
    if net.outputs[-1] == "image":
        net.outputs[-1] = net.act("image")
    return net.finish()
