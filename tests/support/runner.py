"""Our runner in the tests: built once, called as phones call it."""

import json
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shufflectl.benchmarks.runner import build, library

__all__ = ["QUICK", "Called", "build_paced", "call", "require_compiler"]

QUICK = (
    *("--warmup-min-iterations", "0", "--warmup-min-seconds", "0", "--warmup-max-seconds", "0"),
    *("--min-iterations", "3", "--min-seconds", "0"),
)
"""Options of a round that measures next to nothing."""


@dataclass(frozen=True)
class Called:
    """What a call left behind."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The JSON on standard output, which has to be one line."""
        (line,) = self.stdout.splitlines()
        return json.loads(line)

    @property
    def error(self) -> str:
        """The line on standard error that says why it failed."""
        (line,) = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        return line


def call(program: Path, *words: str | Path, library_path: Path | None = None) -> Called:
    """Call the runner."""
    argv = [str(program), "--library", str(library_path or library()), *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    return Called(done.returncode, done.stdout, done.stderr)


def build_paced(path: Path, seconds: float) -> None:
    """Build a runner whose inferences take so long, as long as the machine does not need more for them."""
    source = Path(__file__).with_name("pace.c")
    build(path, f"cc -Wl,--wrap=dlsym -DPACE_NS={round(seconds * 1e9)} {shlex.quote(str(source))}")


def require_compiler() -> None:
    """Skip a test where there is no C compiler; in CI that is a failure."""
    if shutil.which("cc") is None:
        reason = "there is no C compiler (Debian: apt-get install gcc libc6-dev)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
