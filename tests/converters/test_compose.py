"""Traces composed of records and of what an emitter kept."""

from shufflectl.converters.compose import Located, compose
from shufflectl.converters.graph import Graph, TensorRecord
from shufflectl.converters.trace import TensorView
from support.graphs import graph_from_text

TEXT = """
g (float[1,4,2,2] image) => (float[1,4,2,2] y) {
  a = Relu (image)
  b = Sigmoid (image)
  y = Add (a, b)
}
"""


def located(graph: Graph, *names: str) -> list[Located]:
    values = [*graph.inputs, *(out for node in graph.nodes for out in node.outputs)]
    return [Located(v, f"file/{v.name}") for v in values if v.name in names]


def recorded(**records: TensorRecord) -> Graph:
    graph = graph_from_text(TEXT)
    graph.records = records
    return graph


def test_a_tensor_without_a_record_stands_for_itself() -> None:
    trace = compose(recorded(), located(recorded(), "image", "y"))
    assert {"image": TensorView("file/image"), "y": TensorView("file/y")} == dict(trace)


def test_a_tensor_that_stands_for_none_is_left_out() -> None:
    graph = recorded(a=TensorRecord(""))
    assert ["y"] == list(compose(graph, located(graph, "a", "y")))


def test_the_first_of_two_whole_views_is_taken() -> None:
    graph = recorded(a=TensorRecord("x", (1, 0, 2, 3)), b=TensorRecord("x"))
    assert {"x": TensorView("file/a", None, (1, 0, 2, 3))} == dict(compose(graph, located(graph, "a", "b")))


def test_pieces_make_up_a_captured_tensor() -> None:
    graph = recorded(a=TensorRecord("x", (4, 0, 2, -1)), b=TensorRecord("x", (1, -1, 3, -1)))
    (view,) = compose(graph, located(graph, "a", "b")).values()
    assert ("file/a", "file/b") == view.names
    assert [4, 0, 2] == view.held.tolist()


def test_a_whole_tensor_comes_before_pieces() -> None:
    graph = recorded(a=TensorRecord("x", (1, 0, -1, -1)), b=TensorRecord("x", (2, 1, 0, -1)))
    graph.records["y"] = TensorRecord("x", (2, -1, -1, -1))
    (view,) = compose(graph, located(graph, "a", "b", "y")).values()
    assert ("file/b",) == view.names


def test_a_captured_tensor_of_which_a_piece_is_gone_is_left_out() -> None:
    graph = recorded(a=TensorRecord("x", (0, 1, 2, -1)), b=TensorRecord("x", (3, 4, -1, -1)))
    assert {} == dict(compose(graph, located(graph, "a")))
    assert {} == dict(compose(graph, located(graph, "b")))
