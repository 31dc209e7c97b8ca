"""The process that `measure` starts: loads one file in one runtime, and prints what became of it as JSON."""

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from shufflectl.errors import ShufflectlError

__all__ = ["layout", "main", "xnnpack"]


def xnnpack(path: Path) -> dict[str, Any]:
    """Return the partitions that LiteRT's XNNPACK delegate takes of a ``.tflite`` file."""
    from shufflectl.deploy.runtimes.litert import delegation

    found = delegation(path)
    return {
        "runtime": f"LiteRT {importlib.metadata.version('ai-edge-litert')}",
        "operators": found.operators,
        "partitions": found.partitions,
    }


def layout(path: Path) -> dict[str, Any]:
    """Return what ONNX Runtime's optimised graph holds of an ``.onnx`` file."""
    from shufflectl.deploy.inspect.onnx_file import read_onnx
    from shufflectl.deploy.inspect.ort_layout import analyse
    from shufflectl.deploy.runtimes.ort import block_size, optimised_graph

    program, _ = read_onnx(path)
    values = {v.name: v for v in program.inputs}
    for operation in program.operations:
        values |= {v.name: v for v in (*operation.inputs, *operation.outputs)}
    casts = sum(operation.type == "Cast" for operation in program.operations)
    report = analyse(optimised_graph(path), values, casts=casts, block=block_size())
    version = importlib.metadata.version("onnxruntime")
    return {"runtime": f"ONNX Runtime {version}", "layout": asdict(report)}


_MEASURES: Final[Mapping[str, Callable[[Path], dict[str, Any]]]] = {"xnnpack": xnnpack, "layout": layout}


def main(argv: list[str]) -> None:
    """Print the answer to ``[what, path]``."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a native library prints must not mix with the answer
    try:
        answer: dict[str, Any] = {"error": "", "result": _MEASURES[argv[0]](Path(argv[1]))}
    except ShufflectlError as error:
        answer = {"error": error.message, "result": {}}
    except Exception as error:  # noqa: BLE001 - whatever it is becomes the reason why nothing was measured
        answer = {"error": f"{type(error).__name__}: {error}", "result": {}}
    with answers:
        json.dump(answer, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
