"""Fixtures that several folders share."""

import atexit
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from shufflectl.deploy.runtimes.tflite_runtime import TfliteRuntime
from support.prefork import Nursery, keep_translations


@dataclass(frozen=True)
class Run:
    """What a call of the command line left behind."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.stdout)


def shufflectl(
    *argv: str | Path,
    env: dict[str, str] | None = None,
    timeout: float = 300,
    cwd: Path | None = None,
    fresh: bool = False,
) -> Run:
    """Call the command line in a process of its own, as a user does, whose output goes into a pipe.

    Args:
        argv: The words.
        env: Variables besides those of this process.
        timeout: Seconds.
        cwd: The current folder of the call.
        fresh: Whether a new interpreter is called, see `support.prefork`: slower by several seconds.
    """
    fresh = fresh or sys.platform != "linux" or any(name.startswith("PYTHON") for name in env or {})
    command = [sys.executable, "-m", "shufflectl"] if fresh else nursery().command
    inherited = {key: value for key, value in os.environ.items() if key != "COLUMNS"}  # a terminal's width
    done = subprocess.run(
        [*command, *map(str, argv)],
        capture_output=True,
        text=True,
        env={**inherited, **(env or {})},
        timeout=timeout,
        cwd=cwd,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr)


@cache
def nursery() -> Nursery:
    """The process that is forked for calls of this one's tests."""
    made = Nursery()
    atexit.register(made.close)
    return made


def pytest_configure() -> None:
    """Spare the cores that processes of tests share: torch's threads, for example, wait by spinning."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)
        keep_translations()


@pytest.fixture(scope="session")
def run_cli() -> Any:
    """The command line as a function of its arguments."""
    return shufflectl


@pytest.fixture(scope="session")
def digits_dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundled model in every format and precision. Read-only: copy it to change it."""
    return _exported(tmp_path_factory, "digits", "--precision", "fp32,fp16")


@pytest.fixture(scope="session")
def int8_dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in int8, calibrated on the bundled images. Read-only."""
    return _exported(tmp_path_factory, "int8", "--precision", "int8", "--calibration", "digits")


def _exported(tmp_path_factory: pytest.TempPathFactory, name: str, *options: str) -> Path:
    """Return a folder that the first process of a test run which wants it makes, with all targets and images.

    By a new interpreter, as a user does.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # the processes' own folders are side by side
    out = root / name / "dist"
    root.joinpath(name).mkdir(exist_ok=True)
    with FileLock(root / f"{name}.lock"):
        if not out.is_dir():
            words = ("shufflenet_v2_x0_5", "--weights", "digits", "--target", "all", "--images", "all")
            run = shufflectl("export", *words, *options, "--out", out, fresh=True)
            assert 0 == run.status, run.stderr
    return out


@pytest.fixture(scope="session")
def tflite_python() -> Path:
    """An interpreter with tflite-runtime: SHUFFLECTL_TFLITE_PYTHON, or what ``make venv`` made."""
    here = Path(__file__).resolve().parent.parent / ".venv-tflite" / "bin" / "python"
    path = Path(os.environ.get("SHUFFLECTL_TFLITE_PYTHON") or here)
    state = TfliteRuntime(path).available()
    if not state.ok:
        reason = f"{state.reason}; run `make venv`, or set SHUFFLECTL_TFLITE_PYTHON"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path
