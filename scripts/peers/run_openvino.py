"""OpenVINO's side of the latency comparison; see timing.py. It reads the official ONNX file itself."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from timing import Runtime, Session, main, nothing

SETTINGS = "CPU plugin, PERFORMANCE_HINT LATENCY, INFERENCE_PRECISION_HINT f32, input set once"


def open_file(path: Path, image: NDArray[np.float32], threads: int) -> Session:
    """Open a file."""
    core = ov.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(image))

    def run() -> None:
        request.start_async()
        request.wait()

    def logits() -> NDArray[Any]:
        return np.array(request.get_output_tensor().data)

    return Session(run, logits, nothing)


if __name__ == "__main__":
    main(Runtime(open_file, SETTINGS))
