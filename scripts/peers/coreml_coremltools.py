"""coremltools' own conversion of a traced torch module, as its documentation shows it.

Usage: coreml_coremltools.py MODEL WEIGHTS OUT.mlpackage FIGURES.json
"""

import sys
from pathlib import Path

from network import Stopwatch, network


def main(model: str, weights: str, out: str, figures: str) -> None:
    watch = Stopwatch()
    import coremltools as ct
    import torch

    watch.lap("import")
    module, inputs = network(model, Path(weights))
    watch.lap("build")
    traced = torch.jit.trace(module, inputs)
    converted = ct.convert(
        traced,
        inputs=[ct.TensorType(name="image", shape=inputs[0].shape)],
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    converted.save(out)
    watch.lap("convert")
    watch.write(Path(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
