"""The captured graph: shapes, constants, records, and the way through bytes."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shufflectl.converters.graph import Graph, Quantization, TensorRecord
from shufflectl.converters.quantize.scales import Scale
from shufflectl.errors import GraphError
from support.graphs import graph_from_text
from support.nets import tiny_graph

TEXT = """
g (float[batch,2,4] x) => (float[batch,8] y) <int64[2] shape = {-1, 8}>
{
    c = Constant <value: tensor = float[1] {0.5}> ()
    m = Mul (x, c)
    y = Reshape (m, shape)
}
"""


def test_inputs_are_those_that_a_caller_feeds() -> None:
    proto = graph_from_text(TEXT).to_proto()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [2]))
    graph = Graph.from_bytes(proto.SerializeToString())
    assert ["x"] == [v.name for v in graph.inputs]
    assert ["y"] == [v.name for v in graph.outputs]


def test_a_symbolic_dimension_is_its_name() -> None:
    graph = graph_from_text(TEXT)
    assert ("batch", 2, 4) == Graph.shape(graph.inputs[0])
    assert ("batch", 8) == Graph.shape(graph.outputs[0])


def test_an_unknown_shape_is_an_error_that_names_the_tensor() -> None:
    graph = graph_from_text(TEXT)
    graph.nodes[1].outputs[0].shape = None
    with pytest.raises(GraphError, match="'m'"):
        Graph.shape(graph.nodes[1].outputs[0])


def test_constants_are_initialisers_and_constant_nodes() -> None:
    graph = graph_from_text(TEXT)
    multiply, reshape = graph.nodes[1:]
    assert [-1, 8] == np.asarray(Graph.constant(reshape.inputs[1])).tolist()
    assert [0.5] == np.asarray(Graph.constant(multiply.inputs[1])).tolist()
    assert Graph.constant(multiply.inputs[0]) is None
    assert Graph.constant(reshape.inputs[0]) is None
    assert Graph.constant(None) is None


def test_a_tensor_without_a_record_stands_for_itself() -> None:
    assert TensorRecord("m") == graph_from_text(TEXT).record("m")


def test_nodes_come_in_an_order_that_can_be_executed() -> None:
    seen = {v.name for v in tiny_graph().inputs} | set(tiny_graph().model.graph.initializers)
    for node in tiny_graph().nodes:
        assert {v.name for v in node.inputs if v is not None} <= seen
        seen |= {v.name for v in node.outputs}


def test_a_clone_can_be_changed_without_changing_the_graph() -> None:
    graph = graph_from_text(TEXT)
    graph.records["m"] = TensorRecord("conv", (1, 0))
    before = graph.to_bytes()
    clone = graph.clone()
    clone.nodes[1].op_type = "Div"
    clone.records["y"] = TensorRecord("z")
    clone.model.metadata_props["key"] = "value"
    assert before == graph.to_bytes()
    assert ["Constant", "Mul", "Reshape"] == [n.op_type for n in graph.nodes]


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)
records = st.dictionaries(
    names,
    st.builds(
        TensorRecord,
        names | st.just(""),
        st.none() | st.lists(st.integers(-1, 500), max_size=5).map(tuple),
        st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)),
    ),
    max_size=4,
)
scales = st.builds(Scale, st.floats(2.0**-126, 2.0**100, width=32, allow_nan=False), st.integers(-128, 127))
quantizations = st.none() | st.builds(
    Quantization, st.dictionaries(names, scales, max_size=4), st.frozensets(names, max_size=3)
)


@given(records, quantizations)
def test_bytes_give_the_graph_its_records_and_its_scales_back(
    kept: dict[str, TensorRecord], quantization: Quantization | None
) -> None:
    graph = graph_from_text(TEXT)
    graph.records, graph.quantization = dict(kept), quantization
    graph.model.metadata_props["mine"] = "yes"
    again = Graph.from_bytes(graph.to_bytes())
    assert kept == again.records
    assert quantization == again.quantization
    assert {"mine": "yes"} == dict(again.model.metadata_props)
    assert graph.to_bytes() == again.to_bytes()


def test_weights_survive_bytes_exactly() -> None:
    again = Graph.from_bytes(tiny_graph().to_bytes())
    for name, value in tiny_graph().model.graph.initializers.items():
        np.testing.assert_array_equal(
            Graph.constant(value), Graph.constant(again.model.graph.initializers[name])
        )
