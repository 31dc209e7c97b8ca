"""Standard output that is closed, full, or not UTF-8."""

import subprocess
import sys
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "shufflectl"]


def test_an_output_that_is_not_utf_8_shows_question_marks(run_cli: Any) -> None:
    run = run_cli("export", "--help", env={"PYTHONIOENCODING": "ascii"})
    assert 0 == run.status, run.stderr
    assert "max|?|" in run.stdout


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_closed_standard_output_is_no_error(flags: list[str]) -> None:
    script = '"$@" >&-'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND, "models", *flags], capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode
    assert "error" not in done.stderr


def test_a_full_standard_output_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(
            [*COMMAND, "models", "--json"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert 3 == done.returncode
    assert "error: the output cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_said_after_the_end(run_cli: Any, tmp_path: Any) -> None:
    """A library of ONNX reports what it takes for leaks when the interpreter ends in a hurry."""
    run = run_cli(
        *("export", "shufflenet_v2_x0_5", "--weights", "digits", "--target", "onnx", "--images", "2"),
        *("--out", tmp_path / "dist"),
    )
    assert 0 == run.status
    assert "nanobind" not in run.stderr
