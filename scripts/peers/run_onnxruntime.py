"""ONNX Runtime's side of the latency comparison; see timing.py."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from timing import Runtime, Session, main, nothing

SETTINGS = (
    "CPU execution provider, sequential, all graph optimisations (the default), input and output bound once; "
    "with more than one thread, one pool for all sessions of the process"
)


def options(threads: int) -> ort.SessionOptions:
    """Return the session options of every comparison."""
    chosen = ort.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.inter_op_num_threads = 1
    chosen.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    return chosen


@cache
def share_pool(threads: int) -> None:
    """Let all sessions use the same worker threads.

    A session's own worker spins for more than 50 ms after a run: with six sessions that take turns on two
    cores, every run took 4.5 times as long as with one.
    """
    ort.set_global_thread_pool_sizes(threads, 1)


def open_file(path: Path, image: NDArray[np.float32], threads: int) -> Session:
    """Open a file."""
    chosen = options(threads)
    if threads > 1:
        share_pool(threads)
        chosen.use_per_session_threads = False
    session = ort.InferenceSession(str(path), chosen, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(image))
    binding.bind_output(session.get_outputs()[0].name, "cpu")

    def logits() -> NDArray[Any]:
        return np.asarray(binding.copy_outputs_to_cpu()[0])

    return Session(lambda: session.run_with_iobinding(binding), logits, nothing)


if __name__ == "__main__":
    main(Runtime(open_file, SETTINGS))
