"""MNN's side of the latency comparison; see timing.py."""

from pathlib import Path
from typing import Any

import MNN
import numpy as np
from numpy.typing import NDArray
from timing import Runtime, Session, main

SETTINGS = "session on the CPU backend, precision high (fp32), the input copied before each run, untimed"


def open_file(path: Path, image: NDArray[np.float32], threads: int) -> Session:
    """Open a file."""
    interpreter = MNN.Interpreter(str(path))
    session = interpreter.createSession({"backend": "CPU", "numThread": threads, "precision": "high"})
    entry, result = interpreter.getSessionInput(session), interpreter.getSessionOutput(session)
    caffe = MNN.Tensor_DimensionType_Caffe
    given = MNN.Tensor(image.shape, MNN.Halide_Type_Float, image, caffe)

    def logits() -> NDArray[Any]:
        shape = result.getShape()
        host = MNN.Tensor(shape, MNN.Halide_Type_Float, np.zeros(shape, np.float32), caffe)
        result.copyToHostTensor(host)
        return np.array(host.getNumpyData())

    # MNN may give the input's memory to later tensors of the same run.
    return Session(lambda: interpreter.runSession(session), logits, lambda: entry.copyFrom(given))


if __name__ == "__main__":
    main(Runtime(open_file, SETTINGS))
