"""litert-torch's own conversion of a torch module, as its documentation shows it.

Usage: tflite_litert_torch.py MODEL WEIGHTS OUT.tflite FIGURES.json [again | channels-last]

With ``again`` the conversion runs a second time in the same process, and torch.export alone is timed. With
``channels-last`` the file takes an NHWC image, by litert-torch's own wrapper.
"""

import sys
from pathlib import Path

from network import Stopwatch, network


def main(model: str, weights: str, out: str, figures: str, flag: str = "") -> None:
    watch = Stopwatch()
    import litert_torch
    import torch

    watch.lap("import")
    module, inputs = network(model, Path(weights))
    watch.lap("build")
    if flag == "channels-last":
        module = litert_torch.to_channel_last_io(module, args=[0]).eval()
        inputs = (inputs[0].permute(0, 2, 3, 1).contiguous(),)
    litert_torch.convert(module, inputs).export(out)
    watch.lap("convert")
    if flag == "again":
        litert_torch.convert(module, inputs).export(out)
        watch.lap("convert again")
        torch.export.export(module, inputs)
        watch.lap("torch.export")
    watch.write(Path(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
