"""What files are timed with on this machine: the runtimes of the Python worker, and our own program."""

from pathlib import Path
from typing import Final

from shufflectl.benchmarks.executor import Executor
from shufflectl.benchmarks.local.executor import RUNTIMES as INTERPRETED
from shufflectl.benchmarks.local.executor import LocalExecutor
from shufflectl.benchmarks.local.own import OWN, OwnExecutor, find
from shufflectl.converters.targets import TARGETS

__all__ = ["RUNTIMES", "create", "timed"]

RUNTIMES: Final = (*INTERPRETED, OWN)
"""Their names."""


def timed(target: str) -> tuple[str, ...]:
    """Return the names of those that run a format's files, the preferred one first."""
    found = tuple(name for name in TARGETS[target].runtimes if name in INTERPRETED)
    return (*found, OWN) if target == "tflite" else found


def create(name: str, *, python: Path | None = None, runner: str | None = None) -> Executor:
    """Return what runs files with a runtime.

    Args:
        name: One of `RUNTIMES`.
        python: The interpreter in which tflite-runtime is installed.
        runner: For our own program: its path, or its name in the cache of runners.

    Raises:
        UsageError: There is no such runtime or runner, or it needs something that is not said.
        UnavailableError: There is no runner for this machine.
        ArtifactError: The runner is for another one.
    """
    return OwnExecutor(find(runner)) if name == OWN else LocalExecutor(name, python=python)
