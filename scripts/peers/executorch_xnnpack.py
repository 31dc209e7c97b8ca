"""ExecuTorch's own export of a torch module with the XNNPACK partitioner, as its documentation shows it.

Usage: executorch_xnnpack.py MODEL WEIGHTS OUT.pte
"""

import sys
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from network import network


def main(model: str, weights: str, out: str) -> None:
    module, inputs = network(model, Path(weights))
    program = to_edge_transform_and_lower(
        torch.export.export(module, inputs), partitioner=[XnnpackPartitioner()]
    ).to_executorch()
    Path(out).write_bytes(program.buffer)


if __name__ == "__main__":
    main(*sys.argv[1:])
