"""The runtimes that execute artifacts: one table, and the choice among them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from shufflectl.converters.targets import TARGETS
from shufflectl.deploy.runtimes.base import Arrays, Availability, Runtime, Session, TensorSpec
from shufflectl.errors import MissingDependencyError, UnavailableError, UsageError, nearest

__all__ = ["NAMES", "Arrays", "Availability", "Runtime", "Session", "TensorSpec", "choose", "create"]


def _onnxruntime(_: Path | None) -> Runtime:
    from shufflectl.deploy.runtimes.ort import OnnxRuntime

    return OnnxRuntime()


def _litert(_: Path | None) -> Runtime:
    from shufflectl.deploy.runtimes.litert import LiteRT

    return LiteRT()


def _tflite_runtime(python: Path | None) -> Runtime:
    from shufflectl.deploy.runtimes.tflite_runtime import TfliteRuntime

    if python is None:
        raise UsageError(
            "the runtime tflite-runtime needs an interpreter of its own",
            hint="pass --runtime-python PATH, a Python 3.11 or older where tflite-runtime is installed",
        )
    return TfliteRuntime(python)


def _coreml(_: Path | None) -> Runtime:
    from shufflectl.deploy.runtimes.coreml import CoreML

    return CoreML()


def _coreml_reference(_: Path | None) -> Runtime:
    from shufflectl.deploy.runtimes.coreml_reference import CoreMLReference

    return CoreMLReference()


_MAKERS: dict[str, Callable[[Path | None], Runtime]] = {
    "onnxruntime": _onnxruntime,
    "litert": _litert,
    "tflite-runtime": _tflite_runtime,
    "coreml": _coreml,
    "coreml-reference": _coreml_reference,
}
NAMES = tuple(_MAKERS)


def create(name: str, *, python: Path | None = None) -> Runtime:
    """Return the runtime of that name.

    Args:
        name: One of `NAMES`.
        python: The interpreter for runtimes that need one of their own.

    Raises:
        UsageError: No such runtime, or it needs ``python``.
    """
    if name not in _MAKERS:
        raise UsageError(f"unknown runtime {name!r}", hint=nearest(name, NAMES))
    return _MAKERS[name](python)


def choose(target: str, wanted: Sequence[str] = (), *, python: Path | None = None) -> Runtime:
    """Return the runtime that executes a target's artifacts here.

    Args:
        target: The target's name.
        wanted: Runtimes that the user asked for, names from `NAMES`, of any format; those of this target's
            format are binding.
        python: The interpreter for runtimes that need one of their own.

    Raises:
        MissingDependencyError: The package of the only possible runtime is not installed.
        UnavailableError: No runtime for the format works here, or the one that was asked for does not.
    """
    row = TARGETS[target]
    asked = [name for name in wanted if name in row.runtimes]
    candidates = asked or [name for name in row.runtimes if python is not None or name != "tflite-runtime"]
    reasons, remedies = [], []
    for name in candidates:
        runtime = create(name, python=python)
        state = runtime.available()
        if state.ok:
            return runtime
        reasons.append(f"{name}: {state.reason}")
        if state.remedy:
            remedies.append(state.remedy)
    if not asked and row.package and row.extra and remedies:
        raise MissingDependencyError(row.package, row.extra, f"running {row.extension} files")
    raise UnavailableError(
        f"no runtime here executes {row.extension} files ({'; '.join(reasons)})", hint="; ".join(remedies)
    )
