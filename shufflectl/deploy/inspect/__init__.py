"""What an exported file holds and what a run of it costs.

One reader a format (`onnx_file`, `tflite_file`, `coreml_file`) turns the file into a `program`; `costs` and
`guidelines` know no format. Readers are imported when a file of theirs is read: each brings its own library.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from shufflectl.converters.targets import TARGETS
from shufflectl.deploy.inspect.costs import summarize_program
from shufflectl.deploy.inspect.program import Program
from shufflectl.deploy.inspect.summary import Finding, LargestRank, OperatorSummary, Summary, TensorSummary
from shufflectl.errors import ArtifactError, nearest

if TYPE_CHECKING:  # half a second, which a file that is no graph need not wait for
    from shufflectl.converters.graph import Graph

__all__ = [
    "Finding",
    "LargestRank",
    "OperatorSummary",
    "Summary",
    "TensorSummary",
    "summarize",
    "summarize_graph",
]


Reader = Callable[[Path], tuple[Program, int]]

_READERS: Final = {
    ".onnx": "shufflectl.deploy.inspect.onnx_file:read_onnx",
    ".tflite": "shufflectl.deploy.inspect.tflite_file:read_tflite",
    ".mlpackage": "shufflectl.deploy.inspect.coreml_file:read_coreml",
}


def summarize(path: Path) -> Summary:
    """Summarise an exported file, of whoever wrote it.

    No code of the file runs, nothing outside of its folder is read, and weights are not loaded.

    Args:
        path: An ``.onnx`` file, a ``.tflite`` file or an ``.mlpackage`` folder.

    Raises:
        ArtifactError: It is missing, damaged, or none of these.
        MissingDependencyError: The package that knows the format is not installed.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise _unknown_kind(path)
    module, _, function = reader.partition(":")
    read = cast("Reader", getattr(importlib.import_module(module), function))
    program, size = read(path)
    return summarize_program(program, path.name, size)


def summarize_graph(graph: "Graph", name: str) -> Summary:
    """Summarise a captured graph as `summarize` does a file.

    Args:
        graph: The graph; it is not changed.
        name: What to call it.
    """
    from shufflectl.deploy.inspect.onnx_file import read_graph

    return summarize_program(read_graph(graph), name, None)


def _unknown_kind(path: Path) -> ArtifactError:
    suffixes = [target.extension for target in TARGETS.values()]
    if not path.exists():
        return ArtifactError(f"{path} does not exist", hint="check the path")
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
        hint = (
            f"pass one of the files in it, as {inside[0]}"
            if inside
            else "pass an exported file, not its folder"
        )
        return ArtifactError(f"{path} is a folder, and no .mlpackage", hint=hint)
    if not path.suffix:
        return ArtifactError(f"{path} has no suffix that tells its format", hint=nearest("", suffixes))
    return ArtifactError(f"{path} has an unknown suffix {path.suffix!r}", hint=nearest(path.suffix, suffixes))
