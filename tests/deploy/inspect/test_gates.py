"""Limits on files: what counts, what passes, and the one sentence where something does not."""

from pathlib import Path

import pytest

from shufflectl.converters.rewrite.lowering import apply
from shufflectl.deploy.inspect.inspection import Inspection, Limits, inspect_file
from shufflectl.errors import GateError, UnavailableError, UsageError
from support.nets import tiny_graph
from support.tflite import emit_bytes


def inspected(path: Path, limits: Limits, form: str = "native") -> Inspection:
    file = path / "a.tflite"
    file.write_bytes(emit_bytes(apply(form, tiny_graph().clone())[0]))
    return inspect_file(file, measured=False, limits=limits)


def failure(found: Inspection) -> GateError:
    with pytest.raises(GateError) as caught:
        found.raise_for_failure()
    assert 5 == caught.value.exit_code
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(("form", "rank"), [("native", 5), ("rank4", 4)])
def test_the_largest_rank_passes_or_fails(form: str, rank: int, tmp_path: Path) -> None:
    found = inspected(tmp_path, Limits(max_rank=4), form)
    (gate,) = found.gates
    assert ("max_rank", 4, rank, rank <= 4) == (gate.gate, gate.limit, gate.found, gate.passed)
    if gate.passed:
        found.raise_for_failure()
        assert () == gate.failing
    else:
        assert {"rank 5"} == {left.why for left in gate.failing}
        error = failure(found)
        assert "largest rank: 5, allowed 4 (RESHAPE stage2.0.reshape, TRANSPOSE" in error.message
        assert "--shuffle" in error.hint


def test_an_input_of_the_model_ranks_too(tmp_path: Path) -> None:
    (gate,) = inspected(tmp_path, Limits(max_rank=3)).gates
    assert ("input", "image", "rank 4") == (gate.failing[0].type, gate.failing[0].name, gate.failing[0].why)


@pytest.mark.parametrize(
    ("delegate", "passes"), [(None, True), ("xnnpack", True), ("gpu", False), ("nnapi", False)]
)
def test_fallbacks_are_those_of_the_delegate(delegate: str | None, passes: bool, tmp_path: Path) -> None:
    found = inspected(tmp_path, Limits(max_fallback_ops=0, delegate=delegate))
    (gate,) = found.gates
    left = found.facts.fallback(delegate or "xnnpack")
    assert (len(left), left, passes) == (gate.found, gate.failing, gate.passed)


def test_a_limit_is_the_most_that_passes(tmp_path: Path) -> None:
    left = len(inspected(tmp_path, Limits()).facts.fallback("gpu"))
    for limit, passes in ((left, True), (left - 1, False)):
        (gate,) = inspected(tmp_path, Limits(max_fallback_ops=limit, delegate="gpu")).gates
        assert passes == gate.passed


def test_two_limits_fail_in_one_sentence(tmp_path: Path) -> None:
    found = inspected(tmp_path, Limits(max_fallback_ops=2, delegate="gpu", max_rank=4))
    left, error = found.gates[0].found, failure(found)
    assert f"operators left by gpu: {left}, allowed 2" in error.message
    assert "; largest rank: 5, allowed 4" in error.message
    assert f"and {left - 5} more" in error.message


def test_a_delegate_of_another_format_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no delegate 'ane' for tflite") as caught:
        inspected(tmp_path, Limits(max_fallback_ops=0, delegate="ane"))
    assert "xnnpack" in caught.value.hint


def test_a_delegate_without_a_limit_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--max-fallback-ops"):
        inspected(tmp_path, Limits(delegate="gpu"))


def test_a_limit_on_what_was_not_measured_does_not_pass(artifacts: dict[str, Path]) -> None:
    with pytest.raises(UnavailableError, match="not measured"):
        inspect_file(artifacts["onnx-fp32"], measured=False, limits=Limits(max_fallback_ops=100))


@pytest.mark.parametrize(("kind", "passes"), [("coreml-fp16", True), ("coreml-fp32", False)])
def test_core_ml_operations_that_leave_the_neural_engine_count(
    kind: str, passes: bool, artifacts: dict[str, Path]
) -> None:
    (gate,) = inspect_file(artifacts[kind], limits=Limits(max_fallback_ops=0)).gates
    assert ("operators left by ane", passes) == (gate.subject, gate.passed)


def test_without_limits_there_are_no_gates(tmp_path: Path) -> None:
    found = inspected(tmp_path, Limits())
    found.raise_for_failure()
    assert [] == found.to_json()["gates"]
