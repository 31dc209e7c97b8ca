"""The main job as a user does it: real processes, real files."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FORMATS = ["onnx", "mlpackage", "tflite"]
PRECISIONS = ["fp32", "fp16"]


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def manifest(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def files_of(folder: Path) -> list[str]:
    return sorted(row["file"] for model in manifest(folder)["models"] for row in model["artifacts"])


def test_export_writes_every_format_and_precision_and_nothing_else(digits_dist: Path) -> None:
    expected = {f"shufflenet_v2_x0_5-{p}.{f}" for p in PRECISIONS for f in FORMATS} | {"manifest.json"}
    assert expected == {path.name for path in digits_dist.iterdir()}


@pytest.fixture(scope="module")
def checked(digits_dist: Path, run_cli: Any) -> Any:
    """What `check` says of the bundled model's files, on all held-out images."""
    run = run_cli("check", digits_dist, "--images", "all", "--json")
    assert 0 == run.status, run.stderr
    (verification,) = run.document["verifications"]
    return verification


def test_torch_names_at_least_98_percent_of_the_held_out_digits(checked: Any) -> None:
    reference = checked["reference_accuracy"]
    assert 360 == reference["total"]
    assert reference["correct"] >= 353


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("extension", FORMATS)
def test_accuracy_of_each_file_is_that_of_torch(checked: Any, precision: str, extension: str) -> None:
    file = f"shufflenet_v2_x0_5-{precision}.{extension}"
    (row,) = [a for a in checked["artifacts"] if a["file"] == file]
    allowed = 0 if precision == "fp32" else 1
    assert abs(row["accuracy"]["correct"] - checked["reference_accuracy"]["correct"]) <= allowed


def test_two_exports_are_byte_identical(digits_dist: Path, tmp_path: Path, run_cli: Any) -> None:
    run = run_cli(
        *(
            "export",
            "shufflenet_v2_x0_5",
            "--weights",
            "digits",
            "--precision",
            "fp32,fp16",
            "--images",
            "all",
        ),
        *("--out", tmp_path / "elsewhere"),
        env={"PYTHONHASHSEED": "12345"},
    )
    assert 0 == run.status, run.stderr
    assert contents(digits_dist) == contents(tmp_path / "elsewhere")


def test_exporting_again_replaces_the_files_with_the_same_bytes(
    digits_dist: Path, tmp_path: Path, run_cli: Any
) -> None:
    again = tmp_path / "dist"
    shutil.copytree(digits_dist, again)
    run = run_cli(
        "export",
        "shufflenet_v2_x0_5",
        "--weights",
        "digits",
        "--target",
        "tflite",
        "--images",
        "4",
        "--out",
        again,
    )
    assert 0 == run.status, run.stderr
    before, after = contents(digits_dist), contents(again)
    assert {n: h for n, h in before.items() if n != "manifest.json"} == {
        n: h for n, h in after.items() if n != "manifest.json"
    }
    assert files_of(again) == files_of(digits_dist)


def test_the_table_shows_what_the_issue_of_a_release_needs(run_cli: Any, tmp_path: Path) -> None:
    run = run_cli(
        *("export", "shufflenet_v2_x0_5", "--weights", "digits", "--images", "8", "--out", tmp_path / "dist"),
        env={"COLUMNS": "140"},  # pytest's workers have a narrow terminal
    )
    assert 0 == run.status, run.stderr
    for word in ("bytes", "operators", "rank", "max |Δ|", "SQNR dB", "top-1 agreement", "verdict", "pass"):
        assert word in run.stdout
    assert "Traceback" not in run.stderr
    assert "coreml" not in run.stderr.lower()  # no library's chatter


def test_the_files_work_with_a_dynamic_batch(run_cli: Any, tmp_path: Path) -> None:
    run = run_cli(
        *("export", "shufflenet_v2_x0_5", "--weights", "digits", "--batch", "dynamic", "--images", "20"),
        *("--out", tmp_path / "dist", "--json"),
    )
    assert 0 == run.status, run.stderr
    assert run.document["passed"]
    assert 3 == len(run.document["artifacts"])


def test_the_form_of_the_shuffles_is_the_users_and_in_the_manifest(run_cli: Any, tmp_path: Path) -> None:
    out = tmp_path / "dist"
    run = run_cli(
        *("export", "shufflenet_v2_x0_5", "--weights", "digits", "--target", "onnx,tflite"),
        *("--shuffle", "fold", "--align", "8", "--images", "4", "--out", out, "--json"),
    )
    assert 0 == run.status, run.stderr
    for row in run.document["artifacts"]:
        assert ("fold", 8) == (row["shuffle"]["form"], row["shuffle"]["align"])
    records = [row["options"] for model in manifest(out)["models"] for row in model["artifacts"]]
    assert [("fold", 8)] * 2 == [(options["shuffle"], options["align"]) for options in records]


def test_by_default_each_target_gets_its_own_form(digits_dist: Path) -> None:
    records = [row for model in manifest(digits_dist)["models"] for row in model["artifacts"]]
    forms = {row["target"]: row["options"]["shuffle"] for row in records}
    assert {"onnx": "fold-split", "coreml": "native", "tflite": "fold"} == forms
    assert {4} == {row["largest_rank"] for row in records if row["target"] == "tflite"}


def test_limits_that_cannot_be_met_fail_and_publish_nothing(run_cli: Any, tmp_path: Path) -> None:
    out = tmp_path / "dist"
    run = run_cli(
        *("export", "shufflenet_v2_x0_5", "--weights", "digits", "--target", "onnx,tflite", "--images", "4"),
        *("--min-sqnr", "400", "--out", out),
    )
    assert 4 == run.status
    assert "limit 400.0 dB" in run.stdout
    assert "goes wrong at" in run.stderr
    assert [] == (list(out.iterdir()) if out.exists() else [])


def test_failing_files_are_kept_on_request(run_cli: Any, tmp_path: Path) -> None:
    out = tmp_path / "dist"
    run = run_cli(
        *("export", "shufflenet_v2_x0_5", "--weights", "digits", "--target", "tflite", "--images", "4"),
        *("--min-sqnr", "400", "--keep-failing", "--out", out),
    )
    assert 4 == run.status
    assert (out / "shufflenet_v2_x0_5-fp32.tflite").exists()
    (artifact,) = manifest(out)["models"][0]["artifacts"]
    assert not all(row["passed"] for row in artifact["parity"])


@pytest.mark.parametrize("delay", [1.0, 3.0, 5.0, 7.0, 9.0])
def test_a_killed_export_leaves_the_old_files_or_the_new(
    digits_dist: Path, tmp_path: Path, delay: float
) -> None:
    out = tmp_path / "dist"
    shutil.copytree(digits_dist, out)
    before = contents(out)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "shufflectl", "export", "shufflenet_v2_x0_5", "--weights", "digits"),
            *("--images", "4", "--batch", "2", "--out", str(out)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    after = {name: digest for name, digest in contents(out).items() if not name.startswith(".")}
    assert set(before) == set(after)
    for name in (n for n in before if n.endswith((".onnx", ".tflite"))):
        assert (out / name).stat().st_size > 1_000_000 or "fp16" in name


def test_an_interrupt_ends_the_export_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "dist"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "shufflectl",
            "export",
            "shufflenet_v2_x0_5",
            "--weights",
            "digits",
            "--out",
            str(out),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that starts the suite in the background has interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    )
    deadline = time.monotonic() + 60
    while not any(out.glob(".shufflectl-*")):  # the staging folder: the work has begun
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert 130 == process.returncode
    assert "Traceback" not in stderr
    assert [] == (list(out.iterdir()) if out.exists() else [])


def test_json_is_one_document_and_nothing_else(digits_dist: Path, run_cli: Callable[..., Any]) -> None:
    for argv in (["models"], ["inspect", digits_dist / "shufflenet_v2_x0_5-fp32.tflite"], ["doctor"]):
        run = run_cli(*argv, "--json")
        assert 0 == run.status, run.stderr
        assert run.document["schema"].startswith("shufflectl.")


def test_parity_that_fails_is_still_one_document(run_cli: Any, tmp_path: Path) -> None:
    run = run_cli(
        *("export", "shufflenet_v2_x0_5", "--weights", "digits", "--target", "onnx", "--images", "2"),
        *("--max-rel", "0", "--json", "--out", tmp_path / "dist"),
    )
    assert 4 == run.status
    assert not run.document["passed"]
    assert not run.document["published"]


def test_another_input_size_than_the_weights_were_made_for_is_noted(run_cli: Any, tmp_path: Path) -> None:
    run = run_cli(
        *("export", "shufflenet_v2_x0_5", "--weights", "digits", "--target", "onnx", "--images", "2"),
        *("--input-size", "64", "--out", tmp_path / "dist"),
    )
    assert 0 == run.status
    assert "made for images of 32x32" in run.stderr
