"""The formats that a graph can be exported to: one table, one row a target.

A target is a folder of this package whose ``emit`` writes one artifact. The rows name what the command
line and the pipeline need without importing any converter.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, Protocol, cast, get_args

if TYPE_CHECKING:  # the table is read at start-up; onnx and numpy are not needed for that
    from shufflectl.converters.graph import Graph
    from shufflectl.converters.metadata import ModelInfo

__all__ = [
    "DEPLOYMENT_TARGETS",
    "FLOATS",
    "IO",
    "IO_TYPES",
    "PALETTES",
    "PRECISIONS",
    "TARGETS",
    "EmitOptions",
    "Emitter",
    "Layout",
    "Precision",
    "Target",
]

Layout = Literal["nchw", "nhwc"]
IO = Literal["float", "int8", "uint8"]
IO_TYPES: Final[tuple[IO, ...]] = get_args(IO)
Precision = Literal[
    "fp32", "fp16", "int8", "int8-weights", "int8-dynamic", "palette8", "palette6", "palette4"
]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
"""How numbers are held: floats; ``int8``, weights and activations as codes of eight bits; ``int8-weights``,
weights alone; ``int8-dynamic``, weights, and activations as the runtime finds their range; ``palette``,
weights as places in a table of 2^bits numbers a tensor."""
DEPLOYMENT_TARGETS: Final = ("iOS15", "iOS16", "iOS17", "iOS18")
"""The systems that Core ML packages can ask for; each stands for the macOS, watchOS and tvOS of its year."""


@dataclass(frozen=True)
class EmitOptions:
    """How an artifact is written.

    Attributes:
        precision: The precision of weights, and of arithmetic where the runtime has it.
        layout: The layout of image inputs and outputs of rank 4; None for the target's default.
        half_io: Whether an fp16 ONNX or Core ML file takes and gives fp16 (otherwise fp32).
        minimum_deployment_target: The oldest system that a Core ML package must run on, as ``iOS16``.
        io: What an int8 TFLite file takes and gives: floats, or the codes themselves.
    """

    precision: Precision = "fp32"
    layout: Layout | None = None
    half_io: bool = False
    minimum_deployment_target: str = "iOS16"
    io: IO = "float"


class Emitter(Protocol):
    """Writes one artifact at ``path``, which does not exist yet (its folder does).

    The artifact holds `ModelInfo` under `METADATA_KEY` and its `Trace` under `TRACE_KEY`, and its bytes
    depend on the arguments alone.

    Raises:
        UnsupportedOperatorError: The graph holds an operator that the target cannot express.
    """

    def __call__(self, graph: "Graph", info: "ModelInfo", options: EmitOptions, path: Path) -> None:
        """Write the artifact."""


@dataclass(frozen=True)
class Target:
    """One format.

    Attributes:
        name: What users call it.
        extension: The artifact's suffix, with the dot.
        default_layout: The layout of image inputs where the user does not say.
        precisions: What its files can hold numbers as.
        runtimes: Names of the runtimes that can execute it, the preferred first.
        package: The optional package that the emitter or the runtime imports; None when core.
        extra: The extra of shufflectl that installs it.
        emitter: ``module:function`` of the emitter.
        preload: ``module:function`` that imports a converter which takes seconds, so that it pays to
            start it in a process of its own while the graph is captured; None where it does not.
    """

    name: str
    extension: str
    default_layout: Layout
    precisions: tuple[Precision, ...]
    runtimes: tuple[str, ...]
    package: str | None
    extra: str | None
    emitter: str
    preload: str | None = None

    def emit(self, graph: "Graph", info: "ModelInfo", options: EmitOptions, path: Path) -> None:
        """Write the artifact; see `Emitter`."""
        module, _, function = self.emitter.partition(":")
        emit = cast("Emitter", getattr(importlib.import_module(module), function))
        emit(graph, info, options, path)


FLOATS: Final[tuple[Precision, ...]] = ("fp32", "fp16")
"""Those without integers."""
PALETTES: Final[Mapping[Precision, int]] = MappingProxyType({"palette8": 8, "palette6": 6, "palette4": 4})
"""How many bits a weight has, where a file holds it as a place in a table."""
_ROWS = (
    Target(
        "onnx",
        ".onnx",
        "nchw",
        (*FLOATS, "int8", "int8-weights"),
        ("onnxruntime",),
        None,
        None,
        "shufflectl.converters.onnx.emit:emit",
    ),
    Target(
        "coreml",
        ".mlpackage",
        "nchw",
        (*FLOATS, "int8", "int8-weights", *PALETTES),
        ("coreml", "coreml-reference"),
        "coremltools",
        "coreml",
        "shufflectl.converters.coreml.emit:emit",
        preload="shufflectl.converters.coreml.toolkit:preload",
    ),
    Target(
        "tflite",
        ".tflite",
        "nhwc",
        (*FLOATS, "int8", "int8-weights", "int8-dynamic"),
        ("litert", "tflite-runtime"),
        "ai-edge-litert",
        "tflite",
        "shufflectl.converters.tflite.emit:emit",
    ),
)
TARGETS: Final = MappingProxyType({row.name: row for row in _ROWS})
