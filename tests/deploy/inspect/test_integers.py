"""What `inspect` says of codes: which operators compute in them, grids, calibration, delegates."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantFormat

from shufflectl.console import Output
from shufflectl.deploy.calibration_options import CalibrationOptions
from shufflectl.deploy.export import export
from shufflectl.deploy.inspect import summarize
from shufflectl.deploy.inspect.inspection import Inspection, Limits, inspect_file
from shufflectl.deploy.inspect.integers import arithmetic
from shufflectl.deploy.inspect.onnx_file import read_model
from shufflectl.deploy.options import ExportRequest, ParityOptions
from shufflectl.render.inspection import inspection
from support.exporters import quantise
from support.nets import tiny_graph


def exported(folder: Path, targets: str, precision: str, **changes: Any) -> Path:
    given: dict[str, Any] = {
        "model": "support.nets:tiny_v2",
        "inputs": ["image=1x3x32x32"],
        "targets": [targets],
        "precisions": [precision],
        "batch": "1",
        "layout": None,
        "out": folder,
        "keep_failing": True,
        "parity": ParityOptions(images=1, random_images=1),
        **changes,
    }
    export(ExportRequest.parse(**given))
    return folder


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> CalibrationOptions:
    path = tmp_path_factory.mktemp("pictures") / "noise.npz"
    np.savez(path, image=np.random.default_rng(0).standard_normal((16, 3, 32, 32), np.float32))
    return CalibrationOptions(str(path), images=16)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, calibration: CalibrationOptions) -> Path:
    return exported(tmp_path_factory.mktemp("int8"), "all", "int8", calibration=calibration)


def the(folder: Path, suffix: str) -> Path:
    (found,) = folder.glob(f"*{suffix}")
    return found


@pytest.mark.parametrize("suffix", [".onnx", ".tflite", ".mlpackage"])
def test_an_int8_file_computes_in_codes_of_one_calibration(files: Path, suffix: str) -> None:
    found = inspect_file(the(files, suffix))
    summary = found.summary
    assert summary.multiply_adds == summary.multiply_adds_in_codes
    assert summary.arithmetic["codes"] > 10
    assert "int8" == next(iter(summary.parameters_by_type))
    assert sum(summary.parameters_by_type.values()) == summary.parameters
    ends = [tensor.codes for tensor in (*summary.inputs, *summary.outputs)]
    held = json.loads(the(files, "calibration.json").read_text("utf-8"))["ranges"]
    for codes, name in zip(ends, ("image", summary.outputs[0].name), strict=True):
        assert codes is not None
        low, high = held[name]
        assert codes.scale == pytest.approx((max(high, 0) - min(low, 0)) / 255, rel=2e-3)
        assert ("uint8" if suffix == ".onnx" else "int8") == codes.dtype
        lowest = 0 if codes.dtype == "uint8" else -128
        assert codes.scale * (lowest - codes.zero_point) == pytest.approx(low, abs=codes.scale)
    assert found.calibration is not None
    assert "beside" == found.calibration.state
    assert found.calibration.text.startswith("16 images of noise.npz, minmax")


def test_the_same_grids_whatever_the_format(files: Path) -> None:
    grids = []
    for suffix in (".onnx", ".tflite", ".mlpackage"):
        summary = summarize(the(files, suffix))
        ends = [tensor.codes for tensor in (*summary.inputs, *summary.outputs)]
        shift = 128 if suffix == ".onnx" else 0
        grids.append([(codes.scale, codes.zero_point - shift) for codes in ends if codes is not None])
    assert [2] * 3 == [len(ends) for ends in grids]
    assert grids[0] == grids[1] == grids[2]


def test_a_calibration_that_is_gone_or_another_is_said_to_be(files: Path, tmp_path: Path) -> None:
    path = tmp_path / the(files, ".tflite").name
    shutil.copy(the(files, ".tflite"), path)
    found = inspect_file(path, measured=False).calibration
    assert found is not None
    assert ("missing", {}) == (found.state, found.made)
    (tmp_path / found.file).write_text("{}")
    again = inspect_file(path, measured=False).calibration
    assert again is not None
    assert ("changed", {}) == (again.state, again.made)
    assert "another" in again.text


@pytest.mark.parametrize(
    ("precision", "io"), [("int8", "float"), ("int8", "int8"), ("int8", "uint8"), ("int8-dynamic", "float")]
)
def test_the_rules_of_xnnpack_are_what_litert_does_with_codes(
    tmp_path: Path, calibration: CalibrationOptions, precision: str, io: str
) -> None:
    changes = {"calibration": calibration, "io": io} if precision == "int8" else {}
    found = inspect_file(the(exported(tmp_path, "tflite", precision, **changes), ".tflite"))
    assert found.facts.xnnpack is not None
    assert "" == found.facts.xnnpack.difference
    left = {refusal.type for refusal in found.facts.fallback("xnnpack")}  # type: ignore[attr-defined]
    expected = {"uint8": {"QUANTIZE"}}.get(
        io, {"DEPTHWISE_CONV_2D"} if precision == "int8-dynamic" else set()
    )
    assert expected == left


def test_onnx_runtime_fuses_all_groups_of_an_int8_file(files: Path) -> None:
    found = inspect_file(the(files, ".onnx"), limits=Limits(max_fallback_ops=0))
    layout = found.facts.layout
    assert layout is not None
    convolutions = sum(operator.type == "Conv" for operator in found.summary.operators)
    assert convolutions == layout.integers["QLinearConv"]
    assert (0, ()) == (layout.unpacked, layout.plain)
    assert layout.conversions < 6


def test_weights_alone_in_codes_are_unpacked_in_every_run(tmp_path: Path) -> None:
    found = inspect_file(the(exported(tmp_path, "onnx", "int8-weights"), ".onnx"))
    layout = found.facts.layout
    assert layout is not None
    assert "int8" == next(iter(found.summary.parameters_by_type))
    assert layout.unpacked > 10
    assert {"its kernel is unpacked in every run"} == {p.why for p in layout.plain}
    assert 0 == found.summary.arithmetic["codes"] == found.summary.multiply_adds_in_codes


def test_what_is_shown_is_in_the_document(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect_file(the(files, ".onnx"))
    inspection(Output(), found, operators=True)
    shown = " ".join(capsys.readouterr().out.split())
    assert "operators in codes (100.0% of the multiply-adds)" in shown
    assert "16 images of noise.npz" in shown
    assert "kernels of codes" in shown
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert {"dtype": "uint8"}.items() <= document["inputs"][0]["codes"].items()
    assert "beside" == document["calibration"]["state"]
    assert document["runtime"]["onnxruntime"]["integers"]["QLinearConv"] > 5


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=["qdq", "qoperator"])
def test_a_file_that_onnx_runtime_quantised_is_read_as_well(tmp_path: Path, form: QuantFormat) -> None:
    source, path = tmp_path / "float.onnx", tmp_path / "codes.onnx"
    graph = tiny_graph()
    onnx.save(graph.to_proto(), source)
    quantise(source, path, 32, form)
    found: Inspection = inspect_file(path)
    assert found.calibration is None
    assert "int8" == next(iter(found.summary.parameters_by_type))
    assert found.summary.arithmetic["codes"] > 5
    assert found.summary.inputs[0].codes is not None
    assert found.facts.layout is not None
    assert found.facts.layout.integers["QLinearConv"] > 5
    coded, total = found.summary.multiply_adds_in_codes, found.summary.multiply_adds
    assert coded is None or total is None or coded > 0.9 * total
    json.dumps(found.to_json(), allow_nan=False)


HEAD = '<ir_version: 10, opset_import: ["" : 19]> g (float[1,8] x) => (float[1,8] y) '
SCALE = "<float s = {0.5}, uint8 z = {128}>"
READ = "q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z) "
ROUND = " r = QuantizeLinear(b, s, z) y = DequantizeLinear(r, s, z)"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (f"{READ}b = Relu(a){ROUND}", "codes"),
        (f"{READ}c = Add(a, a) b = Relu(c){ROUND}", "codes"),
        (f"{READ}c = Add(a, a) b = Sigmoid(c){ROUND}", "floats"),  # two operators, rounded once
        (f"{READ}b = Add(a, x){ROUND}", "floats"),  # one operand is no code
        (f"{READ}y = Relu(a)", "floats"),  # nothing rounds the result
    ],
)
def test_a_group_is_in_codes_where_one_operator_lies_between_conversions(body: str, kind: str) -> None:
    model = onnx.parser.parse_model(f"{HEAD}{SCALE}{{{body}}}")
    program = read_model(model, "onnx")
    others = {found for found in arithmetic(program.operations) if found != "conversion"}
    assert {kind} == others


def test_weights_in_floats_are_no_codes() -> None:
    weights = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, (8, 8), [0.5] * 64)
    model = onnx.parser.parse_model(f"{HEAD}{SCALE}{{{READ}b = MatMul(a, w){ROUND}}}")
    model.graph.initializer.append(weights)
    kinds = arithmetic(read_model(model, "onnx").operations)
    assert ("conversion", "conversion", "floats", "conversion", "conversion") == kinds
