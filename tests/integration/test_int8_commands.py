"""`evaluate`, `bench` and `compare` on files in eight bits, as users call them."""

import json
from pathlib import Path
from typing import Any

import flatbuffers
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema

from shufflectl.benchmarks.results import read_suite
from shufflectl.deploy.evaluation.evaluate import evaluate
from shufflectl.deploy.evaluation.scores import Evaluation

pytestmark = pytest.mark.integration

MODEL = "shufflenet_v2_x0_5"
INT8 = ("--weights", "digits", "--precision", "int8", "--images", "8")
QUICK = ("--rounds", "1", "--min-seconds", "0.02", "--min-warmup", "0", "--max-warmup", "0.1")
FINE = (0, 6)


@pytest.fixture(scope="module")
def folders(int8_dist: Path, tmp_path_factory: pytest.TempPathFactory, run_cli: Any) -> dict[str, Path]:
    """Return folders of int8 files by what they take: floats, codes, and pixels at the border."""
    folder = tmp_path_factory.mktemp("int8")
    made = int8_dist / f"{MODEL}-calibration.json"
    for name, calibration, options in (
        ("uint8", made, ("--io", "uint8")),
        ("pixels", "digits", ("--fold-preprocess", "--input-type", "uint8")),
    ):
        where = ("--target", "tflite", "--calibration", calibration, "--out", folder / name)
        run = run_cli("export", MODEL, *INT8, *where, *options)
        assert 0 == run.status, run.stderr
    return {"floats": int8_dist, "uint8": folder / "uint8", "pixels": folder / "pixels"}


def stripped(path: Path, target: Path) -> Path:
    """Write a file as if another tool had: without what it says about itself."""
    if path.suffix == ".onnx":
        proto = onnx.load(path)
        del proto.metadata_props[:]
        onnx.save(proto, target)
        return target
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    model.metadata = []
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    target.write_bytes(bytes(builder.Output()))
    return target


def all_right(found: Evaluation) -> None:
    for model in found.models:
        assert model.reference is not None
        assert 357 == model.reference.top1
        for file in model.files:
            assert 356 <= file.score.top1 <= 358
            assert file.agreement_share is not None
            assert file.agreement_share >= 0.99


@pytest.mark.parametrize("border", ["floats", "uint8", "pixels"])
def test_int8_files_are_as_right_as_torch(folders: dict[str, Path], border: str) -> None:
    all_right(evaluate([folders[border]], data="digits"))


@pytest.mark.parametrize(("border", "suffix"), [("floats", ".onnx"), ("uint8", ".tflite")])
def test_so_are_those_that_say_nothing_of_themselves(
    folders: dict[str, Path], tmp_path: Path, border: str, suffix: str
) -> None:
    foreign = stripped(folders[border] / f"{MODEL}-int8{suffix}", tmp_path / f"foreign{suffix}")
    all_right(evaluate([foreign], data="digits", model=MODEL, weights="digits"))


def test_int8_files_are_measured_whatever_their_border(
    run_cli: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    files = [
        folders["floats"] / f"{MODEL}-int8.onnx",
        *(f / f"{MODEL}-int8.tflite" for f in folders.values()),
    ]
    run = run_cli("bench", *files, *QUICK, "--out", out)
    assert run.status in FINE, run.stderr
    suite = read_suite(out)
    assert 4 == len(files) == len(suite.benchmarks)
    assert {"int8"} == {benchmark.config.precision for benchmark in suite.benchmarks}
    assert all(entry.samples_ns for benchmark in suite.benchmarks for entry in benchmark.rounds)


def test_int8_and_floats_of_one_model_are_compared(run_cli: Any, int8_dist: Path, digits_dist: Path) -> None:
    files = (int8_dist / f"{MODEL}-int8.tflite", digits_dist / f"{MODEL}-fp32.tflite")
    run = run_cli("bench", files[0], "--baseline", files[1], *QUICK, "--json")
    assert run.status in FINE, run.stderr
    (comparison,) = run.document["comparisons"]
    assert ("paired", files[0].name) == (comparison["mode"], comparison["candidate"])
    precisions = [benchmark["config"]["precision"] for benchmark in run.document["benchmarks"]]
    assert ["fp32", "int8"] == precisions
    json.dumps(run.document, allow_nan=False)
