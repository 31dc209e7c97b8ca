"""`shufflectl tune` and `export --tuning`, from end to end on this machine."""

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

MODEL = "shufflenet_v2_x0_5"


def test_what_was_measured_is_what_export_writes(tmp_path: Path, run_cli: Any) -> None:
    tuning, dist = tmp_path / "tuning.json", tmp_path / "dist"
    arguments = ["--weights", "digits", "--target", "onnx", "--layout", "nchw", "--out", tuning, "--json"]
    for budget in ("20s", "60s"):  # a busy machine may need more than it should
        run = run_cli("tune", MODEL, *arguments, "--budget", budget)
        if 6 != run.status:
            break
    assert 0 == run.status, run.stderr
    assert json.loads(tuning.read_text("utf-8")) == run.document
    assert "shufflectl.tuning/1" == run.document["schema"]
    run = run_cli("export", MODEL, "--weights", "digits", "--tuning", tuning, "--images", "4", "--out", dist)
    assert 0 == run.status, run.stderr
    assert "not byte for byte" not in run.stdout + run.stderr
    assert {f"{MODEL}-fp32.onnx", "manifest.json"} == {path.name for path in dist.iterdir()}
    run = run_cli("export", "shufflenet_v1_g3_x0_25", "--tuning", tuning, "--out", tmp_path / "other")
    assert 3 == run.status
    assert f"tuning.json was measured for {MODEL}, not for shufflenet_v1_g3_x0_25" in run.stderr
    assert not (tmp_path / "other").exists()
    other = ["--weights", "digits", "--fold-preprocess", "--out", dist]
    run = run_cli("export", MODEL, *other, "--tuning", tuning)
    assert 3 == run.status
    assert "was measured with files whose callers prepare the images" in run.stderr
