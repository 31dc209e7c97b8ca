"""`shufflectl runner`, as a user calls it."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from support.adb_daemon import program

pytestmark = pytest.mark.integration


def test_a_runner_is_added_listed_and_removed(tmp_path: Path, run_cli: Any) -> None:
    env = {"SHUFFLECTL_CACHE": str(tmp_path / "cache")}
    tool = tmp_path / "benchmark_model"
    tool.write_bytes(program("# Inference timings in us: "))
    sha256 = hashlib.sha256(tool.read_bytes()).hexdigest()
    added = run_cli("runner", "add", "tflite-arm64", tool, "--sha256", sha256, env=env)
    assert 0 == added.status, added.stderr
    assert f"tflite-arm64: tflite for arm64-v8a, SHA-256 {sha256}" in added.stdout.replace("\n", " ")
    listed = run_cli("runner", "list", env=env)
    assert "tflite-arm64" in listed.stdout
    assert sha256[:12] in listed.stdout
    (item,) = run_cli("runner", "list", "--json", env=env).document["runners"]
    assert ("tflite", sha256) == (item["kind"], item["sha256"])
    assert 0 == run_cli("runner", "remove", "tflite-arm64", env=env).status
    assert [] == run_cli("runner", "list", "--json", env=env).document["runners"]
    again = run_cli("runner", "remove", "tflite-arm64", "--json", env=env)
    assert (2, "UsageError") == (again.status, again.document["error"]["type"])


def test_a_wrong_hash_is_bad_input(tmp_path: Path, run_cli: Any) -> None:
    tool = tmp_path / "benchmark_model"
    tool.write_bytes(program("# Inference timings in us: "))
    env = {"SHUFFLECTL_CACHE": str(tmp_path / "cache")}
    run = run_cli("runner", "add", "mine", tool, "--sha256", "0" * 64, env=env)
    assert 3 == run.status
    assert "do not run it" in run.stderr
