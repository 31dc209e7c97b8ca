"""Every form of a model as a file that is compared before anybody may time it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.rewrite.choose import NATIVE, Candidate
from shufflectl.converters.targets import TARGETS, EmitOptions
from shufflectl.deploy import codes
from shufflectl.deploy import forms as forms_module
from shufflectl.deploy.calibration_options import CalibrationOptions
from shufflectl.deploy.export import open_subject
from shufflectl.deploy.forms import Forms
from shufflectl.deploy.inspect import summarize
from shufflectl.deploy.options import ExportRequest, ParityOptions
from shufflectl.errors import UnsupportedOperatorError
from support.nets import tiny_graph


def quiet(_what: str, _done: int, _total: int) -> None:
    pass


def forms(folder: Path, *, emit: Any = None, **changes: Any) -> Forms:
    request = ExportRequest.parse(
        **{
            "model": "support.nets:tiny_v2",
            "inputs": ["image=1x3x32x32"],
            "targets": ["onnx"],
            "precisions": ["fp32"],
            "batch": "1",
            "layout": None,
            "parity": ParityOptions(images=1, random_images=2),
            **changes,
        }
    )
    emit = emit or TARGETS[request.targets[0]].emit
    return Forms(request, open_subject(request, quiet), emit, folder, quiet)


def test_forms_are_distinct_native_first_and_the_default_is_among_them(tmp_path: Path) -> None:
    made = forms(tmp_path)
    found = made.enumerate(("nchw", "nhwc"), quiet)
    assert NATIVE == found[0].candidate
    assert ["nchw"] * (len(found) // 2) + ["nhwc"] * (len(found) // 2) == [form.layout for form in found]
    first = [form.candidate for form in found[: len(found) // 2]]
    assert first == [form.candidate for form in found[len(found) // 2 :]]
    assert len(set(first)) == len(first)
    assert made.automatic in first
    assert f"{made.automatic.label}, nchw" in [form.name for form in found]


def test_forms_that_leave_one_graph_are_one(tmp_path: Path) -> None:
    path = tmp_path / "plain.onnx"  # no shuffle: every form leaves it as it is, but for padding
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,8,8] x) => (float[1,3,8,8] y) {y = Relu(x)}'
    onnx.save(onnx.parser.parse_model(text), path)
    (form,) = forms(tmp_path, model=str(path), inputs=[]).enumerate(("nchw",), quiet)
    assert NATIVE == form.candidate
    assert len(form.same_as) > 5


@pytest.mark.parametrize(("target", "precision"), [("onnx", "fp32"), ("tflite", "fp16"), ("coreml", "fp32")])
def test_a_file_is_run_and_compared(tmp_path: Path, target: str, precision: str) -> None:
    made = forms(tmp_path, targets=[target], precisions=[precision])
    found = made.enumerate(("nchw",), quiet)
    written = [made.write(form) for form in found[:3]]
    assert [""] * 3 == [entry.problem for entry in written]
    assert 3 == len({entry.sha256 for entry in written})
    assert all(entry.path.exists() and entry.bytes > 1000 for entry in written)
    limit = 1e-4 if precision == "fp32" else 0.05
    assert all(entry.max_rel is not None and entry.max_rel < limit for entry in written)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> CalibrationOptions:
    path = tmp_path_factory.mktemp("pictures") / "noise.npz"
    noise = np.random.default_rng(0).standard_normal((16, 3, 32, 32), np.float32)
    np.savez(path, image=noise)
    return CalibrationOptions(str(path), images=16)


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_int8_forms_are_calibrated_once_and_compared_in_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: CalibrationOptions, target: str
) -> None:
    made = forms(tmp_path, targets=[target], precisions=["int8"], calibration=pictures)
    monkeypatch.setattr(codes, "calibrated", None)  # no form asks for another
    found = made.enumerate((TARGETS[target].default_layout,), quiet)
    assert "masked" not in {form.candidate.form for form in found}
    assert made.automatic in {form.candidate for form in found}
    written = [made.write(form) for form in found[:3]]
    assert [""] * 3 == [entry.problem for entry in written]
    assert 3 == len({entry.sha256 for entry in written})
    records = {summarize(entry.path).metadata.quantization for entry in written}  # type: ignore[union-attr]
    assert {made.calibration} == {record.sha256 for record in records if record is not None}


def test_a_form_whose_codes_are_off_has_a_problem(tmp_path: Path, pictures: CalibrationOptions) -> None:
    def shift(graph: Graph, info: ModelInfo, options: EmitOptions, path: Path) -> None:
        assert graph.quantization is not None
        name = next(n for n in graph.quantization.scales if n.startswith("stage"))
        grid = graph.quantization.scales[name]
        moved = {**graph.quantization.scales, name: replace(grid, scale=grid.scale * 1.02)}
        wrong = Graph(graph.model, graph.records, replace(graph.quantization, scales=moved))
        TARGETS["onnx"].emit(wrong, info, options, path)

    made = forms(tmp_path, emit=shift, precisions=["int8"], calibration=pictures)
    written = made.write(made.enumerate(("nchw",), quiet)[0])
    assert "scale" in written.problem


def test_a_form_that_int8_has_not_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: CalibrationOptions
) -> None:
    made = forms(tmp_path, precisions=["int8"], calibration=pictures)
    monkeypatch.setattr(forms_module, "candidates", lambda *_: (Candidate("masked"), Candidate("gather")))
    found = {form.candidate.form: form for form in made.enumerate(("nchw",), quiet)}
    assert "" == made.write(found["gather"]).problem
    assert (
        "no scale" in made.write(found["masked"]).problem or "several" in made.write(found["masked"]).problem
    )


def test_an_onnx_file_is_held_against_itself(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(tiny_graph().to_proto(), path)
    made = forms(tmp_path, model=str(path), inputs=[], targets=["tflite"])
    written = made.write(made.enumerate(("nhwc",), quiet)[1])
    assert "" == written.problem
    assert written.sqnr is not None
    assert written.sqnr > 80


def test_a_form_that_cannot_be_written_has_a_problem_and_no_figures(tmp_path: Path) -> None:
    def refuse(_graph: Graph, _info: ModelInfo, _options: EmitOptions, _path: Path) -> None:
        raise UnsupportedOperatorError("node", "Gather", "onnx")

    made = forms(tmp_path, emit=refuse)
    written = made.write(made.enumerate(("nchw",), quiet)[0])
    assert "cannot take operator Gather" in written.problem
    assert ("", 0, None, None) == (written.sha256, written.bytes, written.max_rel, written.sqnr)


def test_a_form_that_computes_something_else_has_a_problem(tmp_path: Path) -> None:
    def spoil(graph: Graph, info: ModelInfo, options: EmitOptions, path: Path) -> None:
        TARGETS["onnx"].emit(graph, info, options, path)
        model = onnx.load(path)
        largest = max(model.graph.initializer, key=lambda entry: len(entry.raw_data))
        largest.raw_data = bytes(len(largest.raw_data))
        onnx.save(model, path)

    made = forms(tmp_path, emit=spoil)
    written = made.write(made.enumerate(("nchw",), quiet)[0])
    assert "conv5" in written.problem
    assert written.max_rel is not None
    assert written.max_rel > 0.01


def test_files_take_what_those_of_export_take(tmp_path: Path) -> None:
    made = forms(tmp_path, preprocess="imagenet", fold_preprocess=True, input_type="uint8")
    assert made.notes
    for layout, shape in (("nchw", [1, 3, 32, 32]), ("nhwc", [1, 32, 32, 3])):
        form = next(f for f in made.enumerate(("nchw", "nhwc"), quiet) if f.layout == layout)
        written = made.write(form)
        assert "" == written.problem
        (entry,) = onnx.load(written.path).graph.input
        assert onnx.TensorProto.UINT8 == entry.type.tensor_type.elem_type
        assert shape == [d.dim_value for d in entry.type.tensor_type.shape.dim]
