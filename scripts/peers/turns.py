"""Latency of files of one target in turns inside one process; see timing.py."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peers.environments import PEERS
from peers.report import Estimate, bootstrap

__all__ = ["RUNNERS", "ratios", "timed"]

RUNNERS = {"onnx": "run_onnxruntime.py", "tflite": "run_litert.py"}
"""The program that runs a target's files. Core ML has no runtime here."""

PROCESSES = 7
ITERATIONS = 40
WARMUP = 10


def timed(
    target: str, files: Mapping[str, Path], image: NDArray[np.float32], scratch: Path
) -> list[dict[str, float]]:
    """Return each file's median in ms, one thread, for each of some fresh processes.

    Args:
        target: One of `RUNNERS`.
        files: By label.
        image: Prepared, ``[1, 3, size, size]``.
        scratch: A folder for what passes between processes.

    Raises:
        SystemExit: A file cannot be run, or gives another result after a while.
    """
    request, reply, reference = (scratch / name for name in ("request.json", "reply.json", "image.npz"))
    np.savez(reference, image=image)
    found = []
    for number in range(PROCESSES):
        wanted = {
            "files": {label: str(path) for label, path in files.items()},
            "reference": str(reference),
            "threads": 1,
            "seed": number,
            "warmup": WARMUP,
            "iterations": ITERATIONS,
            "settle": 1,
        }
        request.write_text(json.dumps(wanted), encoding="utf-8")
        command = [sys.executable, str(PEERS / RUNNERS[target]), str(request), str(reply)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{RUNNERS[target]} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
        samples = json.loads(reply.read_text(encoding="utf-8"))["samples_ns"]
        found.append({label: float(np.median(values)) / 1e6 for label, values in samples.items()})
    return found


def ratios(medians: Sequence[Mapping[str, float]], top: str, bottom: str) -> Estimate | None:
    """Return the median over processes of one file's median next to another's, with its 95 % interval."""
    pairs = [found[top] / found[bottom] for found in medians if top in found and bottom in found]
    return bootstrap(pairs) if pairs else None
