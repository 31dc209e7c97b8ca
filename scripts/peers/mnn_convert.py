"""MNN's conversion of the official ONNX export.

Usage: mnn_convert.py IN.onnx OUT.mnn

The converter is called through its binding: the console script ``mnnconvert`` that comes with it installs a
logging package into whatever environment ``pip`` belongs to, and reports each conversion to its makers.
"""

import sys

import _tools


def main(model: str, out: str) -> None:
    files = ["--modelFile", model, "--MNNModel", out]
    _tools.mnnconvert(["mnnconvert", "-f", "ONNX", *files, "--bizCode", "shufflectl"])


if __name__ == "__main__":
    main(*sys.argv[1:])
