"""LiteRT's side of the latency comparison; see timing.py."""

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from timing import Runtime, Session, main, nothing

SETTINGS = "interpreter with the XNNPACK delegate that it applies by default, input set once"


def open_file(path: Path, image: NDArray[np.float32], threads: int) -> Session:
    """Open a file, of either layout of the image, in floats or in codes."""
    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    entry, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    if tuple(entry["shape"]) != image.shape:
        image = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
    if entry["dtype"] == np.int8:
        scale, zero = entry["quantization"]
        image = np.clip(np.rint(image / scale) + zero, -128, 127).astype(np.int8)
    interpreter.set_tensor(entry["index"], image)

    def logits() -> NDArray[Any]:
        found = np.asarray(interpreter.get_tensor(result["index"]))
        if result["dtype"] != np.int8:
            return found
        scale, zero = result["quantization"]
        return (found.astype(np.float32) - zero) * np.float32(scale)

    return Session(interpreter.invoke, logits, nothing)


if __name__ == "__main__":
    main(Runtime(open_file, SETTINGS))
