"""What files are timed with on this machine: the runtimes of the Python worker, and our own program."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shufflectl.benchmarks.executor import Executor
from shufflectl.benchmarks.local.executor import CHOOSES_THREADS, LocalExecutor
from shufflectl.benchmarks.local.executor import RUNTIMES as INTERPRETED
from shufflectl.benchmarks.local.own import OWN, OwnExecutor, find
from shufflectl.converters.targets import TARGETS
from shufflectl.errors import UsageError

__all__ = ["RUNTIMES", "create", "require_choice", "thread_numbers", "timed"]

RUNTIMES: Final = (*INTERPRETED, OWN)
"""Their names."""


def timed(target: str) -> tuple[str, ...]:
    """Return the names of those that run a format's files, the preferred one first."""
    found = tuple(name for name in TARGETS[target].runtimes if name in INTERPRETED)
    return (*found, OWN) if target == "tflite" else found


def thread_numbers(runner: str, asked: Sequence[int]) -> tuple[int | None, ...]:
    """Return the numbers of threads to measure a runner with: None for one that chooses them itself."""
    return (None,) if runner in CHOOSES_THREADS else tuple(asked)


def require_choice(runners: Sequence[str], asked: Sequence[int]) -> None:
    """Refuse numbers of threads that no runner of a call would obey.

    Raises:
        UsageError: They are asked for, and all runners choose them themselves.
    """
    if tuple(asked) != (1,) and CHOOSES_THREADS.issuperset(runners):
        raise UsageError(
            f"{', '.join(dict.fromkeys(runners))} chooses its threads itself", hint="leave --threads out"
        )


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
