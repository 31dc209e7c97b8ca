"""shufflectl's own int8 files of a model, calibrated on given images.

Usage: own_codes.py MODEL WEIGHTS IMAGES.npy FOLDER

IMAGES holds what the network takes, float32, [N, 3, H, W]. FOLDER gets ``auto.onnx`` and ``auto.tflite``,
which take and give floats, and ``codes.tflite``, which takes and gives codes; ``report.json`` comes last.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from network import network
from numpy.typing import NDArray

from shufflectl.converters.capture import capture
from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.quantize.calibrate import calibrate
from shufflectl.converters.quantize.recipe import Recipe
from shufflectl.converters.quantize.ties import is_activation_tensor
from shufflectl.converters.rewrite.choose import choose, settle
from shufflectl.converters.targets import TARGETS, EmitOptions
from shufflectl.deploy.calibration import session_of
from shufflectl.deploy.quantization import Quantized


def main(model: str, weights: str, images: str, folder: str) -> None:
    module, inputs = network(model, Path(weights))
    graph = capture(module, inputs, name=model)
    arrays = np.load(images)

    def run(tried: Graph, wanted: Sequence[str] | None) -> Iterator[Mapping[str, NDArray[Any]]]:
        inner = [str(v.name) for n in tried.nodes for v in n.outputs if is_activation_tensor(v)]
        names = inner if wanted is None else list(wanted)
        session = session_of(tried, names)
        for image in arrays:
            feeds = {str(tried.inputs[0].name): image[np.newaxis]}
            made = dict(zip(names, session.run(names, feeds), strict=True))
            yield {**feeds, **made} if wanted is None else made

    found = calibrate(graph, run, Recipe(), source="noise", images=len(arrays), seed=0)
    quantized = Quantized(graph, found)
    forms = {}
    for target in ("onnx", "tflite"):
        candidate = settle(graph, choose(target, "int8")).candidate
        forms[target] = candidate.label
        lowered, _ = quantized.form(candidate)
        info = ModelInfo(model, precision="int8")
        path = Path(folder) / f"auto{TARGETS[target].extension}"
        TARGETS[target].emit(lowered, info, EmitOptions("int8"), path)
        if target == "tflite":
            TARGETS[target].emit(lowered, info, EmitOptions("int8", io="int8"), path.with_stem("codes"))
    (Path(folder) / "report.json").write_text(json.dumps(forms), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
