"""torch's own ONNX export, as its documentation shows it.

Usage: onnx_torch.py MODEL WEIGHTS OUT.onnx FIGURES.json
"""

import sys
from pathlib import Path

from network import Stopwatch, network


def main(model: str, weights: str, out: str, figures: str) -> None:
    watch = Stopwatch()
    import torch

    watch.lap("import")
    module, inputs = network(model, Path(weights))
    watch.lap("build")
    torch.onnx.export(module, inputs, out, dynamo=True, external_data=False)
    watch.lap("convert")
    watch.write(Path(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
