"""The protobuf classes of Core ML's model format, without ``import coremltools``.

coremltools ships the generated classes, but importing any module of it runs its ``__init__``, which takes
seconds and imports torch's and scikit-learn's converters. The generated modules themselves need nothing but
protobuf and each other, by relative imports. They are therefore imported here as a package of another
name whose folder is ``coremltools/proto``. protobuf keeps one class per message type, so the classes are the
very ones that coremltools uses, in whichever order the two are imported.
"""

import importlib
import importlib.util
import sys
import types
import warnings
from functools import cache
from pathlib import Path
from typing import Any, Final

from shufflectl.errors import MissingDependencyError

__all__ = ["message_modules", "proto_folder"]

_PACKAGE: Final = "shufflectl_coreml_proto"


def proto_folder() -> Path | None:
    """Return the folder of coremltools' generated classes, or None where coremltools is not installed."""
    # find_spec of a top-level package does not import it.
    spec = importlib.util.find_spec("coremltools")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "proto"
    return folder if (folder / "Model_pb2.py").is_file() else None


@cache
def message_modules() -> tuple[Any, Any]:
    """Return the modules ``Model_pb2`` and ``MIL_pb2``.

    Raises:
        MissingDependencyError: coremltools is not installed.
    """
    folder = proto_folder()
    if folder is None:
        raise MissingDependencyError("coremltools", "coreml", "reading a Core ML package")
    package = types.ModuleType(_PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[_PACKAGE] = package
    with warnings.catch_warnings():
        # The modules were generated for an older protobuf, whose newer releases may say so.
        warnings.simplefilter("ignore")
        model = importlib.import_module(f"{_PACKAGE}.Model_pb2")
        mil = importlib.import_module(f"{_PACKAGE}.MIL_pb2")
    return model, mil
