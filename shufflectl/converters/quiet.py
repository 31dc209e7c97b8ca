"""Silence for third-party packages, which write to a user's terminal about what a user cannot change.

torch.onnx and onnxscript warn of missing torchvision and of deprecated internals of torch itself; coremltools
logs a warning for every native library that exists on macOS alone and draws progress bars. With ``-v`` the
command line lowers the level of the logger ``shufflectl`` to debug, and everything is heard.

What native code writes past Python's ``sys.stderr`` is the business of `deploy.runtimes.quiet`.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet", "verbose"]

_LOGGERS = (
    "torch",
    "torch.onnx",
    "torch.export",
    "torch._dynamo",
    "torch.fx",
    "onnxscript",
    "onnx_ir",
    "onnxsim",
    "coremltools",
)


def verbose() -> bool:
    """Say whether the user asked to hear other packages."""
    return logging.getLogger("shufflectl").isEnabledFor(logging.DEBUG)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the body's warnings, log records and Python-level output to itself, unless verbose."""
    if verbose():
        yield
        return
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
