"""What every runtime gives: a session that runs one artifact, and inner tensors on request."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.quantize.scales import Scale
from shufflectl.converters.trace import Trace
from shufflectl.errors import DataError

__all__ = [
    "Arrays",
    "Availability",
    "Integers",
    "Runtime",
    "Session",
    "TensorSpec",
    "bias_flaw",
    "check_inputs",
]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output as the file declares it.

    Attributes:
        name: The tensor's name in the file.
        shape: The file's own axis order; None for a dimension that is not fixed.
        dtype: The numpy type of its elements.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Availability:
    """Whether a runtime works here.

    Attributes:
        ok: Whether `Runtime.load` can work on this machine.
        version: The runtime's version where it is installed.
        reason: Why not, in one line; empty when ok.
        remedy: How to get it; empty when ok, or when nothing helps (not on this platform).
    """

    ok: bool
    version: str = ""
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Integers:
    """What the integers in a file stand for, as the file says.

    Attributes:
        grids: Of tensors that are held in eight bits, or rounded to them, by name; as of int8 codes.
        flaws: Layers whose parameters contradict one another, by the tensor that they make, a sentence each.
    """

    grids: Mapping[str, Scale] = field(default_factory=dict)
    flaws: Mapping[str, str] = field(default_factory=dict)


def bias_flaw(source: Scale, weights: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
    """Return what is wrong with the scales of a bias; empty where they are the input's times the weights'.

    The bias is added to products of codes, so no other scale makes sense; runtimes take it for granted.
    """
    expected = np.float64(source.scale) * weights.astype(np.float64)
    given = bias.astype(np.float64)
    if expected.size != given.size and 1 not in (expected.size, given.size):
        return f"the bias has {given.size} scales, and the weights have {expected.size}"
    expected, given = np.broadcast_arrays(expected, given)
    wrong = np.abs(given - expected) > 1e-5 * np.abs(expected)
    if not wrong.any():
        return ""
    row = int(np.flatnonzero(wrong)[0])
    return (
        f"the bias of {np.count_nonzero(wrong)} of {wrong.size} channels has another scale than its "
        f"products: channel {row} has {given[row]:.6g}, and input times weights is {expected[row]:.6g}"
    )


class Session(Protocol):
    """A loaded artifact. Names, axis order and types are the file's own."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs, in the file's order."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, in the file's order."""

    @property
    def info(self) -> ModelInfo | None:
        """What the file says about itself; None for a file that shufflectl did not write."""

    @property
    def trace(self) -> Trace:
        """Where the captured graph's tensors are; empty for a file that shufflectl did not write."""

    @property
    def integers(self) -> "Integers":
        """What the file's codes of eight bits stand for."""

    def run(self, inputs: Mapping[str, NDArray[Any]], taps: Sequence[str] = ()) -> Arrays:
        """Execute the model once.

        Args:
            inputs: By name in the file; shape and type as `inputs` declares.
            taps: Names of inner tensors, as the file has them, to return besides the outputs.

        Returns:
            The outputs and the taps, by name in the file.

        Raises:
            DataError: An input is missing, or its shape or type does not fit.
            ArtifactError: A tap does not exist, or the runtime fails on the file.
            UnsupportedOperatorError: The runtime cannot execute an operator.
        """


class Runtime(Protocol):
    """A program that executes artifacts of one format."""

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def format(self) -> str:
        """The name of the target whose artifacts it executes."""

    def available(self) -> Availability:
        """Say whether the runtime works here, without loading a model."""

    def load(self, artifact: Path, *, threads: int = 1) -> AbstractContextManager[Session]:
        """Open an artifact.

        Raises:
            ArtifactError: The file is missing, damaged or of another kind.
            UnavailableError: The runtime does not exist on this platform.
            MissingDependencyError: Its package is not installed.
        """


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, NDArray[Any]]) -> None:
    """Check what a session is given against what its file declares.

    Raises:
        DataError: An input is missing or unknown, is empty, or its shape or type does not fit.
    """
    names = ", ".join(spec.name for spec in specs)
    known = {spec.name for spec in specs}
    for name in inputs:
        if name not in known:
            raise DataError(f"the model has no input {name!r}", hint=f"its inputs are: {names}")
    for spec in specs:
        array = inputs.get(spec.name)
        if array is None:
            raise DataError(f"input {spec.name!r} is missing", hint=f"the model's inputs are: {names}")
        fits = len(array.shape) == len(spec.shape) and all(
            want is None or want == have for want, have in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != spec.dtype or 0 in array.shape:
            wanted = ", ".join("any" if d is None else str(d) for d in spec.shape)
            raise DataError(
                f"input {spec.name!r} is {array.dtype} {list(array.shape)}, and the model takes "
                f"{spec.dtype} [{wanted}]",
                hint="resize, convert or transpose the images to what the model takes",
            )
