"""shufflectl's TFLite emitter on a captured graph.

Usage: tflite_shufflectl.py MODEL WEIGHTS OUT.tflite FIGURES.json
"""

import sys
from pathlib import Path

from network import Stopwatch, network


def main(model: str, weights: str, out: str, figures: str) -> None:
    watch = Stopwatch()
    import torch  # noqa: F401 - the other side imports it too

    from shufflectl.converters.capture import capture
    from shufflectl.converters.metadata import ModelInfo
    from shufflectl.converters.targets import EmitOptions
    from shufflectl.converters.tflite import emitter, operators  # noqa: F401 - emit() imports them when called
    from shufflectl.converters.tflite.emit import emit

    watch.lap("import")
    module, inputs = network(model, Path(weights))
    watch.lap("build")
    graph = capture(module, inputs, name=model)
    watch.lap("capture")
    for name in ("convert", "convert again"):
        emit(graph, ModelInfo(model), EmitOptions(), Path(out))
        watch.lap(name)
    watch.write(Path(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
