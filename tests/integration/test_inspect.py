"""`shufflectl inspect` as a process: its sections, its gates, one JSON document whatever happens."""

from pathlib import Path
from typing import Any

import pytest

from shufflectl.converters.rewrite.lowering import apply
from support.nets import tiny_graph
from support.tflite import emit_bytes

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "native.tflite"
    path.write_bytes(emit_bytes(apply("native", tiny_graph().clone())[0]))
    return path


def test_a_tflite_file_shows_its_delegates(run_cli: Any, native: Path) -> None:
    run = run_cli("inspect", native)
    assert 0 == run.status, run.stderr
    for words in ("XNNPACK", "GPU delegate", "NNAPI 1.3", "LiteRT", "left by GPU delegate", "rank 5"):
        assert words in run.stdout


def test_operators_say_where_they_run(run_cli: Any, native: Path) -> None:
    run = run_cli("inspect", native, "--operators", env={"COLUMNS": "240"})
    assert "runs in" in run.stdout
    assert "gpu, nnapi, xnnpack" in run.stdout


def test_a_gate_that_fails_ends_with_5_after_the_result(run_cli: Any, native: Path) -> None:
    run = run_cli("inspect", native, "--max-rank", "4", "--no-measure")
    assert 5 == run.status
    assert "delegates" in run.stdout
    assert "FAIL" in run.stdout
    assert run.stderr.startswith("error: native.tflite fails its limits: largest rank: 5, allowed 4 (RESHAPE")
    assert "Traceback" not in run.stderr


def test_a_gate_that_fails_leaves_one_json_document(run_cli: Any, native: Path) -> None:
    run = run_cli("inspect", native, "--max-fallback-ops", "0", "--delegate", "gpu", "--json", "--no-measure")
    assert 5 == run.status
    document = run.document
    assert "shufflectl.inspect/1" == document["schema"]
    (gate,) = document["gates"]
    assert (False, gate["found"]) == (gate["passed"], len(gate["failing"]))
    assert {"name", "type", "why"} == set(gate["failing"][0])


def test_gates_that_hold_end_with_0(run_cli: Any, native: Path) -> None:
    run = run_cli("inspect", native, "--max-fallback-ops", "0", "--max-rank", "5", "--json")
    assert 0 == run.status, run.stderr
    assert [True, True] == [gate["passed"] for gate in run.document["gates"]]
    assert 1 == run.document["runtime"]["delegates"]["xnnpack"]["measured"]["partitions"]


def test_an_unknown_delegate_is_a_usage_error(run_cli: Any, native: Path) -> None:
    run = run_cli("inspect", native, "--max-fallback-ops", "0", "--delegate", "gqu", "--json")
    assert 2 == run.status
    assert "did you mean 'gpu'?" == run.document["error"]["hint"]
