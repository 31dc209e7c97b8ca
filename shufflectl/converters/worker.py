"""Emit in another process, which imports its converter while this one still captures the graph.

``import coremltools`` takes seconds. A process that starts at once and waits for its job hides that time
behind the capture, and keeps what the package prints away from the user's terminal.

The protocol is three length-prefixed byte strings to the child (a JSON job, the graph, nothing more), and
one JSON answer back. Nothing is pickled.
"""

import contextlib
import importlib
import json
import logging
import os
import struct
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from shufflectl import errors
from shufflectl.converters.graph import Graph
from shufflectl.converters.metadata import ModelInfo
from shufflectl.converters.targets import TARGETS, EmitOptions

__all__ = ["EmitterProcess"]

_HOME: Final = str(Path(errors.__file__).parents[1])
"""Where this package lies, which need not be installed."""
_PREFIX: Final = struct.Struct("<Q")
_RELAYED: Final = {
    name: kind
    for name in errors.__all__
    if isinstance(kind := getattr(errors, name), type) and issubclass(kind, errors.ShufflectlError)
}


class EmitterProcess:
    """A process that emits for one target. It starts importing the converter when it is made.

    Args:
        target: The target's name.
        verbose: Whether the converter's own messages reach this process's standard error.
    """

    def __init__(self, target: str, *, verbose: bool = False) -> None:
        self._target = target
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter and a name from the table
            # -P: a coremltools.py in the current folder is not the package.
            [sys.executable, "-P", "-m", "shufflectl.converters.worker", target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if verbose else subprocess.DEVNULL,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([_HOME, *filter(None, [os.environ.get("PYTHONPATH")])]),
                "SHUFFLECTL_WORKER_VERBOSE": "1" if verbose else "",
            },
        )

    def emit(self, graph: Graph, info: ModelInfo, options: EmitOptions, path: Path) -> None:
        """Write one artifact; as `Target.emit`, the same errors included."""
        job = {"info": info.to_json(), "options": asdict(options), "path": str(path.absolute())}
        process = self._process
        assert process.stdin is not None  # noqa: S101 - both are pipes, which the type does not say
        assert process.stdout is not None  # noqa: S101
        try:
            _send(process.stdin, json.dumps(job).encode())
            _send(process.stdin, graph.to_bytes())
            answer = json.loads(_receive(process.stdout))
        except (EOFError, BrokenPipeError, ValueError) as error:
            status = self.close()
            raise errors.ShufflectlError(
                f"the process that writes {self._target} files ended unexpectedly (status {status})",
                hint="call again with -v to see what it printed; too little memory is a common cause",
            ) from error
        if answer["error"] is not None:
            raise _rebuild(answer)

    def close(self) -> int:
        """End the process and return its exit status."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            return process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.close()


def _send(stream: IO[bytes], data: bytes) -> None:
    stream.write(_PREFIX.pack(len(data)))
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    prefix = stream.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        raise EOFError("the other side is gone")
    (size,) = _PREFIX.unpack(prefix)
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("the other side is gone")
    return data


def _rebuild(answer: dict[str, Any]) -> errors.ShufflectlError:
    """Return the child's error as this process's, of the same kind."""
    kind = _RELAYED.get(answer["error"], errors.ShufflectlError)
    error = kind.__new__(kind)
    errors.ShufflectlError.__init__(error, answer["message"], hint=answer["hint"])
    vars(error).update(answer["fields"])
    return error


def _answer(error: Exception | None) -> dict[str, Any]:
    if error is None:
        return {"error": None}
    if isinstance(error, errors.ShufflectlError):
        fields = {k: v for k, v in vars(error).items() if isinstance(v, str) and k not in ("message", "hint")}
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint, "fields": fields}
    message = f"{type(error).__name__}: {error}"
    return {"error": "ShufflectlError", "message": message, "hint": "call again with -v", "fields": {}}


def _serve(target: str) -> None:
    """Import the emitter, then serve jobs until standard input ends."""
    if os.environ.get("SHUFFLECTL_WORKER_VERBOSE"):
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("shufflectl").setLevel(logging.DEBUG)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a converter prints must not mix with the answers
    module, _, function = (TARGETS[target].preload or "").partition(":")
    broken: Exception | None = None
    try:
        if module:
            getattr(importlib.import_module(module), function)()
    except Exception as error:  # noqa: BLE001 - whatever it is, it becomes the answer to the first job
        broken = error
    while True:
        try:
            job, graph = json.loads(_receive(sys.stdin.buffer)), _receive(sys.stdin.buffer)
        except EOFError:
            return
        failure = broken
        if failure is None:
            try:
                TARGETS[target].emit(
                    Graph.from_bytes(graph),
                    ModelInfo.from_json(job["info"]),
                    EmitOptions(**job["options"]),
                    Path(job["path"]),
                )
            except Exception as error:  # noqa: BLE001 - relayed to the parent, which raises it
                failure = error
                if os.environ.get("SHUFFLECTL_WORKER_VERBOSE"):
                    sys.excepthook(type(error), error, error.__traceback__)
        _send(answers, json.dumps(_answer(failure)).encode())


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _serve(sys.argv[1])
