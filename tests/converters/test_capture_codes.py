"""Codes of eight bits in other exporters' ONNX files are seen through, where they are what they seem."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from converters.rewrite.nets import run
from shufflectl.converters.capture.codes import without_codes

HEAD = '<ir_version: 10, opset_import: ["" : 21]> g (float[1,2,4] x) => (float[1,2,4] y) '
GRIDS = "<float s = {0.5}, float t = {0.25}, uint8 z = {128}, "


def model(text: str, constants: str = "int64[1] n = {0}>") -> onnx.ModelProto:
    found = parser.parse_model(f"{HEAD}{GRIDS}{constants} {{ {text} }}")
    onnx.checker.check_model(found)
    return found


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def test_a_pair_between_operators_goes_and_one_at_the_output_stays() -> None:
    proto = model(
        "q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z) b = Relu(a) "
        "r = QuantizeLinear(b, s, z) y = DequantizeLinear(r, s, z)"
    )
    plain, said = without_codes(proto)
    assert ["Relu", "QuantizeLinear", "DequantizeLinear"] == kinds(plain)
    assert ("1 tensors that are rounded to codes are looked at as if they were not",) == said
    onnx.checker.check_model(plain)


def test_one_rounding_with_several_readers_goes() -> None:
    proto = model(
        "q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z) b = DequantizeLinear(q, s, z) "
        "y = Add(a, b)"
    )
    assert ["Add"] == kinds(without_codes(proto)[0])


@pytest.mark.parametrize(
    "second", ["DequantizeLinear(q, t, z)", "DequantizeLinear(q, s)"], ids=["another scale", "no zero point"]
)
def test_codes_that_become_other_numbers_stay(second: str) -> None:
    plain, said = without_codes(model(f"q = QuantizeLinear(x, s, z) a = {second} y = Relu(a)"))
    assert ["QuantizeLinear", "DequantizeLinear", "Relu"] == kinds(plain)
    assert () == said


@pytest.mark.parametrize(
    ("constants", "text"),
    [
        (
            "int8[2,4] w = {1,-2,3,-4,5,-6,7,-8}, float[2] v = {0.5, 2}>",
            "a = DequantizeLinear<axis = 0>(w, v)",
        ),
        ("int8[2,4] w = {1,-2,3,-4,5,-6,7,-8}, int8 o = {3}>", "a = DequantizeLinear(w, s, o)"),
        (
            "uint8[2,4] w = {1,2,3,4,5,6,7,8}, float[4] v = {1, 2, 3, 4}, uint8[4] o = {1, 2, 3, 9}>",
            "a = DequantizeLinear<axis = -1>(w, v, o)",
        ),
        ("int32[2,4] w = {1,-2,3,-4,5,-6,7,-8}>", "a = DequantizeLinear(w, s)"),
    ],
    ids=["rows", "one zero point", "columns", "bias"],
)
def test_weights_in_codes_become_the_numbers_that_they_stand_for(constants: str, text: str) -> None:
    proto = model(f"{text} y = Add(x, a)", constants)
    plain, said = without_codes(proto)
    assert ["Add"] == kinds(plain)
    assert ("1 constants that are held as codes became floats",) == said
    feeds = {"x": np.ones((1, 2, 4), np.float32)}
    assert np.array_equal(run(proto, feeds)["y"], run(plain, feeds)["y"])


@pytest.mark.parametrize(
    ("constants", "text"),
    [
        ("int8[2,4] w = {1,1,1,1,1,1,1,1}, float[3] v = {1, 2, 3}>", "DequantizeLinear<axis = 0>(w, v)"),
        (
            "int8[2,4] w = {1,1,1,1,1,1,1,1}, float[2] v = {1, 2}, int8[3] o = {1, 2, 3}>",
            "DequantizeLinear<axis = 0>(w, v, o)",
        ),
        ("int8[2,4] w = {1,1,1,1,1,1,1,1}, float[2] v = {1, 2}>", "DequantizeLinear<axis = 7>(w, v)"),
        (
            "int8[2,4] w = {1,1,1,1,1,1,1,1}, float[2,2] v = {1, 2, 3, 4}>",
            "DequantizeLinear<axis = 1, block_size = 2>(w, v)",
        ),
    ],
    ids=["scales", "zero points", "axis", "blocks"],
)
def test_weights_that_make_no_sense_stay(constants: str, text: str) -> None:
    proto = parser.parse_model(f"{HEAD}{GRIDS}{constants} {{ a = {text} y = Add(x, a) }}")
    plain, said = without_codes(proto)
    assert ["DequantizeLinear", "Add"] == kinds(plain)
    assert () == said


def test_names_of_weights_stay() -> None:
    proto = model("a = DequantizeLinear(w, s) y = Add(x, a)", "int8[4] w = {1,2,3,4}>")
    (tensor,) = [t for t in without_codes(proto)[0].graph.initializer if t.name == "a"]
    assert np.array_equal(numpy_helper.to_array(tensor), np.asarray([0.5, 1, 1.5, 2], np.float32))
