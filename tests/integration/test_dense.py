"""Feature maps and output strides in every format, and again from the files alone."""

import json
from pathlib import Path

import onnx
import pytest

from shufflectl.deploy import check as checking
from shufflectl.deploy.export import export
from shufflectl.deploy.options import ExportRequest, ParityOptions
from shufflectl.errors import UsageError

pytestmark = pytest.mark.integration

PARITY = ParityOptions(images=2, random_images=2)
CASES = {
    "shufflenet_v1_g3_x0_5": (8, ("stage3", "stage4"), ("stage3", "stage4")),
    "shufflenet_v2_x0_5": (16, ("all", "logits"), ("stage2", "stage3", "stage4", "logits")),
}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with both networks, and one of them as a classifier too. Read-only."""
    out = tmp_path_factory.mktemp("dense") / "dist"
    for name, (stride, features, _) in CASES.items():
        found = export(
            ExportRequest(
                model=name,
                weights="digits",
                precisions=("fp32", "fp16") if stride == 8 else ("fp32",),
                output_stride=stride,
                features=features,
                out=out,
                parity=PARITY,
            )
        )
        assert found.passed, found.failure
    assert export(
        ExportRequest(model="shufflenet_v2_x0_5", weights="digits", targets=("onnx",), out=out, parity=PARITY)
    ).passed
    return out


@pytest.mark.parametrize("name", CASES)
def test_files_say_what_they_give(name: str, dist: Path) -> None:
    stride, _, outputs = CASES[name]
    models = json.loads((dist / "manifest.json").read_text("utf-8"))["models"]
    (model,) = [row for row in models if row["name"] == name and "features" in row]
    assert (stride, list(outputs)) == (model["output_stride"], model["features"])
    graph = onnx.load(dist / f"{name}-os{stride}-features-fp32.onnx").graph
    assert list(outputs) == [value.name for value in graph.output]
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.output}
    assert 32 // stride == sizes["stage4"][2]


@pytest.mark.parametrize("name", CASES)
def test_dilated_convolutions_stay_depthwise_in_tflite(name: str, dist: Path) -> None:
    from shufflectl.deploy.inspect import summarize

    found = summarize(dist / f"{name}-os{CASES[name][0]}-features-fp32.tflite")
    assert "DEPTHWISE_CONV_2D" in {operator.type for operator in found.operators}
    assert not {"SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"} & {operator.type for operator in found.operators}


def test_check_builds_the_same_network_from_what_the_files_say(dist: Path) -> None:
    found = checking.check([dist], parity=PARITY)
    assert found.passed
    assert ["torch"] * 3 == [v.reference for v in found.verifications]
    assert {len(CASES[name][2]) for name in CASES} | {1} == {
        len({row.output for row in v.report.rows}) for v in found.verifications
    }


def test_check_of_one_file_alone(dist: Path) -> None:
    found = checking.check([dist / "shufflenet_v1_g3_x0_5-os8-features-fp16.tflite"], parity=PARITY)
    assert found.passed
    assert ("stage3", "stage4") == tuple(
        dict.fromkeys(row.output for row in found.verifications[0].report.rows)
    )


@pytest.mark.parametrize("options", [{"output_stride": 16}, {"features": ("all",)}])
def test_an_onnx_file_has_its_own(dist: Path, tmp_path: Path, options: dict[str, object]) -> None:
    request = ExportRequest(model=str(dist / "shufflenet_v2_x0_5-fp32.onnx"), out=tmp_path / "out", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is for models of the registry"):
        export(request)
