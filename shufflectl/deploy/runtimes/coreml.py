"""`CoreML`: Apple's own runtime, through coremltools; macOS only."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shufflectl.deploy.runtimes.base import Arrays, Availability, check_inputs
from shufflectl.errors import ArtifactError, MissingDependencyError, UnavailableError

__all__ = ["CoreML"]

_ELSEWHERE = "Core ML exists on macOS only, and this is not macOS"


class CoreML:
    """Runs Core ML packages with Apple's Core ML; a `Runtime`."""

    name = "coreml"
    format = "coreml"

    def available(self) -> Availability:
        """Say whether this is macOS and coremltools is installed."""
        if platform.system() != "Darwin":
            return Availability(ok=False, reason=_ELSEWHERE)
        if find_spec("coremltools") is None:
            missing = MissingDependencyError("coremltools", "coreml", "running a Core ML package")
            return Availability(ok=False, reason=missing.message, remedy=missing.hint)
        return Availability(ok=True, version=metadata.version("coremltools"))

    @contextmanager
    def load(self, artifact: Path, *, threads: int = 1) -> Iterator["CoreMLSession"]:
        """Open a package; Core ML chooses its threads itself.

        Raises:
            UnavailableError: This is not macOS.
            MissingDependencyError: coremltools is not installed.
            ArtifactError: The package is missing, damaged or of another kind.
        """
        del threads
        state = self.available()
        if platform.system() != "Darwin":
            raise UnavailableError(state.reason, hint="use the runtime coreml-reference")
        if not state.ok:
            raise MissingDependencyError("coremltools", "coreml", "running a Core ML package")
        yield CoreMLSession(artifact)


class CoreMLSession:
    """A package that Core ML has compiled; a `Session`.

    The interface, the trace and the metadata are read by the reference runtime's reader, which also refuses
    damaged packages with one sentence. Core ML gives outputs alone; a tap needs the reference runtime.
    """

    def __init__(self, artifact: Path) -> None:
        from shufflectl.converters.coreml.toolkit import load
        from shufflectl.converters.quiet import quiet
        from shufflectl.deploy.runtimes.coreml_reference.session import (
            CoreMLReferenceSession,
        )

        interface = CoreMLReferenceSession(artifact)
        self.inputs = interface.inputs
        self.outputs = interface.outputs
        self.info = interface.info
        self.trace = interface.trace
        self.integers = interface.integers
        self._artifact = artifact
        self._pictures = interface.pictures
        toolkit = load()
        with quiet():
            try:
                # Arithmetic as the types say: other compute units may round fp32 programs to fp16.
                self._model = toolkit.ct.models.MLModel(
                    str(artifact), compute_units=toolkit.ct.ComputeUnit.CPU_ONLY
                )
            except (RuntimeError, ValueError, TypeError, OSError) as error:
                raise ArtifactError(
                    f"Core ML cannot load {artifact}: {error}", hint="export it again"
                ) from error

    def run(self, inputs: Mapping[str, NDArray[Any]], taps: Sequence[str] = ()) -> Arrays:
        """Execute the model once; see `Session.run`.

        Raises:
            DataError: An input is missing or does not fit.
            ArtifactError: Core ML fails, or a tap is asked for that is not an output.
        """
        names = [spec.name for spec in self.outputs]
        hidden = [name for name in taps if name not in names]
        if hidden:
            raise ArtifactError(
                f"Core ML does not give the inner tensor {hidden[0]!r}",
                hint="use the runtime coreml-reference",
            )
        check_inputs(self.inputs, inputs)
        try:
            results = self._model.predict({name: self._given(name, array) for name, array in inputs.items()})
        except (RuntimeError, ValueError, TypeError) as error:
            raise ArtifactError(f"Core ML cannot run {self._artifact}: {error}") from error
        return {spec.name: np.asarray(results[spec.name], spec.dtype) for spec in self.outputs}

    def _given(self, name: str, array: NDArray[Any]) -> Any:
        """Return an input as Core ML takes it: a picture in RGB, whatever the program asks for."""
        if name not in self._pictures:
            return array
        from PIL import Image

        planes = array[0] if self._pictures[name] == "RGB" else array[0, ::-1]
        return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
