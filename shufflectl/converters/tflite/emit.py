"""The TFLite target: one captured graph becomes one ``.tflite`` file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import METADATA_KEY, TRACE_KEY, ModelInfo
from shufflectl.converters.targets import EmitOptions
from shufflectl.errors import MissingDependencyError

if TYPE_CHECKING:
    from shufflectl.converters.tflite.flatbuffer import Tensor

__all__ = ["emit", "to_bytes"]


def to_bytes(graph: Graph, info: ModelInfo, options: EmitOptions) -> bytes:
    """Return the graph as a TFLite file.

    Inputs and outputs of rank 4 are NHWC unless the options say NCHW. fp16 files hold float16 weights behind
    DEQUANTIZE and compute in float32; int8 files compute in codes (`tflite.integer`). A symbolic batch is -1
    in the shape signature and 1 until the caller resizes the input. The same arguments give the same bytes.

    Raises:
        UnsupportedOperatorError: A node cannot be expressed.
        MissingDependencyError: ai-edge-litert or flatbuffers is not installed.
    """
    try:
        from shufflectl.converters.tflite.description import NAME, describe, with_labels
        from shufflectl.converters.tflite.emitter import Emitter
        from shufflectl.converters.tflite.grow import grow
        from shufflectl.converters.tflite.integer import to_integers, with_int8_weights
        from shufflectl.converters.tflite.operators.table import OPERATORS
    except ModuleNotFoundError as e:
        package = (e.name or "").partition(".")[0]
        if package not in ("ai_edge_litert", "flatbuffers"):
            raise
        name = package.replace("_", "-")
        raise MissingDependencyError(name, "tflite", "writing .tflite files") from e
    emitter = Emitter(grow(graph), options, OPERATORS)
    emitter.run()
    codes: Mapping[Tensor, Tensor] = {}
    if options.precision == "int8":
        codes = to_integers(emitter.file, emitter.inputs, emitter.outputs, options.io)
    elif options.precision in ("int8-weights", "int8-dynamic"):
        with_int8_weights(emitter.file, dynamic=options.precision == "int8-dynamic")
    description = ", ".join(part for part in (info.name, info.description) if part)
    metadata = {
        METADATA_KEY: json.dumps(info.to_json(), ensure_ascii=False, separators=(",", ":")).encode(),
        TRACE_KEY: emitter.trace(codes).to_json().encode(),
        NAME: describe(info, emitter.inputs, emitter.outputs, nhwc=options.layout != "nchw"),
    }
    model = emitter.file.finish(
        emitter.inputs, emitter.outputs, name="main", description=description, metadata=metadata
    )
    return with_labels(model, info, emitter.outputs)


def emit(graph: Graph, info: ModelInfo, options: EmitOptions, path: Path) -> None:
    """Write the artifact; see `to_bytes` and `converters.targets.Emitter`."""
    path.write_bytes(to_bytes(graph, info, options))
