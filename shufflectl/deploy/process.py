"""The one way to call another program: found by name, bounded in time and output, failures typed."""

import logging
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from shufflectl.errors import UnavailableError

__all__ = ["LIMIT", "Completed", "TooMuchOutputError", "run"]

_LOG = logging.getLogger(__name__)

LIMIT: Final = 64 << 20
"""The most bytes that a program may print on each of its streams, unless its caller says otherwise."""

_CHUNK: Final = 1 << 16
_GRACE_S: Final = 2.0


class TooMuchOutputError(UnavailableError):
    """A program printed more than is kept of it."""


@dataclass(frozen=True)
class Completed:
    """What a program left behind.

    Attributes:
        status: Its exit status.
        stdout: Its standard output, undecodable bytes replaced.
        stderr: Its standard error, likewise.
    """

    status: int
    stdout: str
    stderr: str


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
    limit: int = LIMIT,
    own_session: bool = False,
) -> Completed:
    """Run a program without a shell and without standard input, and wait for it.

    Args:
        argv: The program, by name or path, and its arguments.
        timeout: Seconds after which it is killed.
        env: Its whole environment; None for this process's.
        folder: Its working folder; None for this process's.
        limit: The most bytes that it may print on each stream; more, and it is killed.
        own_session: Whether an interrupt from the keyboard spares it, because its caller ends it.

    Raises:
        UnavailableError: The program is not installed, cannot be started, or did not end in time.
        TooMuchOutputError: It printed more than ``limit`` bytes on one stream.
    """
    program = shutil.which(argv[0])
    if program is None:
        raise UnavailableError(
            f"the program {argv[0]!r} was not found", hint="install it, or put its folder on PATH"
        )
    command = [program, *argv[1:]]
    _LOG.debug("running %s", shlex.join(command))
    try:
        process = subprocess.Popen(  # noqa: S603 - no shell, and the argv is the caller's own list
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=env,
            cwd=folder,
            start_new_session=own_session,
        )
    except OSError as error:
        raise UnavailableError(f"{program} cannot be started: {error.strerror}") from error
    streams = [_Stream(process, source, limit) for source in (process.stdout, process.stderr) if source]
    deadline = time.monotonic() + timeout
    try:
        process.wait(timeout)
        for stream in streams:  # a program that it left behind may hold them open
            stream.join(max(0.0, deadline - time.monotonic()))
            if stream.is_alive():
                raise subprocess.TimeoutExpired(command, timeout)  # noqa: TRY301
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(
            f"{shlex.join(argv)} did not end within {timeout:g} s", hint="see whether it waits for something"
        ) from error
    finally:
        _end(process, streams)
    if any(stream.overflowed for stream in streams):
        raise TooMuchOutputError(
            f"{shlex.join(argv)} printed more than {limit} bytes",
            hint="see what it prints when called by hand",
        )
    stdout, stderr = (bytes(stream.kept).decode(errors="replace") for stream in streams)
    return Completed(process.returncode, stdout, stderr)


class _Stream(threading.Thread):
    """Reads one stream of a program to its end; kills the program when it prints too much."""

    def __init__(self, process: "subprocess.Popen[bytes]", source: IO[bytes], limit: int) -> None:
        super().__init__(daemon=True)
        self.kept = bytearray()
        self.overflowed = False
        self.source = source  # a pipe without a buffer: a read returns what there is
        self._process = process
        self._limit = limit
        self.start()

    def run(self) -> None:
        """Read until the end, and close the stream: closed by another, its number might be another file's."""
        with self.source:
            while chunk := self.source.read(_CHUNK):
                if len(self.kept) + len(chunk) > self._limit:
                    self.overflowed = True
                    self._process.kill()
                    return
                self.kept += chunk


def _end(process: "subprocess.Popen[bytes]", streams: Sequence[_Stream]) -> None:
    """Kill a program that still runs, and let its streams end, however the wait for it ended."""
    if process.poll() is None:
        process.kill()
        process.wait()
    for stream in streams:
        stream.join(_GRACE_S)
