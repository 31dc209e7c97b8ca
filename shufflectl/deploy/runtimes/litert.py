"""LiteRT (TensorFlow Lite's successor) on the CPU, as phones run it: with the XNNPACK delegate.

Inner tensors (taps) come from a second interpreter that is built when they are first asked for: it keeps
every tensor and uses the builtin kernels, because a delegate's inner tensors do not exist for the
interpreter. A run with taps takes everything from that one, so that its tensors belong together; its
outputs may differ from the first one's by rounding.

The file's structure is checked before LiteRT sees it (`tflite_file`), because LiteRT does not.
"""

import contextlib
import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shufflectl.deploy.runtimes import tflite_file
from shufflectl.deploy.runtimes.base import Arrays, Availability, Session, TensorSpec, check_inputs
from shufflectl.deploy.runtimes.quiet import Captured, quiet_stderr
from shufflectl.errors import ArtifactError, MissingDependencyError, UnsupportedOperatorError

__all__ = ["Delegation", "LiteRT", "delegation"]

_REMEDY = "pip install 'shufflectl[tflite]'"
_DELEGATE = "DELEGATE"
"""What the interpreter calls the operators that stand for a delegate's partitions."""


def _spec(detail: Mapping[str, Any]) -> TensorSpec:
    signature = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    return TensorSpec(
        str(detail["name"]),
        tuple(None if d < 0 else int(d) for d in signature),
        np.dtype(detail["dtype"]),
    )


class _Interpreter:
    """One interpreter of LiteRT on a checked file; its errors become ours."""

    def __init__(self, file: tflite_file.TfliteFile, threads: int, *, taps: bool) -> None:
        api = importlib.import_module("ai_edge_litert.interpreter")
        kind = api.OpResolverType
        self._file = file
        with self._errors("cannot be loaded"):
            self._interpreter = api.Interpreter(
                model_content=file.data,
                num_threads=threads,
                experimental_preserve_all_tensors=taps,
                experimental_op_resolver_type=kind.BUILTIN_WITHOUT_DEFAULT_DELEGATES
                if taps
                else kind.BUILTIN,
            )
            self._interpreter.allocate_tensors()
        self.inputs = self._interpreter.get_input_details()
        self.outputs = self._interpreter.get_output_details()
        self._shapes = {d["index"]: tuple(int(n) for n in d["shape"]) for d in self.inputs}
        self._inner: dict[str, int] = {}
        if taps:
            for detail in self._interpreter.get_tensor_details():
                self._inner.setdefault(detail["name"], detail["index"])

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        heard = Captured()
        try:
            with quiet_stderr() as heard:
                yield
        except (RuntimeError, ValueError, MemoryError) as e:
            lines = str(e).strip().splitlines()
            gist = heard.last_error or (lines[0] if lines else type(e).__name__)
            if self._file.custom:
                names = ", ".join(self._file.custom)
                raise UnsupportedOperatorError(
                    names, "CUSTOM", "LiteRT", why=f"{self._file.path.name} holds custom operators"
                ) from e
            raise ArtifactError(
                f"{self._file.path.name} {what} by LiteRT: {gist}", hint="export the model again"
            ) from e

    def operators(self) -> list[dict[str, Any]]:
        """Return the file's operators, then one for each of the delegate's partitions."""
        found: list[dict[str, Any]] = self._interpreter._get_ops_details()  # noqa: SLF001 - the one way to see them
        return found

    def run(self, inputs: Mapping[str, NDArray[Any]], taps: Sequence[str]) -> Arrays:
        missing = [name for name in taps if name not in self._inner]
        if missing:
            raise ArtifactError(f"{self._file.path.name} has no tensor {missing[0]!r}")
        with self._errors("cannot be run"):
            arrays = {d["index"]: np.ascontiguousarray(inputs[d["name"]]) for d in self.inputs}
            if any(self._shapes[index] != array.shape for index, array in arrays.items()):
                for index, array in arrays.items():
                    self._interpreter.resize_tensor_input(index, array.shape, strict=True)
                    self._shapes[index] = array.shape
                self._interpreter.allocate_tensors()
            for index, array in arrays.items():
                self._interpreter.set_tensor(index, array)
            self._interpreter.invoke()
            wanted = {d["name"]: d["index"] for d in self.outputs}
            wanted.update((name, self._inner[name]) for name in taps)
            return {name: np.array(self._interpreter.get_tensor(index)) for name, index in wanted.items()}


class _Session:
    """A file that is open in LiteRT."""

    def __init__(self, file: tflite_file.TfliteFile, threads: int) -> None:
        self._file = file
        self._threads = threads
        self._fast = _Interpreter(file, threads, taps=False)
        self._keeping: _Interpreter | None = None
        self.inputs = tuple(_spec(d) for d in self._fast.inputs)
        self.outputs = tuple(_spec(d) for d in self._fast.outputs)
        self.info = file.info
        self.trace = file.trace
        self.integers = file.integers

    def run(self, inputs: Mapping[str, NDArray[Any]], taps: Sequence[str] = ()) -> Arrays:
        check_inputs(self.inputs, inputs)
        if not taps:
            return self._fast.run(inputs, ())
        if self._keeping is None:
            self._keeping = _Interpreter(self._file, self._threads, taps=True)
        return self._keeping.run(inputs, taps)


class LiteRT:
    """LiteRT, from the package ai-edge-litert."""

    name = "litert"
    format = "tflite"

    def available(self) -> Availability:
        """Say whether ai-edge-litert is installed and loads."""
        try:
            importlib.import_module("ai_edge_litert.interpreter")
            version = importlib.metadata.version("ai-edge-litert")
        except (ImportError, OSError) as e:
            missing = isinstance(e, ModuleNotFoundError)
            reason = "ai-edge-litert is not installed" if missing else f"ai-edge-litert does not load: {e}"
            return Availability(ok=False, reason=reason, remedy=_REMEDY)
        return Availability(ok=True, version=version)

    @contextlib.contextmanager
    def load(self, artifact: Path, *, threads: int = 1) -> Iterator[Session]:
        """Open a ``.tflite`` file; see `Runtime.load`."""
        if not self.available().ok:
            raise MissingDependencyError("ai-edge-litert", "tflite", "running .tflite files")
        yield _Session(tflite_file.read(artifact), threads)


@dataclass(frozen=True)
class Delegation:
    """What the XNNPACK delegate took of a file when LiteRT loaded it.

    Attributes:
        operators: How many operators the file has.
        partitions: For each partition the places of its operators in the file, ascending. An operator whose
            results nothing reads is in none.
    """

    operators: int
    partitions: tuple[tuple[int, ...], ...]


def delegation(artifact: Path) -> Delegation:
    """Load a ``.tflite`` file as phones run it and look at what the delegate took.

    The native library may end the process on a file that it does not expect: call this in another process.

    Raises:
        ArtifactError: As `Runtime.load`.
        MissingDependencyError: ai-edge-litert is not installed.
        UnsupportedOperatorError: The file holds custom operators.
    """
    if not LiteRT().available().ok:
        raise MissingDependencyError("ai-edge-litert", "tflite", "loading .tflite files")
    operators = _Interpreter(tflite_file.read(artifact), 1, taps=False).operators()
    own = [op for op in operators if op["op_name"] != _DELEGATE]
    makers = {int(t): place for place, op in enumerate(own) for t in op["outputs"]}
    partitions = tuple(
        _between({int(t) for t in op["inputs"]}, op["outputs"], own, makers)
        for op in operators
        if op["op_name"] == _DELEGATE
    )
    return Delegation(len(own), partitions)


def _between(
    sources: set[int],
    results: Sequence[int],
    operators: Sequence[Mapping[str, Any]],
    makers: Mapping[int, int],
) -> tuple[int, ...]:
    """Return the places of the operators that compute tensors from others."""
    found: set[int] = set()
    pending = {int(t) for t in results}
    while pending:
        place = makers.get(pending.pop())
        if place is not None and place not in found:
            found.add(place)
            pending |= {int(t) for t in operators[place]["inputs"]} - sources
    return tuple(sorted(found))
