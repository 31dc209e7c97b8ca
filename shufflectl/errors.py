"""Every error that shufflectl raises on purpose, and the exit code that each becomes.

::

    ShufflectlError                      1  internal error
    ├── UsageError                       2  the command line asks for something that does not exist
    ├── InputError                       3  bad input
    │   ├── CheckpointError                 missing, corrupt, malicious or of another layout
    │   ├── FactoryError                    a user's module:factory that fails, or gives no module
    │   ├── GraphError                      a graph that cannot be captured or read
    │   ├── UnsupportedOperatorError        an operator that a target or runtime cannot express
    │   ├── ArtifactError                   an exported file that is missing, damaged or of another kind
    │   ├── DataError                       images or labels that do not fit the model
    │   └── OutputError                     the output folder cannot be written
    ├── ParityError                      4  two formats disagree
    ├── GateError                        5  a budget or regression gate failed
    ├── UnstableError                    6  a measurement is inconclusive or unstable
    ├── UnavailableError                 7  a device, runtime or download is not available here
    │   └── DeviceError                     a device that is missing, refuses, or does not do what it must
    │       └── DeviceLostError             a device that no longer answers
    ├── MissingDependencyError           8  an optional dependency is not installed
    └── StoppedError                   130  the user ended it (Ctrl-C) after some of the work was done

A message is one sentence that says what happened and why; ``hint`` says what to do about it.
``cli.py`` is the only place that turns an error into an exit code.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar

__all__ = [
    "ArtifactError",
    "CheckpointError",
    "DataError",
    "DeviceError",
    "DeviceLostError",
    "FactoryError",
    "GateError",
    "GraphError",
    "InputError",
    "MissingDependencyError",
    "OutputError",
    "ParityError",
    "ShufflectlError",
    "StoppedError",
    "UnavailableError",
    "UnstableError",
    "UnsupportedOperatorError",
    "UsageError",
    "nearest",
]


class ShufflectlError(Exception):
    """The root of the tree.

    Args:
        message: What happened and the likely cause, in one sentence.
        hint: What to do about it, built from the actual state; may be empty.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ShufflectlError):
    """The command line names a model, target, precision or option that does not exist."""

    exit_code = 2


class InputError(ShufflectlError):
    """A checkpoint, graph, artifact, image or configuration cannot be used."""

    exit_code = 3


class CheckpointError(InputError):
    """A checkpoint is missing, truncated, corrupt, unsafe to load or does not fit the model."""


class FactoryError(InputError):
    """A user's ``module:factory`` cannot be imported, raises, or gives no module that can be exported."""


class GraphError(InputError):
    """A model cannot be captured, or a graph is malformed."""


class UnsupportedOperatorError(GraphError):
    """An operator that a target cannot express or a runtime cannot execute.

    Args:
        node: The node's name in the graph.
        operator: The operator's type, for example ``Einsum``.
        where: The target or runtime that refuses it.
        why: What exactly is not supported, where the operator as such is.
        hint: What to do about it.
    """

    def __init__(self, node: str, operator: str, where: str, *, why: str = "", hint: str = "") -> None:
        reason = f": {why}" if why else ""
        super().__init__(f"{where} cannot take operator {operator} (node {node!r}){reason}", hint=hint)
        self.node = node
        self.operator = operator
        self.where = where


class ArtifactError(InputError):
    """An exported file is missing, damaged, of the wrong kind, or not what its manifest says."""


class DataError(InputError):
    """Images or labels are missing or do not fit the model's input."""


class OutputError(InputError):
    """The output folder cannot be written, or the disk is full."""


class ParityError(ShufflectlError):
    """Two formats of one model disagree by more than the limits."""

    exit_code = 4


class GateError(ShufflectlError):
    """A budget or regression gate failed."""

    exit_code = 5


class UnstableError(ShufflectlError):
    """A measurement is inconclusive or unstable."""

    exit_code = 6


class UnavailableError(ShufflectlError):
    """A device, runtime or server does not exist on this platform or cannot be reached."""

    exit_code = 7


class DeviceError(UnavailableError):
    """A device is missing, does not let us in, lacks what a measurement needs, or did something else."""


class DeviceLostError(DeviceError):
    """A device no longer answers: unplugged, offline, rebooted, or its adb server was stopped."""


class MissingDependencyError(ShufflectlError):
    """An optional dependency is not installed.

    Args:
        package: The package that is missing.
        extra: The extra of shufflectl that installs it.
        needed_for: What the user asked for.
    """

    exit_code = 8

    def __init__(self, package: str, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package}, which is not installed",
            hint=f"install it with: pip install 'shufflectl[{extra}]'",
        )
        self.package = package
        self.extra = extra


class StoppedError(ShufflectlError):
    """The user ended a measurement; what was measured until then was kept, or is lost."""

    exit_code = 130


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return a hint that suggests the nearest of ``choices``, or lists them when none is near."""
    known = list(choices)
    close = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "choose from: " + ", ".join(known)
