"""pnnx's conversion of a traced torch module to ncnn, as ncnn's documentation shows it.

Usage: ncnn_pnnx.py MODEL WEIGHTS OUT.param

The weights go to the ``.bin`` beside it. fp16=0 keeps them in fp32.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import pnnx
import torch
from network import network


def main(model: str, weights: str, out: str) -> None:
    module, inputs = network(model, Path(weights))
    size = ",".join(map(str, inputs[0].shape))
    with tempfile.TemporaryDirectory() as folder:
        torch.jit.trace(module, inputs).save(f"{folder}/model.pt")
        command = [pnnx.EXEC_PATH, "model.pt", f"inputshape=[{size}]", "fp16=0"]
        subprocess.run(command, check=True, cwd=folder)
        for suffix in (".param", ".bin"):
            made = Path(folder) / f"model.ncnn{suffix}"
            Path(out).with_suffix(suffix).write_bytes(made.read_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
