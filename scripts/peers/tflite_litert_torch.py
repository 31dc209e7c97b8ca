"""litert-torch's own conversion of a torch module, as its documentation shows it.

Usage: tflite_litert_torch.py MODEL WEIGHTS OUT.tflite FIGURES.json [again]

With ``again`` the conversion runs a second time in the same process, and torch.export alone is timed.
"""

import sys
from pathlib import Path

from network import Stopwatch, network


def main(model: str, weights: str, out: str, figures: str, again: str = "") -> None:
    watch = Stopwatch()
    import litert_torch
    import torch

    watch.lap("import")
    module, inputs = network(model, Path(weights))
    watch.lap("build")
    litert_torch.convert(module, inputs).export(out)
    watch.lap("convert")
    if again:
        litert_torch.convert(module, inputs).export(out)
        watch.lap("convert again")
        torch.export.export(module, inputs)
        watch.lap("torch.export")
    watch.write(Path(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
