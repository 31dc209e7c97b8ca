"""The official int8 files of a network, which are made once and kept.

ONNX Runtime's `quantize_static` (Q/DQ, weights by channel, uint8 activations, min-max) of torch's own export,
simplified; and ai-edge-quantizer's static_wi8_ai8 of litert-torch's export. Both are calibrated on the same
images as ours.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers.environments import OWN, PEERS, versions
from peers.files import call

__all__ = ["ENVIRONMENT", "find", "make"]

ENVIRONMENT = "litert-torch"
EXTENSIONS = {"onnx": ".onnx", "tflite": ".tflite"}


def find(folder: Path) -> dict[str, Any] | None:
    """Return the record of files that `make` left in a folder; None where there are none."""
    record = folder / "official.json"
    found: dict[str, Any] | None = json.loads(record.read_text("utf-8")) if record.exists() else None
    return found


def make(
    folder: Path,
    name: str,
    module: Any,
    calibration: NDArray[np.float32],
    pythons: Mapping[str, Path],
) -> dict[str, Any]:
    """Make the files in a folder, and return their record: file, bytes and size next to fp32, by target.

    Args:
        folder: Created anew.
        name: The model and the size of its images, as ``shufflenet_v2_x1_0@64``.
        module: The torch module.
        calibration: Prepared images, ``[N, 3, size, size]``.
        pythons: The interpreters of this environment and of `ENVIRONMENT`.
    """
    import torch

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights, images, laps = folder / "weights.pt", folder / "calibration.npy", folder / "laps.json"
    torch.save(module.state_dict(), weights)
    np.save(images, calibration)
    steps = {
        "onnx": (OWN, "onnx_simplified.py", "onnx_quantised.py", ()),
        "tflite": (ENVIRONMENT, "tflite_litert_torch.py", "tflite_quantised.py", (str(laps),)),
    }
    files = {}
    for target, (environment, converter, quantiser, more) in steps.items():
        python = str(pythons[environment])
        floats, codes = (folder / f"{p}{EXTENSIONS[target]}" for p in ("fp32", "int8"))
        call(
            [python, str(PEERS / converter), name, str(weights), str(floats), *more],
            f"{floats.name} of {name}",
        )
        call(
            [python, str(PEERS / quantiser), str(floats), str(images), str(codes)], f"{codes.name} of {name}"
        )
        size = codes.stat().st_size
        files[target] = {"file": codes.name, "bytes": size, "ratio": size / floats.stat().st_size}
        floats.unlink()
    for scratch in (weights, images, laps):
        scratch.unlink(missing_ok=True)
    record = {
        "files": files,
        "versions": versions(
            pythons,
            {
                OWN: ["onnxruntime", "ai-edge-litert", "coremltools", "torch", "onnxsim"],
                ENVIRONMENT: ["litert-torch", "ai-edge-quantizer"],
            },
        ),
    }
    (folder / "official.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record
