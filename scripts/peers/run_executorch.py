"""ExecuTorch's side of the latency comparison; see timing.py."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.extension.pybindings import portable_lib
from numpy.typing import NDArray
from timing import Runtime, Session, main, nothing

SETTINGS = "XNNPACK backend, outputs not cloned"


def open_file(path: Path, image: NDArray[np.float32], threads: int) -> Session:
    """Open a file."""
    portable_lib._unsafe_reset_threadpool(threads)  # noqa: SLF001 - the only way to set the threads from Python
    module = portable_lib._load_for_executorch(str(path))  # noqa: SLF001 - what its own runtime package calls
    inputs = (torch.from_numpy(image),)
    last: list[Any] = [None]

    def run() -> None:
        last[0] = module.forward(inputs, clone_outputs=False)

    return Session(run, lambda: np.array(last[0][0].numpy()), nothing)


if __name__ == "__main__":
    main(Runtime(open_file, SETTINGS))
