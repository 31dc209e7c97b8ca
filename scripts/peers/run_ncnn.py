"""ncnn's side of the latency comparison; see timing.py. A file's path is that of its ``.param``."""

from pathlib import Path
from typing import Any

import ncnn
import numpy as np
from numpy.typing import NDArray
from timing import Runtime, Session, main, nothing

SETTINGS = (
    "fp32 storage and arithmetic; Winograd, SGEMM and packed layouts (the defaults); a new extractor each run"
)


def open_file(path: Path, image: NDArray[np.float32], threads: int) -> Session:
    """Open a file."""
    net = ncnn.Net()
    net.opt.num_threads = threads
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, name, False)
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
        raise SystemExit(f"ncnn cannot load {path.name}")
    mat = ncnn.Mat(np.ascontiguousarray(image[0])).clone()
    entry, result = net.input_names()[0], net.output_names()[0]
    last: list[Any] = [None]

    def run() -> None:
        extractor = net.create_extractor()
        extractor.input(entry, mat)
        status, last[0] = extractor.extract(result)
        if status:
            raise SystemExit(f"ncnn cannot run {path.name}")

    return Session(run, lambda: np.array(last[0]), nothing)


if __name__ == "__main__":
    main(Runtime(open_file, SETTINGS))
