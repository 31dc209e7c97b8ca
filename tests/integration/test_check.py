"""`shufflectl check` on files that somebody changed, moved or took from elsewhere."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import mutate

MODEL = "shufflenet_v2_x0_5"
EXTENSIONS = ["onnx", "mlpackage", "tflite"]
LAYER = "stage3.2.branch2"

Change = Callable[[Path], None]


def column(path: Path) -> None:
    mutate.weight(path, f"{LAYER}.1", mutate.zero_column(7))


def channels(path: Path) -> None:
    mutate.swap_channels(path, f"{LAYER}.1", 2, 11)


def pad(path: Path) -> None:
    mutate.pads(path, "stage3.0.branch1.1", [0, 0, 2, 2])


CHANGES: list[tuple[Change, str, str]] = [
    (column, f"{LAYER}.", "column"),
    (channels, f"{LAYER}.", "channels"),
    (pad, "stage3.0.branch1.", "pad"),
]


def copied(dist: Path, folder: Path) -> Path:
    copy = folder / "dist"
    shutil.copytree(dist, copy)
    return copy


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("change", "layer", "cause"), CHANGES, ids=["column", "channels", "pad"])
def test_changed_files_fail_and_the_layer_is_named(
    change: Change,
    layer: str,
    cause: str,
    precision: str,
    digits_dist: Path,
    tmp_path: Path,
    run_cli: Any,
) -> None:
    paths = [tmp_path / f"{MODEL}-{precision}.{extension}" for extension in EXTENSIONS]
    for path in paths:
        (shutil.copytree if path.suffix == ".mlpackage" else shutil.copy)(digits_dist / path.name, path)
        change(path)
    run = run_cli("check", *paths, "--images", "4", "--json")
    assert 4 == run.status, run.stdout + run.stderr
    artifacts = run.document["verifications"][0]["artifacts"]
    assert [path.name for path in paths] == [artifact["file"] for artifact in artifacts]
    for artifact in artifacts:
        assert not artifact["passed"]
        assert artifact["divergence"]["tensor"].startswith(layer)
        assert cause in artifact["divergence"]["diagnosis"]["sentence"]
        assert f"{artifact['file']} goes wrong at {artifact['divergence']['tensor']}" in run.stderr


def test_the_per_layer_table_shows_where_it_begins(digits_dist: Path, tmp_path: Path, run_cli: Any) -> None:
    dist = copied(digits_dist, tmp_path)
    column(dist / f"{MODEL}-fp32.tflite")
    run = run_cli("check", dist, "--images", "4", "--per-layer")
    assert 4 == run.status
    table = run.stdout.split("layer by layer", 1)[1]
    rows = [line for line in table.splitlines() if " pass" in line or " FAIL" in line]
    verdicts = {row.split()[0]: "FAIL" in row for row in rows}
    assert not verdicts["conv1.2"]
    assert 1 == sum(verdicts.values())
    assert next(name for name, failed in verdicts.items() if failed).startswith(f"{LAYER}.")
    assert "--max-rel" in run.stdout  # the smallest tolerance that would have passed
    assert f"{MODEL}-fp32.tflite" in run.stderr


def test_files_without_a_manifest_are_compared_with_torch(
    digits_dist: Path, tmp_path: Path, run_cli: Any
) -> None:
    paths = []
    for name in (f"{MODEL}-fp32.onnx", f"{MODEL}-fp16.tflite"):
        paths.append(tmp_path / name)
        shutil.copy(digits_dist / name, paths[-1])
    run = run_cli("check", *paths, "--images", "4", "--json")
    assert 0 == run.status, run.stderr
    (verification,) = run.document["verifications"]
    assert "torch" == verification["reference"]
    assert ["fp32", "fp16"] == [a["precision"] for a in verification["artifacts"]]


@pytest.fixture(scope="module")
def from_checkpoint(tmp_path_factory: pytest.TempPathFactory, run_cli: Any) -> tuple[Path, Path]:
    import torch

    from shufflectl.models import create

    folder = tmp_path_factory.mktemp("checkpoint")
    weights = folder / "mine.pt"
    torch.save(create("shufflenet_v1_g3_x0_25", weights="random:3", num_classes=5).state_dict(), weights)
    argv = ["export", "shufflenet_v1_g3_x0_25", "--weights", weights, "--input-size", "64", "--images", "4"]
    run = run_cli(*argv, "--target", "onnx,tflite", "--out", folder / "dist")
    assert 0 == run.status, run.stderr
    return weights, folder / "dist"


def test_without_its_checkpoint_the_onnx_file_is_the_reference(
    from_checkpoint: tuple[Path, Path], run_cli: Any
) -> None:
    run = run_cli("check", from_checkpoint[1], "--images", "4", "--json")
    assert 0 == run.status, run.stderr
    assert "shufflenet_v1_g3_x0_25-fp32.onnx" == run.document["verifications"][0]["reference"]


def test_with_its_checkpoint_torch_is_the_reference(from_checkpoint: tuple[Path, Path], run_cli: Any) -> None:
    weights, dist = from_checkpoint
    run = run_cli("check", dist, "--weights", weights, "--images", "4", "--json")
    assert 0 == run.status, run.stderr
    assert "torch" == run.document["verifications"][0]["reference"]


def test_another_checkpoint_is_refused(
    from_checkpoint: tuple[Path, Path], tmp_path: Path, run_cli: Any
) -> None:
    import torch

    from shufflectl.models import create

    other = tmp_path / "other.pt"
    torch.save(create("shufflenet_v1_g3_x0_25", weights="random:4", num_classes=5).state_dict(), other)
    run = run_cli("check", from_checkpoint[1], "--weights", other, "--images", "4")
    assert 3 == run.status
    assert "other.pt" in run.stderr


def test_a_file_of_another_exporter_is_compared_by_shape(
    digits_dist: Path, tmp_path: Path, run_cli: Any
) -> None:
    foreign = tmp_path / "theirs.onnx"
    code = (
        "import sys, torch; from shufflectl.models import load\n"
        f"module = load({MODEL!r}, weights='digits').module\n"
        f"torch.onnx.export(module, (torch.zeros(1, 3, 32, 32),), {str(foreign)!r},"
        " dynamo=True, external_data=False, verbose=False)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    run = run_cli("check", foreign, "--model", MODEL, "--weights", "digits", "--images", "8", "--json")
    assert 0 == run.status, run.stderr
    (verification,) = run.document["verifications"]
    (artifact,) = verification["artifacts"]
    assert artifact["passed"]
    assert verification["reference_accuracy"]["correct"] == artifact["accuracy"]["correct"]


def test_one_foreign_file_alone_has_nothing_to_be_compared_with(
    digits_dist: Path, tmp_path: Path, run_cli: Any
) -> None:
    import onnx

    path = tmp_path / "theirs.onnx"
    model = onnx.load(digits_dist / f"{MODEL}-fp32.onnx")
    del model.metadata_props[:]
    onnx.save(model, path)
    run = run_cli("check", path)
    assert 2 == run.status
    assert "alone has nothing to be compared with" in run.stderr


def test_tflite_runtime_runs_the_files_too(digits_dist: Path, run_cli: Any, tflite_python: Path) -> None:
    run = run_cli(
        *("check", digits_dist, "--images", "4", "--json"),
        *("--runtime", "tflite-runtime", "--runtime-python", tflite_python),
    )
    assert 0 == run.status, run.stderr
    used = {a["target"]: a["runtime"] for a in run.document["verifications"][0]["artifacts"]}
    assert "tflite-runtime 2.14.0" == used["tflite"]


def test_the_document_of_check_is_json_with_finite_figures(digits_dist: Path, run_cli: Any) -> None:
    run = run_cli("check", digits_dist, "--images", "2", "--json")

    def refuse(text: str) -> None:
        raise AssertionError(text)

    assert json.loads(run.stdout, parse_constant=refuse)["passed"]
    assert "" == run.stderr
