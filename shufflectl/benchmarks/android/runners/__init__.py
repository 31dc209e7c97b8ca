"""The programs that measure on a phone, by kind."""

import mmap
from pathlib import Path
from typing import Final

from shufflectl.benchmarks.android.runners.base import Finished, Plan, Runner
from shufflectl.benchmarks.android.runners.litert import LitertRunner
from shufflectl.benchmarks.android.runners.onnxruntime import OnnxRuntimeRunner
from shufflectl.benchmarks.android.runners.own import OwnRunner
from shufflectl.benchmarks.android.runners.tflite import TfliteRunner
from shufflectl.errors import ArtifactError, UsageError, nearest

__all__ = ["KINDS", "Finished", "Plan", "Runner", "kind_of", "runner"]

# LiteRT's program contains TensorFlow Lite's, so it is looked for first.
_RUNNERS: Final[tuple[Runner, ...]] = (OwnRunner(), OnnxRuntimeRunner(), LitertRunner(), TfliteRunner())

KINDS: Final = tuple(item.name for item in _RUNNERS)
"""The names of all kinds."""


def runner(kind: str) -> Runner:
    """Return the runner of a kind.

    Raises:
        UsageError: There is no such kind.
    """
    found = next((item for item in _RUNNERS if item.name == kind), None)
    if found is None:
        raise UsageError(f"unknown kind of runner {kind!r}", hint=nearest(kind, KINDS))
    return found


def kind_of(path: Path) -> str:
    """Return the kind of a program, from the words that it contains.

    Raises:
        ArtifactError: It cannot be read, or is none of them.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for item in _RUNNERS:
                if all(data.find(mark) >= 0 for mark in item.marks):
                    return item.name
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    raise ArtifactError(
        f"{path} is none of the runners that are known ({', '.join(KINDS)})",
        hint="say which it is with --kind, if its words were stripped",
    )
