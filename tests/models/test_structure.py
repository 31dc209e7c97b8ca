"""What a network takes and gives: names of inputs and nested outputs, and the flat tuple in their place."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shufflectl.errors import FactoryError, UsageError
from shufflectl.models.structure import bind, flattened, name_outputs


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclass
class Boxes:
    corners: Tensor
    scores: Tensor | None


def t(*shape: int) -> Tensor:
    return torch.zeros(shape)


class Takes(nn.Module):
    def forward(self, x: Tensor, extra: Tensor, mask: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class TestOutputs:
    @pytest.mark.parametrize(
        ("outputs", "names"),
        [
            (t(1), ("output",)),
            ((t(1), t(2)), ("output_0", "output_1")),
            ([t(1), [t(2), t(3)]], ("output_0", "output_1_0", "output_1_1")),
            ({"scores": t(1), "boxes": [t(2), t(3)]}, ("scores", "boxes_0", "boxes_1")),
            (OrderedDict(b=t(1), a=t(2)), ("b", "a")),
            (Pair(t(1), t(2)), ("left", "right")),
            (Boxes(t(1), None), ("corners",)),
            ({"a b/c": t(1)}, ("a_b_c",)),
            ({"image": t(1)}, ("image_1",)),
            ({"a b": t(1), "a_b": t(2)}, ("a_b", "a_b_1")),
            ({1: t(1)}, ("output_1",)),
        ],
    )
    def test_names(self, outputs: Any, names: tuple[str, ...]) -> None:
        assert names == name_outputs(outputs, (), ("image",), "net")[0]

    def test_shapes_are_in_the_same_order(self) -> None:
        assert ((2, 3), (4,)) == name_outputs({"b": t(2, 3), "a": t(4)}, (), (), "net")[1]

    def test_the_users_names_come_first(self) -> None:
        assert ("p", "q") == name_outputs({"b": t(2), "a": t(4)}, ("p", "q"), (), "net")[0]

    @pytest.mark.parametrize("given", [("p",), ("p", "p"), ("p", "image")])
    def test_names_that_do_not_fit_are_refused(self, given: tuple[str, ...]) -> None:
        with pytest.raises(UsageError):
            name_outputs((t(1), t(2)), given, ("image",), "net")

    @pytest.mark.parametrize(
        ("outputs", "words"),
        [
            ({"a": t(1), "n": 5}, "type int at 'n'"),
            ("text", "type str, not a tensor"),
            (None, "gives no tensor"),
            ({}, "gives no tensor"),
        ],
    )
    def test_what_is_no_tensor_is_refused(self, outputs: Any, words: str) -> None:
        with pytest.raises(FactoryError, match=words):
            name_outputs(outputs, (), (), "net")

    def test_one_tensor_twice_is_refused(self) -> None:
        x = t(1)
        with pytest.raises(FactoryError, match="one tensor twice"):
            name_outputs((x, {"again": x}), (), (), "net")


leaves = st.builds(lambda n: torch.arange(float(n)), st.integers(1, 4))
nested = st.recursive(
    leaves | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(nested)
@settings(max_examples=60, deadline=None)
def test_names_are_unique_and_there_is_one_for_each_tensor_of_the_flat_tuple(outputs: Any) -> None:
    class Net(nn.Module):
        def forward(self) -> Any:
            return outputs

    flat = flattened(Net())()
    if not flat:
        return
    names, shapes = name_outputs(outputs, (), (), "net")
    assert len(set(names)) == len(names) == len(flat)
    assert shapes == tuple(tuple(tensor.shape) for tensor in flat)


def test_the_flat_network_keeps_names_tensors_and_the_original() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": self.conv(x), "z": x + 1}

    net = Net()
    flat = flattened(net)
    assert flat.conv is net.conv
    assert list(net.state_dict()) == list(flat.state_dict())
    assert isinstance(flat, Net)
    assert isinstance(net(t(1, 3, 2, 2)), dict)
    assert isinstance(flat(t(1, 3, 2, 2)), tuple)


class TestInputs:
    def test_forwards_own_names_go_by_name(self) -> None:
        assert ["x", "extra"] == bind(["extra", "x"], Takes(), "net")

    def test_other_names_go_by_place(self) -> None:
        assert ["image", "vector"] == bind(["image", "vector"], Takes(), "net")

    @pytest.mark.parametrize("names", [["image"], ["a", "b", "c", "d"]])
    def test_another_number_is_refused(self, names: list[str]) -> None:
        with pytest.raises(UsageError, match="takes x, extra"):
            bind(names, Takes(), "net")

    def test_a_name_of_forwards_at_another_place_is_refused(self) -> None:
        with pytest.raises(UsageError, match="'extra' stands at place 1"):
            bind(["extra", "image"], Takes(), "net")

    def test_any_number_where_forward_takes_any(self) -> None:
        class Variable(nn.Module):
            def forward(self, *x: Tensor) -> Tensor:
                return x[0]

        assert ["a", "b"] == bind(["a", "b"], Variable(), "net")
