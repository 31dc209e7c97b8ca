"""What every file of the latency comparison has to compute: a random image and the module's own logits.

Usage: reference.py MODEL WEIGHTS OUT.npz [IMAGES.npy]

IMAGES gets 16 other images, to calibrate on.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from network import network


def main(model: str, weights: str, out: str, more: str = "") -> None:
    module, inputs = network(model, Path(weights))
    rng = np.random.default_rng(0)
    shape = tuple(inputs[0].shape)
    image = rng.standard_normal(shape).astype(np.float32)
    if more:
        np.save(more, rng.standard_normal((16, *shape[1:])).astype(np.float32))
    with torch.no_grad():
        logits = module(torch.from_numpy(image)).numpy()
    with Path(out).open("wb") as file:
        np.savez(file, image=image, logits=logits)


if __name__ == "__main__":
    main(*sys.argv[1:])
