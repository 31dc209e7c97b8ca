"""The one way to call another program: found by name, bounded in time, its failure a typed error."""

import logging
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shufflectl.errors import UnavailableError

__all__ = ["Completed", "run"]

_LOG = logging.getLogger(__name__)


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


def run(argv: Sequence[str], *, timeout: float, env: Mapping[str, str] | None = None) -> Completed:
    """Run a program without a shell and without standard input, and wait for it.

    Args:
        argv: The program, by name or path, and its arguments.
        timeout: Seconds after which it is killed.
        env: Its whole environment; None for this process's.

    Raises:
        UnavailableError: The program is not installed, cannot be started, or did not end in time.
    """
    program = shutil.which(argv[0])
    if program is None:
        raise UnavailableError(
            f"the program {argv[0]!r} was not found", hint="install it, or put its folder on PATH"
        )
    command = [program, *argv[1:]]
    _LOG.debug("running %s", shlex.join(command))
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and the argv is the caller's own list
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            env=env,
            check=False,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(
            f"{shlex.join(argv)} did not end within {timeout:g} s", hint="see whether it waits for something"
        ) from error
    except OSError as error:
        raise UnavailableError(f"{program} cannot be started: {error.strerror}") from error
    return Completed(done.returncode, done.stdout, done.stderr)
