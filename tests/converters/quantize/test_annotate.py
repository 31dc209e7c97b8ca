"""Whatever form a graph's shuffles have, its codes are the same."""

import numpy as np
import onnx
import pytest

from converters.quantize.nets import images, runner, session
from converters.rewrite.nets import captured
from shufflectl.converters.graph import Graph
from shufflectl.converters.quantize.annotate import annotated
from shufflectl.converters.quantize.calibrate import calibrate
from shufflectl.converters.quantize.qdq import ActivationType, before_rounding, with_qdq
from shufflectl.converters.quantize.recipe import Recipe
from shufflectl.converters.rewrite.lowering import Options, apply
from shufflectl.errors import GraphError
from shufflectl.models.shufflenet_v1 import ShuffleNetV1
from support.graphs import graph_from_text
from support.nets import ShuffleNetV2, randomise, tiny_graph

FORMS = [
    ("native", Options()),
    ("rank4", Options()),
    ("interleave", Options()),
    ("gather", Options()),
    ("two-stream", Options()),
    ("fold", Options(max_concat=3)),
    ("fold", Options(align=8)),
    ("fold-split", Options()),
    ("fold-split", Options(align=8, merge=8)),
]


def quantised(graph: Graph, form: str, options: Options) -> Graph:
    found = calibrate(graph, runner(images(graph, 4)), Recipe(), source="", images=4, seed=0)
    prepared = found.prepare(graph)
    return annotated(apply(form, prepared, options)[0], prepared, found.scales(prepared))


def logits(graph: Graph, activations: ActivationType = "uint8") -> np.ndarray:
    proto = with_qdq(graph, activations).to_proto()
    name, output = str(graph.inputs[0].name), proto.graph.output[0].name
    running = session(proto, [output])
    return np.concatenate([running.run([output], {name: x})[0] for x in images(graph, 8, seed=1)])


@pytest.mark.parametrize(("form", "options"), FORMS, ids=lambda v: v if isinstance(v, str) else str(v.align))
def test_every_form_gives_the_same_codes(form: str, options: Options) -> None:
    graph = tiny_graph()
    given = logits(quantised(graph, form, options))
    wanted = logits(quantised(graph, "native", Options()))
    step = np.diff(np.unique(wanted)).min()
    # The columns of a folded convolution add up in another order: a code in a thousand may round otherwise.
    assert np.abs(given - wanted).max() <= 1.01 * step
    assert np.mean(given != wanted) < 0.05


def test_the_relu_behind_v1s_concat_is_left_out() -> None:
    net = randomise(ShuffleNetV1(2, None, 5, stem=8, stages=(16, 32, 48), units=(2, 1, 1)))
    graph = captured(net, size=64)
    found = quantised(graph, "fold", Options())
    relus = [n for n in found.nodes if n.op_type == "Relu"]
    assert relus
    assert all(n.inputs[0].producer().op_type != "Concat" for n in relus)
    captured_relus = {str(n.outputs[0].name) for n in graph.nodes if n.op_type == "Relu"}
    joined = [str(n.outputs[0].name) for n in found.nodes if n.op_type == "Concat"]
    assert len(joined) == 3
    assert {found.record(name).origin for name in joined} <= captured_relus
    # What the ReLU would have cut off is cut off where it is made: that is no captured tensor any more.
    assert "" == found.record("stage2.0.expand.1").origin


@pytest.mark.parametrize(
    ("form", "options"), [("masked", Options()), ("fold-split", Options(align=8, merge=8, carry=8))]
)
def test_forms_that_would_round_otherwise_are_refused(form: str, options: Options) -> None:
    graph = captured(ShuffleNetV2((5,), (8, 20, 16), 5))  # its later units have room to carry
    with pytest.raises(GraphError, match="scale"):
        quantised(graph, form, options)


def test_every_tensor_is_rounded_once() -> None:
    found = quantised(tiny_graph(), "fold", Options())
    proto = with_qdq(found).to_proto()
    assert len(found.quantization.scales) == sum(n.op_type == "QuantizeLinear" for n in proto.graph.node)
    makers = {o: n.op_type for n in proto.graph.node for o in n.output}
    for node in proto.graph.node:
        if node.op_type in ("Conv", "Gemm", "Concat", "Slice", "MaxPool"):
            assert {"DequantizeLinear"} == {makers[i] for i in node.input if i in makers}, node.name


def test_layers_that_stay_in_floating_point_keep_their_weights() -> None:
    graph = tiny_graph()
    found = calibrate(graph, runner(images(graph, 4)), Recipe(equalise=0), source="", images=4, seed=0)
    kept = annotated(graph, graph, found.scales(graph), frozenset({"conv5.2"}))
    proto = with_qdq(kept).to_proto()
    (relu,) = (n for n in proto.graph.node if n.op_type == "Relu" and n.name == "conv5.2")
    (conv,) = (n for n in proto.graph.node if relu.input[0] in n.output)
    weights = {t.name: t.data_type for t in proto.graph.initializer}
    assert onnx.TensorProto.FLOAT == weights[conv.input[1]]
    others = [n for n in proto.graph.node if n.op_type == "Conv" and n is not conv]
    assert not {n.input[1] for n in others} & set(weights)


def test_no_float_weights_are_left() -> None:
    proto = with_qdq(quantised(tiny_graph(), "fold", Options())).to_proto()
    used = {name for node in proto.graph.node for name in node.input}
    assert {t.name for t in proto.graph.initializer} <= used
    rounding = [n for n in proto.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    floats = {t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert floats == {n.input[1] for n in rounding}


def test_codes_have_the_names_of_the_weights_they_are_codes_of() -> None:
    graph = quantised(tiny_graph(), "fold", Options())
    weights = {str(n.inputs[1].name) for n in graph.nodes if n.op_type == "Conv" and n.inputs[1] is not None}
    proto = with_qdq(graph).to_proto()
    codes = {t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT8 and t.dims[1:]}
    assert weights <= codes


def test_helpers_take_no_name_that_a_tensor_has() -> None:
    graph = quantised(tiny_graph(), "fold", Options())
    plain = {str(v.name) for n in with_qdq(graph).nodes for v in n.outputs}
    taken = sorted(name for name in plain if name[:1] in "fqw" and name[1:].isdigit())
    assert {"f0", "q0", "w0"} <= set(taken)
    (conv,) = (n for n in graph.nodes if n.name == "conv5.1")
    conv.outputs[0].name = "f0"
    made = [str(v.name) for n in with_qdq(graph).nodes for v in n.outputs]
    assert len(set(made)) == len(made)
    assert made.count("f0") == 1


def test_what_a_tensor_is_called_before_it_is_rounded_is_found() -> None:
    rounded = with_qdq(quantised(tiny_graph(), "fold", Options()))
    before = before_rounding(rounded)
    makers = {str(v.name): n for n in rounded.nodes for v in n.outputs}
    assert "image.rounded" not in before
    assert "Relu" == makers[before["conv5.2"]].op_type


def test_signed_and_unsigned_codes_are_one_grid() -> None:
    found = quantised(tiny_graph(), "fold", Options())
    assert np.array_equal(logits(found), logits(found, "int8"))


def test_an_input_that_only_a_relu_reads_in_the_end_keeps_its_name() -> None:
    text = """g (float[1,4,2,2] x) => (float[1,4,2,2] y) {
      t = Transpose<perm=[0,1,3,2]>(x)
      s = Relu(t)
      r = Relu(x)
      y = Add(r, s)
    }"""
    found = quantised(graph_from_text(text), "native", Options())
    assert ("x", "s") == (found.record("x").origin, found.record("t").origin)
