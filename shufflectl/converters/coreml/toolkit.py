"""coremltools, imported once, quietly, and as quickly as it can be.

``import coremltools`` probes for every framework that it can convert from (scikit-learn, torch, TensorFlow,
XGBoost, ...) and imports each one that is installed, and its torch front end on top. Nothing of that serves
a program that is built with the MIL builder. A process of its own (a worker) may therefore ask for the
*lean* import, which hides those packages while coremltools is imported: about 0.9 s instead of 4.7 s on
two cores. In a lean process coremltools cannot convert torch or scikit-learn models, which is why it is never
the default: a library that hides packages from its user's process would break that user's own conversions.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from shufflectl.converters.quiet import quiet
from shufflectl.errors import MissingDependencyError

__all__ = ["Toolkit", "load", "preload"]

_PROBED: Final = (
    "executorch",
    "libsvm",
    "sklearn",
    "tensorflow",
    "torch",
    "torchao",
    "torchaudio",
    "torchvision",
    "transformers",
    "xgboost",
)
"""What ``coremltools._deps`` of version 9 imports where it can, and the MIL builder never uses."""


@dataclass(frozen=True)
class Toolkit:
    """The parts of coremltools that the emitter uses.

    Attributes:
        ct: The package.
        mb: The MIL builder.
        mil: The module of MIL's programs, functions and types.
        version: The package's version.
    """

    ct: Any
    mb: Any
    mil: Any
    version: str


def load(*, lean: bool = False) -> Toolkit:
    """Import coremltools.

    Args:
        lean: Hide the frameworks that coremltools probes for, except those already imported. For processes
            that do nothing but emit; without effect once coremltools is imported.

    Raises:
        MissingDependencyError: coremltools is not installed.
    """
    if importlib.util.find_spec("coremltools") is None:
        raise MissingDependencyError("coremltools", "coreml", "exporting to Core ML")
    with quiet(), _hidden(_PROBED if lean and "coremltools" not in sys.modules else ()):
        ct = importlib.import_module("coremltools")
        mil = importlib.import_module("coremltools.converters.mil.mil")
    return Toolkit(ct, mil.Builder, mil, str(ct.__version__))


def preload() -> None:
    """Import coremltools lean, in a process that does nothing but emit."""
    load(lean=True)


@contextlib.contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """Make imports of the named packages fail, except of those that are imported already."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # the import system's word for "absent"
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
