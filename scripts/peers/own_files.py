"""shufflectl's own files: every wanted form of a model's shuffles, as ONNX and as TFLite.

Usage: own_files.py MODEL WEIGHTS FOLDER FORM...

A form is ``auto`` (what `export` does by default), ``floor``, or a lowering's name and its options:
``NAME[:ALIGN[:MERGE[:CARRY]]]``, or by name, as in ``fold-split:align=16:carry=16``. A name alone takes the
options that `export --shuffle` would; otherwise those that are not given are off, but for the width of
concats, which is the target's.

FOLDER gets ``N.onnx`` and ``N.tflite`` for the N-th form, and ``report.json``: what each file is. A form
whose file would be the same as an earlier one's has none, and that one's label.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from floor import floor
from network import network

from shufflectl.converters.capture import capture
from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.rewrite.choose import choose, lower, settle
from shufflectl.converters.rewrite.lowering import Options, bytes_moved, operators
from shufflectl.converters.targets import TARGETS, EmitOptions

FORMATS = ("onnx", "tflite")
POSITIONS = ("align", "merge", "carry")


def main(model: str, weights: str, folder: str, *forms: str) -> None:
    out = Path(folder)
    module, inputs = network(model, Path(weights))
    graph = capture(module, inputs, name=model)
    report: dict[str, dict[str, dict[str, Any]]] = {target: {} for target in FORMATS}
    for target in FORMATS:
        seen: dict[bytes, str] = {}
        for number, form in enumerate(forms):
            lowered, what = _lowered(graph, target, form)
            file = out / f"{number}{TARGETS[target].extension}"
            TARGETS[target].emit(lowered, ModelInfo(model), EmitOptions(), file)
            same = seen.setdefault(file.read_bytes(), form)
            if same != form:
                file.unlink()
            report[target][form] = {
                "file": file.name if same == form else "",
                "same_as": same if same != form else "",
                "what": what,
                "operators": operators(lowered.nodes),
                "bytes_moved": bytes_moved(lowered.nodes),
            }
    (out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")


def _lowered(graph: Graph, target: str, form: str) -> tuple[Graph, str]:
    """Return the graph in a form, and what that is in words."""
    if form == "floor":
        return floor(graph), "every copy left out: a wrong result"
    name, *given = form.split(":")
    candidate = settle(graph, choose(target, "fp32", shuffle=name)).candidate
    if given:
        limit = candidate.options.max_concat
        candidate = replace(candidate, options=replace(Options(max_concat=limit), **_options(given)))
    lowered, report = lower(graph, candidate)
    return lowered, candidate.label if report.changed else "nothing to lower"


def _options(given: list[str]) -> dict[str, int]:
    """Return options by name; those without one stand in the order of `POSITIONS`."""
    found = {}
    for position, text in enumerate(given):
        name, equals, number = text.rpartition("=")
        found[name if equals else POSITIONS[position]] = int(number)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
