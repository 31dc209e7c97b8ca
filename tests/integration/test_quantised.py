"""Int8 from end to end: the bundled model, calibrated on digits, in all formats; real processes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shufflectl.deploy import runtimes
from shufflectl.deploy.runtimes.litert import LiteRT
from shufflectl.models.data import digits_calibration
from support import spoil_codes

pytestmark = pytest.mark.integration

MODEL = "shufflenet_v2_x0_5"
BASE = ("export", MODEL, "--weights", "digits", "--precision", "int8")
DIGITS = ("--calibration", "digits")
FEW = ("--calibration-images", "16", "--images", "2")
CALIBRATION = f"{MODEL}-calibration.json"
FILES = {"onnx": f"{MODEL}-int8.onnx", "coreml": f"{MODEL}-int8.mlpackage", "tflite": f"{MODEL}-int8.tflite"}


def record(out: Path) -> Any:
    (model,) = json.loads((out / "manifest.json").read_text("utf-8"))["models"]
    return model


def copied(source: Path, folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        place = source / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, folder / name)
    return folder


def test_three_files_their_calibration_and_a_manifest(int8_dist: Path) -> None:
    assert {*FILES.values(), CALIBRATION, "manifest.json"} == {path.name for path in int8_dist.iterdir()}
    for row in record(int8_dist)["artifacts"]:
        assert row["parity"]
        assert all(entry["passed"] for entry in row["parity"])
        options = row["options"]
        assert ("digits", 128, "minmax", CALIBRATION, []) == (
            options["calibration_source"],
            options["calibration_images"],
            options["calibration_method"],
            options["calibration"],
            options["float_layers"],
        )


def test_accuracy_is_that_of_floats(int8_dist: Path) -> None:
    for row in record(int8_dist)["artifacts"]:
        (accuracy,) = row["accuracy"]
        assert 360 == accuracy["total"]
        assert accuracy["correct"] >= 356  # of 357: half a point is 1.8


def test_the_same_bytes_twice(int8_dist: Path, tmp_path: Path, run_cli: Any) -> None:
    again = ("--target", "tflite", "--images", "2", "--out", tmp_path / "again")
    run = run_cli(*BASE, *DIGITS, *again, env={"PYTHONHASHSEED": "12345"})
    assert 0 == run.status, run.stderr
    for name in (FILES["tflite"], CALIBRATION):
        assert (int8_dist / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_folder_is_checked_in_codes(int8_dist: Path, run_cli: Any) -> None:
    run = run_cli("check", int8_dist, "--images", "2", "--per-layer", "--json")
    assert 0 == run.status, run.stderr


@pytest.mark.parametrize("beside", [True, False])
def test_a_single_file_with_and_without_its_calibration(
    beside: bool, int8_dist: Path, tmp_path: Path, run_cli: Any
) -> None:
    copied(int8_dist, tmp_path, FILES["tflite"], *([CALIBRATION] if beside else []))
    run = run_cli("check", tmp_path / FILES["tflite"], "--images", "2")
    assert 0 == run.status, run.stderr


def test_another_calibration_beside_the_files_is_an_error(
    int8_dist: Path, tmp_path: Path, run_cli: Any
) -> None:
    copied(int8_dist, tmp_path, FILES["tflite"], CALIBRATION)
    place = tmp_path / CALIBRATION
    place.write_text(place.read_text("utf-8").replace('"seed":0', '"seed":1'), "utf-8")
    run = run_cli("check", tmp_path / FILES["tflite"], "--images", "2")
    assert 3 == run.status, run.stderr
    assert "is not the calibration that" in run.stderr


@pytest.mark.parametrize("target", FILES)
def test_a_spoilt_scale_is_named(target: str, int8_dist: Path, tmp_path: Path, run_cli: Any) -> None:
    copied(int8_dist, tmp_path, FILES[target], CALIBRATION)
    layer = "stage3.1.branch2.4"
    with runtimes.choose(target, ()).load(tmp_path / FILES[target]) as session:
        held = session.trace[layer].name
    spoil_codes.activation_scale(tmp_path / FILES[target], held, 1.03)
    run = run_cli("check", tmp_path / FILES[target], "--images", "2")
    assert 4 == run.status, run.stdout + run.stderr
    assert layer in run.stderr
    assert "scale" in run.stderr


def test_files_that_take_pixels(tmp_path: Path, run_cli: Any) -> None:
    out = tmp_path / "dist"
    run = run_cli(
        *(*BASE, *DIGITS, *FEW, "--fold-preprocess", "--input-type", "uint8", "--batch", "dynamic"),
        *("--target", "onnx,tflite", "--per-layer", "--out", out, "--json"),
    )
    assert 0 == run.status, run.stderr
    with LiteRT().load(out / FILES["tflite"]) as session:
        (image,) = session.inputs
        assert (np.uint8, None) == (image.dtype, image.shape[0])
        grid = session.integers.grids.get("image.float")
        assert grid is None or (1.0, -128) == (grid.scale, grid.zero_point)
    again = run_cli("check", out, "--images", "2")
    assert 0 == again.status, again.stderr


def test_core_ml_pictures(tmp_path: Path, run_cli: Any) -> None:
    run = run_cli(
        *(*BASE, *DIGITS, *FEW, "--fold-preprocess", "--input-type", "uint8"),
        *("--target", "coreml", "--out", tmp_path / "dist"),
    )
    assert 0 == run.status, run.stderr


def test_an_onnx_file_as_the_source(digits_dist: Path, tmp_path: Path, run_cli: Any) -> None:
    np.savez(tmp_path / "photos.npz", images=digits_calibration(40)[:64])
    run = run_cli(
        *("export", digits_dist / f"{MODEL}-fp32.onnx", "--target", "onnx,tflite", "--precision", "int8"),
        *("--calibration", tmp_path / "photos.npz", "--keep-float", "logits", "--out", tmp_path / "dist"),
    )
    assert 0 == run.status, run.stderr
    for row in record(tmp_path / "dist")["artifacts"]:
        assert 1 == len(row["options"]["float_layers"])


TWO = """
import torch
from torch import nn


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3), nn.Linear(5, 8)
        self.last = nn.Linear(8, 4)

    def forward(self, image, extra):
        seen = torch.relu(self.left(image)).mean((2, 3)) + torch.relu(self.right(extra))
        return self.last(seen)


def build():
    torch.manual_seed(0)
    return Two()
"""


def write_two(folder: Path) -> None:
    """Write a network of two inputs, and what calibrates it."""
    (folder / "two.py").write_text(TWO, "utf-8")
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.standard_normal((12, 3, 16, 16), dtype=np.float32),
        "extra": rng.standard_normal((12, 5), dtype=np.float32),
    }
    np.savez(folder / "x.npz", **arrays)


def test_a_factory_with_two_inputs(tmp_path: Path, run_cli: Any) -> None:
    write_two(tmp_path)
    run = run_cli(
        *("export", "two:build", "--input", "image=1x3x16x16", "--input", "extra=1x5", "--precision", "int8"),
        *("--target", "all", "--calibration", "x.npz", "--out", "dist"),
        cwd=tmp_path,
    )
    assert 0 == run.status, run.stderr


ONNX = ("--target", "onnx")
FLOAT = ("export", MODEL, "--weights", "digits", "--precision")
BAD = {
    "no calibration": ((*BASE, *ONNX), 2, "add --calibration"),
    "calibration without int8": ((*FLOAT, "fp32", *ONNX, *DIGITS), 2, "--calibration"),
    "goal alone": ((*BASE, *ONNX, *DIGITS, "--target-sqnr", "30"), 2, "--auto-mixed"),
    "mixed alone": ((*BASE, *ONNX, *DIGITS, "--auto-mixed"), 2, "--target-sqnr"),
    "codes of other targets": ((*BASE, *ONNX, *DIGITS, *FEW, "--io", "int8"), 2, "--io"),
    "a layer that does not exist": (
        (*BASE, *ONNX, *DIGITS, *FEW, "--keep-float", "conv99"),
        2,
        "no layer 'conv99'",
    ),
    "a form that adds": ((*BASE, *ONNX, *DIGITS, *FEW, "--shuffle", "masked"), 2, "int8"),
    "a precision that a target lacks": ((*FLOAT, "palette4", "--target", "tflite"), 2, "palette4"),
    "a goal out of reach": (
        (
            *("export", "two:build", "--input", "image=1x3x16x16", "--input", "extra=1x5"),
            *("--precision", "int8", *ONNX, "--calibration", "x.npz", "--auto-mixed", "--target-sqnr", "300"),
        ),
        3,
        "out of reach",
    ),
    "a missing folder": ((*BASE, *ONNX, *FEW, "--calibration", "nowhere"), 3, "nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_nothing_is_written(case: str, tmp_path: Path, run_cli: Any) -> None:
    argv, status, words = BAD[case]
    write_two(tmp_path)
    run = run_cli(*argv, "--out", tmp_path / "dist", cwd=tmp_path)
    assert status == run.status, run.stderr
    assert words in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "dist").exists() or not any((tmp_path / "dist").iterdir())
