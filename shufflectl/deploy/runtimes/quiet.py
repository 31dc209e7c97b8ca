"""Silence for native libraries, which write to file descriptor 2 past Python's ``sys.stderr``.

LiteRT reports its delegate (``INFO: Created TensorFlow Lite XNNPACK delegate for CPU.``) and its errors
there, and has no switch for it. The lines matter only when something fails, and then the caller puts them
into the error; with ``-v`` (the logger ``shufflectl`` at debug level) they go where they always went.
"""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from shufflectl.converters.quiet import verbose

__all__ = ["Captured", "quiet_stderr"]

_LOCK = threading.RLock()  # there is one file descriptor 2 for the whole process
_KEPT = 64 * 1024


@dataclass
class Captured:
    """What the body wrote to file descriptor 2; filled in when it ends.

    Attributes:
        text: The last 64 KiB of it; empty with ``-v``, when nothing is captured.
    """

    text: str = ""

    @property
    def last_error(self) -> str:
        """The last line that says ``ERROR``, without the word; empty where there is none."""
        lines = [line.strip() for line in self.text.splitlines()]
        errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
        return errors[-1] if errors else ""


@contextlib.contextmanager
def quiet_stderr() -> Iterator[Captured]:
    """Keep what the body writes to file descriptor 2 from the terminal.

    The redirection is the process's, not the thread's. Bodies of several threads run one after another.
    """
    captured = Captured()
    if verbose():
        yield captured
        return
    with _LOCK, tempfile.TemporaryFile() as sink:
        if sys.stderr is not None:
            sys.stderr.flush()
        try:
            saved = os.dup(2)
        except OSError:  # no standard error at all: nothing to keep quiet
            yield captured
            return
        try:
            os.dup2(sink.fileno(), 2)
            yield captured
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(max(0, sink.seek(0, os.SEEK_END) - _KEPT))
            captured.text = sink.read().decode(errors="replace")
