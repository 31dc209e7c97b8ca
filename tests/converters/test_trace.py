"""Views of tensors through layouts, permutations and padding."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shufflectl.converters.trace import TensorView, Trace

_PIECES = [
    json.dumps({"x": {"channels": [0, 1], "rest": rest}})
    for rest in (
        [{"name": "b"}],
        [{"name": "b", "channels": [1]}],
        [{"name": "b", "channels": [3]}],
        [{"name": "b", "channels": [2], "rest": [{"name": "c", "channels": [3]}]}],
    )
]

NCHW = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)


@st.composite
def views(draw: st.DrawFn, rank: int = 4, channels: int = 3) -> TensorView:
    axes = draw(st.none() | st.permutations(range(rank)).map(tuple))
    order = draw(st.none() | st.permutations(range(channels)).map(list))
    if order is not None:
        for _ in range(draw(st.integers(0, 3))):
            order.insert(draw(st.integers(0, len(order))), -1)
    return TensorView(draw(st.text(min_size=1, max_size=4)), axes, None if order is None else tuple(order))


@given(views())
def test_the_way_to_the_file_and_back_is_the_identity(view: TensorView) -> None:
    np.testing.assert_array_equal(NCHW, view.to_logical(view.to_file(NCHW)))


@given(st.dictionaries(st.text(min_size=1, max_size=4), views(), max_size=5))
def test_json_gives_the_trace_back_in_order(views_by_name: dict[str, TensorView]) -> None:
    trace = Trace(views_by_name)
    again = Trace.from_json(trace.to_json())
    assert list(views_by_name.items()) == list(again.items())
    assert trace.to_json() == again.to_json()


@pytest.mark.parametrize(
    ("channels", "text"),
    [
        ((12, 13, 14, 6, 7, 3), "12:15 6:8 3"),
        ((0, 2, 4, 1, 3, 5, 9), "0:6:2 1:7:2 9"),
        ((0, 1, -1, -1, -1), "0:2 -1*3"),
        ((2, 1, 0, 7, 9), "2 1 0 7 9"),
        ((-1, 0, 1), "-1:2"),
    ],
)
def test_channels_are_written_as_runs(channels: tuple[int, ...], text: str) -> None:
    trace = Trace({"x": TensorView("x", None, channels)})
    assert {"x": {"channels": text}} == json.loads(trace.to_json())
    assert trace["x"] == Trace.from_json(trace.to_json())["x"]


@given(st.lists(st.integers(-1, 40), max_size=40))
def test_any_channels_come_back(channels: list[int]) -> None:
    view = TensorView("x", None, tuple(channels))
    assert view == Trace.from_json(Trace({"x": view}).to_json())["x"]


@pytest.mark.parametrize(
    "text", ["a", "1:", "0:4:0", "3*", "0:9999999", "0:9*9999999 1:2:3:4", "0:9000 0*9999999"]
)
def test_runs_that_are_none_or_more_than_a_tensor_holds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="channels"):
        Trace.from_json(json.dumps({"x": {"channels": text}}))


def test_a_name_with_underscores_for_dots_is_not_written_out() -> None:
    trace = Trace(
        {"stage2.0": TensorView("stage2_0"), "conv_1": TensorView("conv_1"), "x.y": TensorView("_")}
    )
    assert {"stage2.0": {"_": 1}, "conv_1": {}, "x.y": {"name": "_"}} == json.loads(trace.to_json())
    assert dict(trace) == dict(Trace.from_json(trace.to_json()))


def test_lists_of_channels_of_older_files_are_read() -> None:
    assert (1, 0) == Trace.from_json('{"x":{"channels":[1,0]}}')["x"].channels


def test_nhwc_is_the_permutation_that_the_field_means() -> None:
    file = TensorView("x", (0, 2, 3, 1)).to_file(NCHW)
    assert (2, 4, 5, 3) == file.shape
    assert NCHW[1, 2, 3, 4] == file[1, 3, 4, 2]


def test_channels_say_what_the_file_holds_in_each_place() -> None:
    file = TensorView("x", None, (2, -1, 0, 1)).to_file(NCHW)
    np.testing.assert_array_equal(file[:, 0], NCHW[:, 2])
    np.testing.assert_array_equal(file[:, 1], np.zeros_like(NCHW[:, 0]))
    np.testing.assert_array_equal(file[:, 3], NCHW[:, 1])


def test_a_view_of_a_matrix_permutes_its_columns() -> None:
    matrix = np.arange(6.0).reshape(2, 3)
    view = TensorView("x", None, (1, 2, 0))
    assert [1.0, 2.0, 0.0] == view.to_file(matrix)[0].tolist()
    np.testing.assert_array_equal(matrix, view.to_logical(view.to_file(matrix)))


@given(st.permutations(range(3)), st.integers(1, 2), st.integers(0, 2))
def test_pieces_make_up_the_tensor(order: list[int], cut: int, padding: int) -> None:
    parts = [
        TensorView(n, (0, 2, 3, 1), (*c, *[-1] * padding))
        for n, c in (("a", order[:cut]), ("b", order[cut:]))
    ]
    view = replace(parts[0], rest=(parts[1],))
    arrays = {part.name: part.to_file(NCHW) for part in parts}
    assert ("a", "b") == view.names
    np.testing.assert_array_equal(NCHW, view.collect(arrays))
    assert view == Trace.from_json(Trace({"x": view}).to_json())["x"]


@pytest.mark.parametrize(
    "text", [*_PIECES, "[]", "3", "{", '{"a": {"axes": [0, 2]}}', '{"a": {"axes": [1, 1]}}']
)
def test_text_that_is_no_trace_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Trace.from_json(text)


def test_a_plain_view_takes_no_room() -> None:
    assert {"a": {}} == json.loads(Trace({"a": TensorView("a")}).to_json())


def test_a_trace_is_a_mapping() -> None:
    trace = Trace({"a": TensorView("b")})
    assert (1, ["a"], "Trace(1 tensors)") == (len(trace), list(trace), repr(trace))
    with pytest.raises(KeyError):
        trace["c"]
