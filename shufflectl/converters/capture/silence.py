"""Silence for third-party programs that write to a user's terminal.

torch.onnx and onnxscript log and warn about matters a user cannot act on (torchvision missing, deprecated
internals of torch itself). With ``-v`` the command line lowers the level of the logger ``shufflectl`` to
debug, and everything is heard.
"""

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["gc_paused", "quiet"]

_LOGGERS = (
    "torch",
    "torch.onnx",
    "torch.export",
    "torch._dynamo",
    "torch.fx",
    "onnxscript",
    "onnx_ir",
    "onnxsim",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings, log records, standard output and standard error of the body to itself."""
    if logging.getLogger("shufflectl").isEnabledFor(logging.DEBUG):
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


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Keep the cyclic garbage collector from running in the body.

    Tracing allocates millions of small objects that all live to its end; scanning them again and again costs
    about a fifth of a capture's time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if gc.get_freeze_count() == 0:
                # Moves the new objects to the oldest generation, without the scan that enabling would start.
                gc.freeze()
                gc.unfreeze()
            gc.enable()
