"""`CoreMLReference`: executes a saved ``.mlpackage``, rounding where the program's types say fp16.

The model of arithmetic: an operation reads its operands as the program stores them, computes in fp32, and its
result is rounded once, to nearest even, where its declared type is fp16. A convolution or a matrix product
thus accumulates in fp32 and rounds at the end, bias included. Core ML promises neither order nor width of
accumulation, so a device differs in the last bits of a result; which results are stored as fp16 is the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shufflectl import __version__
from shufflectl.deploy.runtimes.base import Availability
from shufflectl.deploy.runtimes.coreml_reference.protos import proto_folder
from shufflectl.errors import MissingDependencyError

if TYPE_CHECKING:
    from shufflectl.deploy.runtimes.coreml_reference.session import CoreMLReferenceSession

__all__ = ["CoreMLReference"]


class CoreMLReference:
    """Runs Core ML programs on any platform; a `Runtime`."""

    name = "coreml-reference"
    format = "coreml"

    def available(self) -> Availability:
        """Say whether coremltools, whose message classes read the package, is installed."""
        if proto_folder() is None:
            missing = MissingDependencyError("coremltools", "coreml", "reading a Core ML package")
            return Availability(ok=False, reason=missing.message, remedy=missing.hint)
        return Availability(ok=True, version=__version__)

    @contextmanager
    def load(self, artifact: Path, *, threads: int = 1) -> Iterator["CoreMLReferenceSession"]:
        """Open a package.

        Args:
            artifact: The ``.mlpackage`` folder.
            threads: How many threads torch may use for one operation.

        Raises:
            ArtifactError: The package is missing, damaged or of another kind.
            UnsupportedOperatorError: The program holds an operation that is not executed.
            MissingDependencyError: coremltools is not installed.
        """
        from shufflectl.deploy.runtimes.coreml_reference.session import (
            CoreMLReferenceSession,
        )

        yield CoreMLReferenceSession(artifact, threads)
