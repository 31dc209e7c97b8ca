"""The official way to ONNX: torch.onnx.export, simplified by onnxsim.

Usage: onnx_simplified.py MODEL WEIGHTS OUT.onnx
"""

import sys
from pathlib import Path

import onnx
import onnxsim
import torch
from network import network


def main(model: str, weights: str, out: str) -> None:
    module, inputs = network(model, Path(weights))
    program = torch.onnx.export(module, inputs, dynamo=True)
    if program is None:
        raise SystemExit("torch.onnx returned nothing")
    simplified, agrees = onnxsim.simplify(program.model_proto)
    if not agrees:
        raise SystemExit("onnxsim says that the simplified model differs")
    onnx.save(simplified, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
