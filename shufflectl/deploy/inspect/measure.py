"""Facts that only a runtime tells, measured in a process of its own: a file of others may end that process.

The process (`measure_worker`) finds modules where this one does, never in the current folder, and answers
with one JSON document.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, Final, Literal

from shufflectl.deploy.process import run
from shufflectl.errors import UnavailableError

__all__ = ["NotMeasuredError", "measure"]

_TIMEOUT_S: Final = 120.0
_WORKER: Final = "shufflectl.deploy.inspect.measure_worker"


class NotMeasuredError(Exception):
    """Something could not be measured; the text says why."""


def measure(what: Literal["xnnpack", "layout"], path: Path, *, timeout: float = _TIMEOUT_S) -> dict[str, Any]:
    """Return what a runtime makes of a file, as `measure_worker` says it.

    Args:
        what: ``xnnpack``: the partitions in LiteRT. ``layout``: ONNX Runtime's optimised graph.
        path: The file.
        timeout: The longest time that it may take, in seconds.

    Raises:
        NotMeasuredError: The runtime is missing, refuses the file, ends unexpectedly or takes too long.
    """
    argv = [sys.executable, "-P", "-m", _WORKER, what, str(path.absolute())]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    try:
        done = run(argv, timeout=timeout, env=env)
    except UnavailableError as error:
        raise NotMeasuredError(f"loading {path.name} did not end within {timeout:g} s") from error
    try:
        answer = json.loads(done.stdout)
        error_text = answer["error"]
        result = answer["result"]
    except (ValueError, LookupError, TypeError) as error:
        raise NotMeasuredError(
            f"the process that loads {path.name} ended with status {done.status}"
        ) from error
    if error_text:
        raise NotMeasuredError(str(error_text))
    return dict(result)
